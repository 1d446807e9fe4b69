"""CUDA kernels that NVRTC compiles at first use: no nvcc, no C++ compiler, nothing built at installation."""
