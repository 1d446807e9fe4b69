"""Runs detkit's CUDA sources on the CPU: g++ compiles them with host_cuda.h, and ``run`` takes the place of the GPU's."""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.ops.cuda import compile as kernels

HERE = Path(__file__).parent
FOLDER = Path(tempfile.gettempdir()) / f"detkit-host-kernels-{os.getuid()}"

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@functools.cache
def library(source: str, macros: kernels.Macros, sanitize: bool = False) -> ctypes.CDLL:
    """``source`` as a shared library with a function ``run_NAME(sizes, arguments)`` for each kernel."""
    text = (kernels.FOLDER / source).read_text()
    names = re.findall(r'extern "C" __global__ void(?: __launch_bounds__\(\d+\))? (\w+)\(', text)
    runners = "\n".join(
        f'extern "C" void run_{n}(const unsigned* size, void** arguments) {{ host::launch({n}, size, arguments); }}'
        for n in names
    )
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-w", f"-I{HERE}", f"-I{kernels.FOLDER}"]
    flags += [f"-D{k}={v}" for k, v in macros] + (["-fsanitize=thread", "-g"] if sanitize else [])
    headers = [(HERE / "host_cuda.h").read_text(), (kernels.FOLDER / "device.cuh").read_text()]
    key = hashlib.sha256(repr((text, headers, flags)).encode()).hexdigest()[:24]
    path = FOLDER / f"{key}.so"
    if not path.exists():
        FOLDER.mkdir(exist_ok=True)
        new = FOLDER / f"{key}.{os.getpid()}.so"
        program = f'#include "{kernels.FOLDER / source}"\n{runners}\n'
        subprocess.run(["g++", *flags, "-x", "c++", "-", "-o", str(new)], input=program, text=True, check=True)
        os.replace(new, path)
    return ctypes.CDLL(str(path))


def run(source, name, grid, block, arguments, macros, device, sanitize=False):
    """In place of ``kernels.run``, for tensors on the CPU."""
    assert device.type == "cpu"
    kinds = {np.int32: ctypes.c_int32, np.int64: ctypes.c_int64, np.float32: ctypes.c_float}
    values = [
        ctypes.c_void_p(a.data_ptr() if isinstance(a, torch.Tensor) else None) if a is None or isinstance(a, torch.Tensor)
        else kinds[type(a)](a)
        for a in arguments
    ]  # fmt: skip
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    getattr(library(source, macros, sanitize), f"run_{name}")((ctypes.c_uint * 6)(*grid, *block), pointers)


@pytest.fixture
def on_host(monkeypatch):
    """Ops on CPU tensors take the CUDA path, whose kernels run on the CPU."""
    launched = []

    def watched(source, name, *rest):
        launched.append(name)
        run(source, name, *rest)

    monkeypatch.setattr(kernels, "run", watched)
    for module in ("region_pooling", "ps_roi_align", "deform_conv"):
        import sys

        module = sys.modules[f"detkit.ops.{module}"]
        if hasattr(module, "usable"):
            monkeypatch.setattr(module, "usable", lambda *t: all(x is None or x.dtype != torch.float64 for x in t))
    return launched
