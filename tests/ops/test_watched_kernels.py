"""What a GPU would refuse, or make slow, and a CPU lets pass: the kernels on the CPU under watch.

Accesses that are not aligned, shared memory that nobody wrote, memory beyond a tensor, and bank conflicts; each with a
planted fault that is seen.
"""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detkit.ops.cuda import compile as kernels
from detkit.ops.cuda import deform_conv
from tests.ops import cases, host
from tests.ops.cases import CASES
from tests.ops.test_kernels import VECTOR, assert_same, both_ways

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

pytestmark = host.needs_compiler


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A function that puts ``new`` for ``old`` in a source; from then on the sources are those."""
    monkeypatch.setattr(host, "FOLDER", tmp_path / "libraries")
    monkeypatch.setattr(kernels, "FOLDER", Path(shutil.copytree(kernels.FOLDER, tmp_path / "kernels")))

    def plant(source, old, new):
        path = kernels.FOLDER / source
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))

    host.library.cache_clear()
    yield plant
    host.library.cache_clear()


# ---- bank conflicts -----------------------------------------------------------------------------------------------------


def without_branches():
    """64 places whose taps read four cells each: no lane of a warp goes its own way."""
    case = cases.deform_conv(
        (1, 1), (2, 2), (0, 0), (1, 1), bias=False, batch=1, channels=64, out_channels=64, size=(16, 16)
    )
    x, offset, *rest = case.inputs
    return case._replace(inputs=(x, torch.full_like(offset, 0.25), *rest))


def conflicts_of_each_kernel(dtype, monkeypatch):
    """{kernel: :func:`host.conflicts`} at a convolution."""
    found, run = {}, host.run

    def counted(source, name, grid, block, arguments, macros, device, mode):
        run(source, name, grid, block, arguments, macros, device, mode)
        found[name] = host.conflicts(source, macros)

    monkeypatch.setattr(host, "run", counted)
    both_ways(without_branches(), dtype, channels_last=True, mode="watched")
    return found


def test_half_types_meet_no_bank_twice(monkeypatch):
    """The kernels' own accesses. Only the sums that samples receive, once in a whole product, wait for one another."""
    found = conflicts_of_each_kernel(torch.bfloat16, monkeypatch)
    assert found == {
        "deform_forward": {(True, 16): 1, (False, 4): 1},
        "deform_backward_data": {(True, 16): 1, (False, 4): 1, (True, 4): 4},
        "deform_backward_weight": {(True, 2): 1, (False, 4): 1},
    }


@pytest.mark.slow
def test_float32_meets_a_bank_twice_at_most(monkeypatch):
    found = conflicts_of_each_kernel(torch.float32, monkeypatch)
    assert found == {
        "deform_forward": {(True, 4): 1, (False, 4): 1},
        "deform_backward_data": {(True, 4): 2, (False, 4): 1},
        "deform_backward_weight": {(True, 4): 2, (False, 4): 1},
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "kernel", "kind", "turns"),
    [
        (" ^ (row / 8 % 8)", "", "deform_backward_weight", (True, 2), 8),
        ("(row % 2 * 4 + column / 8) ^ (row / 2 % 4)", "(row % 2 * 4 + column / 8)", "deform_forward", (False, 4), 4),
        ("ROW = BK + 1", "ROW = BK", "deform_forward", (False, 4), 16),
    ],
)
def test_plain_tiles_are_seen_to_conflict(old, new, kernel, kind, turns, planted, monkeypatch):
    planted("tiles.cuh", old, new)
    dtype = torch.float32 if "ROW" in old else torch.bfloat16
    assert conflicts_of_each_kernel(dtype, monkeypatch)[kernel][kind] == turns


# ---- what must not be touched -------------------------------------------------------------------------------------------


def under_watch(name, dtype, *, deterministic=False, mode="watched"):
    """The kernels at a case of CASES, or at one of VECTOR in the packed forms, against the sparse form."""
    case = {**CASES, **VECTOR}[name]()
    try:
        found = both_ways(case, dtype, deterministic=deterministic, channels_last=name in VECTOR, mode=mode)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(*found[:2], dtype)


def in_a_process(*arguments):
    """Exit status and messages of this file with ``arguments``: memory that must not be touched ends a process."""
    command = [sys.executable, "-X", "faulthandler", "-m", __spec__.name, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=host.HERE.parents[1])
    return run.returncode, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_kernel_reads_what_it_should_not(dtype, deterministic):
    status, messages = in_a_process(kernels.FOLDER, dtype, deterministic, *CASES, *VECTOR)
    assert status == 0, messages[-4000:]


@pytest.mark.slow
def test_reads_past_the_end_are_seen(planted):
    assert in_a_process(kernels.FOLDER, "float32", 1, "ps_roi_pool")[0] == 0
    planted("sums.cu", "i < count", "i <= count")
    status, messages = in_a_process(kernels.FOLDER, "float32", 1, "ps_roi_pool")
    assert status == -signal.SIGSEGV, messages[-4000:]


@pytest.mark.slow
def test_writes_before_the_beginning_are_seen(planted):
    planted("sums.cu", "out[i] =", "out[i - 1] =")
    status, messages = in_a_process(kernels.FOLDER, "float32", 1, "ps_roi_pool")
    assert status == 1
    assert "written before the beginning" in messages


@pytest.mark.slow
def test_shared_memory_that_nobody_wrote_is_seen(planted):
    """A tile whose last places are left as they are: zeros in a process's own memory, anything on a GPU."""
    planted("deform_conv.cu", "put_column(a, run, place, cells);", "if (m < last) put_column(a, run, place, cells);")
    under_watch("deform_conv, wide", torch.bfloat16, mode="")
    with pytest.raises(AssertionError, match="nan"):
        under_watch("deform_conv, wide", torch.bfloat16)


def test_accesses_that_are_not_aligned_are_seen(monkeypatch):
    """Maps that begin 2 bytes behind a multiple of 16, read 16 bytes at a time nevertheless."""
    case = VECTOR["deform_conv, long"]()
    x = case.inputs[0].bfloat16().contiguous(memory_format=torch.channels_last)
    moved = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].as_strided(x.shape, x.stride()).copy_(x)
    rest = [t.bfloat16() for t in case.inputs[1:]]
    _, undo = host.take_over()
    try:
        torch.testing.assert_close(case.op(moved, *rest), case.op(x, *rest))
        monkeypatch.setattr(deform_conv, "_packed", lambda *tensors, sizes: True)
        with pytest.raises(AssertionError, match=r"deform_forward: \d+ accesses were not aligned"):
            case.op(moved, *rest)
    finally:
        undo()


if __name__ == "__main__":  # FOLDER DTYPE DETERMINISTIC CASE...
    kernels.FOLDER = Path(sys.argv[1])
    for case in sys.argv[4:]:
        under_watch(case, DTYPES[sys.argv[2]], deterministic=sys.argv[3] == "1")
