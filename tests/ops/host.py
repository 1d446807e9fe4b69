"""Runs detkit's CUDA sources on the CPU: g++ compiles them with host_cuda.h, and :func:`run` takes the GPU's place.

``mode``: "" for values alone; "races", under ThreadSanitizer; "watched", in which shared memory is NaN before each block,
its bank conflicts can be counted, and no tensor can be left: behind it and before it lies memory that must not be touched.
"""

import ctypes
import functools
import hashlib
import mmap
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

MODES = {"": [], "races": ["-fsanitize=thread", "-g"], "watched": ["-DWATCHED"]}

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@functools.cache
def library(source, macros, mode):
    """``source`` as a shared library with a function ``run_NAME(sizes, arguments)`` for each kernel."""
    text = (kernels.FOLDER / source).read_text()
    names = re.findall(r'extern "C" __global__ void(?: __launch_bounds__\([^)]*\))? (\w+)\(', text)
    if ("BN", "64") not in macros:
        names = [n for n in names if n != "deform_backward_data"]
    runners = "\n".join(
        f'extern "C" unsigned run_{n}(const unsigned* size, void** arguments) {{ return host::launch({n}, size, arguments); }}'
        for n in names
    )
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-w", f"-I{HERE}", f"-I{kernels.FOLDER}"]
    flags += [f"-D{k}={v}" for k, v in macros] + MODES[mode]
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


def run(source, name, grid, block, arguments, macros, device, mode=""):
    """In place of ``kernels.run``, for tensors on the CPU.

    Raises:
        AssertionError: an access was not aligned, which ends a launch on a GPU.
    """
    assert device.type == "cpu"
    guarded = {i: Guarded(a) for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and mode == "watched"}
    values = [
        ctypes.c_void_p(guarded[i].address) if i in guarded
        else ctypes.c_void_p(None if a is None else a.data_ptr()) if a is None or isinstance(a, torch.Tensor)
        else KINDS[type(a)](a)
        for i, a in enumerate(arguments)
    ]  # fmt: skip
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    misaligned = getattr(library(source, macros, mode), f"run_{name}")((ctypes.c_uint * 6)(*grid, *block), pointers)
    for one in guarded.values():
        one.bring_back()
    assert not misaligned, f"{name}: {misaligned} accesses were not aligned"


class Guarded:
    """A copy of all memory of a tensor, whose end is the end of its pages; those around them cannot be touched.

    Before it, up to the page's beginning, lie bytes 0xFF: read, they are NaN or no index; and written, they are noticed.
    """

    def __init__(self, tensor):
        self.of = tensor
        self.size = tensor.untyped_storage().nbytes()
        pages = -(-self.size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.memory = mmap.mmap(-1, pages + 2 * mmap.PAGESIZE)
        first = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.before = pages - self.size
        self.start = first + mmap.PAGESIZE + self.before
        self.address = self.start + tensor.storage_offset() * tensor.element_size()
        ctypes.memset(self.start - self.before, 0xFF, self.before)
        ctypes.memmove(self.start, tensor.untyped_storage().data_ptr(), self.size)
        for page in (first, first + mmap.PAGESIZE + pages):
            _forbid(page)

    def bring_back(self):
        before = ctypes.string_at(self.start - self.before, self.before)
        assert before.count(0xFF) == self.before, "something was written before the beginning of a tensor"
        ctypes.memmove(self.of.untyped_storage().data_ptr(), self.start, self.size)


def _forbid(page):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")


def conflicts(source, macros):
    """{(written, bytes of a lane): turns} at most that a warp took for an access to shared memory in the last launch."""
    most = ((ctypes.c_uint * 5) * 2)()
    together = library(source, macros, "watched").conflicts
    together.restype = ctypes.c_bool
    assert together(most), "the lanes of a warp went different ways"
    return {(bool(w), 1 << b): most[w][b] for w in range(2) for b in range(5) if most[w][b]}


class Everything(set):
    def __contains__(self, _):
        return True


def take_over(mode=""):
    """Ops on CPU tensors take the CUDA path from now on; returns the growing list of kernels that ran, and the undoing."""
    launched, patch = [], pytest.MonkeyPatch()

    def watched(source, name, *rest):
        launched.append(name)
        run(source, name, *rest, mode=mode)

    patch.setattr(kernels, "run", watched)
    patch.setattr(kernels, "_launched", Everything())  # what fails is raised: no op goes on in its PyTorch form
    for module in ("region_pooling", "ps_roi_align", "deform_conv"):
        patch.setattr(sys.modules[f"detkit.ops.{module}"], "usable", lambda *tensors: True)
    return launched, patch.undo
