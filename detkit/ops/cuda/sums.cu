// Fixed-point sums back to numbers: out = sums / unit, the last step of a deterministic backward pass. One thread a number.
#include "device.cuh"

extern "C" __global__ void settle(const int64* sums, TYPE* out, const float* inverse_unit, int64 count) {
    float inverse = inverse_unit[0];  // not a number where a gradient was not: then no sum can be trusted
    for (int64 i = (int64)blockIdx.x * 256 + threadIdx.x; i < count; i += (int64)gridDim.x * 256)
        out[i] = from_float<TYPE>((float)sums[i] * inverse);
}
