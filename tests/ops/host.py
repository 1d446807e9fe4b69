"""Runs detkit's CUDA sources on the CPU: g++ compiles them with host_cuda.h, and :func:`run` takes the GPU's place."""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.ops.cuda import compile as kernels

HERE = Path(__file__).parent
FOLDER = Path(tempfile.gettempdir()) / f"detkit-host-kernels-{os.getuid()}"
KINDS = {np.int32: ctypes.c_int32, np.int64: ctypes.c_int64, np.float32: ctypes.c_float}

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@functools.cache
def library(source, macros, sanitize):
    """``source`` as a shared library with a function ``run_NAME(sizes, arguments)`` for each kernel."""
    text = (kernels.FOLDER / source).read_text()
    names = re.findall(r'extern "C" __global__ void(?: __launch_bounds__\(\d+\))? (\w+)\(', text)
    if ("BN", "64") not in macros:
        names = [n for n in names if n != "deform_backward_data"]
    runners = "\n".join(
        f'extern "C" void run_{n}(const unsigned* size, void** arguments) {{ host::launch({n}, size, arguments); }}'
        for n in names
    )
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-w", f"-I{HERE}", f"-I{kernels.FOLDER}"]
    flags += [f"-D{k}={v}" for k, v in macros] + (["-fsanitize=thread", "-g"] if sanitize else [])
    headers = [path.read_text() for path in (HERE / "host_cuda.h", *sorted(kernels.FOLDER.glob("*.cuh")))]
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
    values = [
        ctypes.c_void_p(None if a is None else a.data_ptr()) if a is None or isinstance(a, torch.Tensor)
        else KINDS[type(a)](a)
        for a in arguments
    ]  # fmt: skip
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    getattr(library(source, macros, sanitize), f"run_{name}")((ctypes.c_uint * 6)(*grid, *block), pointers)


def take_over(sanitize=False):
    """Ops on CPU tensors take the CUDA path from now on; returns the growing list of kernels that ran, and the undoing."""
    launched, patch = [], pytest.MonkeyPatch()

    def watched(source, name, *rest):
        launched.append(name)
        run(source, name, *rest, sanitize=sanitize)

    patch.setattr(kernels, "run", watched)
    for module in ("region_pooling", "ps_roi_align", "deform_conv"):
        patch.setattr(sys.modules[f"detkit.ops.{module}"], "usable", lambda *tensors: True)
    return launched, patch.undo
