"""The CUDA kernels without a GPU: their sources run on the CPU against the sparse form, and compile for every GPU.

The whole CUDA path runs but the driver's launch: which kernel, which instantiation, every argument, and the kernel itself,
with one thread of the machine for each CUDA thread.
"""

import io
import itertools
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from detkit.ops import multi_level_roi_align
from detkit.ops.cuda import compile as kernels
from detkit.ops.cuda import region_pooling as kernels_of_regions
from tests.ops import cases, host
from tests.ops.cases import CASES

LAUNCHES = {
    "roi": ["region_forward", "region_backward"],
    "ps_roi_align": ["region_forward", "region_backward"],
    "ps_roi_pool": ["ps_pool_forward", "ps_pool_backward"],
    "deform_roi": ["region_forward", "region_backward"],
    "deform_conv": ["deform_forward", "deform_backward_data", "deform_backward_weight"],
}
#: shapes that take the vector forms: channels-last, channels in eights
VECTOR = {
    "roi_align": lambda **k: cases.roi_align(2, True, channels=40, num=3, **k),
    "deform_roi_pool": lambda **k: cases.deform_roi_pool(2, False, 2, channels=16, num=3, **k),
    "deform_conv": lambda **k: cases.deform_conv(
        (1, 2), (1, 1), (0, 0), (1, 1), 2, 1, channels=32, out_channels=16, size=(5, 8), **k
    ),
    "deform_conv, long": lambda **k: cases.deform_conv(  # more than one step in each product
        (1, 2), (1, 1), (0, 0), (1, 1), 1, 2, channels=16, out_channels=40, size=(3, 12), **k
    ),
    "deform_conv, wide": lambda **k: cases.deform_conv(
        (1, 1), (1, 1), (0, 0), (1, 1), 1, 2, channels=80, out_channels=136, size=(3, 5), **k
    ),
}

CPU = torch.device("cpu")

#: in deform_conv.cu
BARRIERS = (kernels.FOLDER / "deform_conv.cu").read_text().count("__syncthreads();")


@pytest.fixture(autouse=True)
def nothing_deterministic():
    yield
    torch.use_deterministic_algorithms(False)


def both_ways(case, dtype, *, deterministic=False, channels_last=False, mode=""):
    """(output, gradients) of the kernels on the CPU, the same of the sparse form, and the names of what was launched."""
    layout = torch.channels_last if channels_last else torch.preserve_format
    inputs = [t.to(dtype, memory_format=layout) if t.ndim == 4 else t.to(dtype) for t in case.inputs]
    torch.use_deterministic_algorithms(deterministic)

    def one():
        leaves = [t.clone().requires_grad_() for t in inputs]
        out = case.op(*leaves)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(dtype)
        return [out, *torch.autograd.grad(out, leaves, upstream)]

    launched, undo = host.take_over(mode)
    try:
        ours = one()
    finally:
        undo()
    return ours, one(), [n for n in launched if n != "settle"]


def assert_same(ours, expected, dtype):
    step = 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.float(), b.float(), rtol=8 * step, atol=8 * step * max(1.0, b.abs().max().item()))


@host.needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_sources_give_the_sparse_forms_values_and_gradients(name):
    ours, expected, launched = both_ways(CASES[name](), torch.float32)
    assert launched == next(v for k, v in LAUNCHES.items() if name.startswith(k))
    assert_same(ours, expected, torch.float32)


@host.needs_compiler
@pytest.mark.parametrize("sampling", [0, 2])
def test_maps_end_where_their_images_end(sampling):
    """Each image its own size: 50 x 100 and 72 x 60 px of maps of 72 x 104."""
    case = cases.roi_align(sampling, True, num=12)
    boxes, index, levels = case.raw[1][1:4]
    options = {"output_size": (3, 2), "scales": (1 / 8,), "sampling_ratio": sampling}
    whole = multi_level_roi_align(case.inputs, boxes, index, levels, **options)
    sizes = [(50, 100), (72, 60)]
    case = case._replace(
        op=lambda f: multi_level_roi_align([f], boxes, index, levels, image_sizes=sizes, **options)
    )  # fmt: skip
    ours, expected, _ = both_ways(case, torch.float32)
    assert_same(ours, expected, torch.float32)
    assert not torch.allclose(expected[0], whole)


@host.needs_compiler
def test_maps_of_any_stride_end_where_their_images_end():
    """At 14 px a cell, of which 7 are 98 px, and the float32 next to 1/14 times 98 is above 7."""
    case = cases.roi_align(2, True, num=12)
    boxes, index, levels = case.raw[1][1:4]
    options = {"output_size": (3, 2), "scales": (1 / 14,), "image_sizes": [(98, 98), (42, 154)]}
    case = case._replace(op=lambda f: multi_level_roi_align([f], 2 * boxes, index, levels, **options))
    ours, expected, _ = both_ways(case, torch.float32)
    assert_same(ours, expected, torch.float32)


@host.needs_compiler
@pytest.mark.parametrize("sampling", [0, 2])
def test_boxes_that_are_not_finite_move_nothing(sampling):
    case = cases.deform_roi_pool(sampling, False, 1, num=6)
    boxes = case.raw[1][1]
    boxes[0, 2], boxes[1, 3], boxes[2, 0], boxes[3, 1] = torch.inf, torch.inf, -torch.inf, torch.nan
    ours, expected, _ = both_ways(case, torch.float32)
    assert_same(ours, expected, torch.float32)
    assert (ours[3][:4] == 0).all()
    assert (ours[3][4:] != 0).any()


@host.needs_compiler
@pytest.mark.parametrize("sensitive", [False, True])
def test_each_channel_is_moved_by_offsets_of_its_own(sensitive):
    """More channels than a warp has lanes."""
    case = cases.deform_roi_pool(2, sensitive, 40, channels=40, num=3, size=(2, 1))
    ours, expected, _ = both_ways(case, torch.float32)
    assert_same(ours, expected, torch.float32)


@host.needs_compiler
@pytest.mark.parametrize("name", VECTOR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vector_forms(name, dtype):
    ours, expected, _ = both_ways(VECTOR[name](), dtype, channels_last=True)
    assert_same(ours, expected, dtype)


@pytest.mark.slow
@host.needs_compiler
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_half_types(name, dtype, deterministic):
    ours, expected, _ = both_ways(CASES[name](), dtype, deterministic=deterministic)
    assert_same(ours, expected, dtype)


@host.needs_compiler
@pytest.mark.parametrize("name", ["roi_align", "ps_roi_pool", "deform_conv v2"])
def test_deterministic_sums_are_right_and_the_same_bits(name):
    case = CASES[name]()
    first, expected, _ = both_ways(case, torch.float32, deterministic=True)
    assert_same(first, expected, torch.float32)
    again, _, _ = both_ways(case, torch.float32, deterministic=True)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@host.needs_compiler
def test_a_gradient_that_is_not_a_number_is_not_lost_in_fixed_point():
    case = CASES["roi_align"]()
    torch.use_deterministic_algorithms(True)
    x = case.inputs[0].clone().requires_grad_()
    _, undo = host.take_over()
    try:
        out = case.op(x)
        upstream = torch.ones_like(out)
        upstream[0, 0, 0, 0] = torch.nan
        (grad,) = torch.autograd.grad(out, x, upstream)
    finally:
        undo()
    assert grad.isnan().all()


@pytest.mark.parametrize("largest", [0.0, 1e-30, 1.0, 3e4, 1e30])
def test_fixed_point_keeps_the_largest_sum_below_2_to_the_62(largest):
    unit, inverse = kernels.fixed_point(torch.tensor(largest))
    assert unit * inverse == 1
    assert largest * unit.item() <= 2.0**62
    assert largest * unit.item() > 2.0**60 or unit == 2.0**126 or largest == 0, "and loses no more bits than it must"
    assert kernels.fixed_point(torch.tensor(torch.inf))[1].isnan()


def under_thread_sanitizer(name, folder=kernels.FOLDER):
    """Exit status and messages of the kernels of ``folder`` at a VECTOR case; what is no race is a failure here."""
    sanitizer = subprocess.run(["g++", "-print-file-name=libtsan.so"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(sanitizer):
        pytest.skip("g++ has no ThreadSanitizer")
    options = "ignore_noninstrumented_modules=1 exitcode=66 report_signal_unsafe=0"
    env = {**os.environ, "LD_PRELOAD": sanitizer, "TSAN_OPTIONS": options, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, name, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, env=env, cwd=host.HERE.parents[1])
    if "unexpected memory mapping" in run.stderr:
        pytest.skip("ThreadSanitizer does not run with this kernel's address layout")
    assert run.returncode in (0, 66), run.stderr[-4000:]
    return run.returncode, run.stderr


@pytest.mark.slow
@host.needs_compiler
@pytest.mark.parametrize("name", VECTOR)
def test_no_race_under_thread_sanitizer(name):
    status, messages = under_thread_sanitizer(name)
    assert status == 0, messages[-4000:]
    assert "WARNING: ThreadSanitizer" not in messages


@pytest.mark.slow
@host.needs_compiler
@pytest.mark.parametrize("number", range(BARRIERS))
def test_each_barrier_is_missed_where_it_is_left_out(number, tmp_path):
    folder = Path(shutil.copytree(kernels.FOLDER, tmp_path / "kernels"))
    text = (folder / "deform_conv.cu").read_text()
    barriers = [m.span() for m in re.finditer(r"__syncthreads\(\);", text)]
    assert len(barriers) == BARRIERS
    start, end = barriers[number]
    (folder / "deform_conv.cu").write_text(text[:start] + text[end:])
    assert under_thread_sanitizer("deform_conv, long", folder)[0] == 66


# ---- compilation ------------------------------------------------------------------------------------------------------

#: Bytes. A few registers may be given away, so that the blocks fit that ``__launch_bounds__`` asks for: they are written
#: once and read once in a product. An array in local memory would be read for each tap.
SMALLEST_ARRAY = 32

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")


def instantiations(everything):
    """(source, macros): each kernel for each type; or each in all its forms."""
    for (dtype, name), fixed in itertools.product(kernels.TYPES.items(), (0, 1)):
        wide = 16 // dtype.itemsize
        common = {"TYPE": name, "FIXED": fixed}
        yield "ps_roi_pool.cu", common
        for vec in (1, wide) if everything else (wide if fixed else 1,):
            for levels in (1, 4, 5, kernels_of_regions.MAX_LEVELS) if everything else (5 if fixed else 1,):
                yield "region_pooling.cu", {**common, "VEC": vec, "LEVELS": levels}
        if fixed:
            yield "sums.cu", common
        for packed, tile in itertools.product((0, 1), (64, 128, 256)) if everything else ((1, 64 if fixed else 128),):
            if tile <= (128 if dtype == torch.float32 else 256):
                yield "deform_conv.cu", {**common, "TENSOR": int(name != "Float"), "BN": tile, "PACKED": packed}


def resources(log):
    """NVRTC's log as (bytes of stack, of spilled registers, registers, bytes of shared memory) for each kernel."""
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
    used = re.findall(r"Used (\d+) registers.*", log)
    shared = [int((re.search(r"(\d+) bytes smem", line) or [0, 0])[1]) for line in re.findall(r"Used .*", log)]
    return [(int(a), int(b), int(r), m) for (a, b), r, m in zip(stacks, used, shared, strict=True)]


@pytest.mark.parametrize(
    ("arch", "everything"),
    [("sm_80", False), ("sm_120", False), *(pytest.param(a, True, marks=pytest.mark.slow) for a in ARCHITECTURES)],
)
def test_every_kernel_compiles_for_every_type_and_fits(arch, everything):
    """Two blocks of 256 threads to a multiprocessor, 48 KB each at most, and no array or many registers kept in memory."""
    pytest.importorskip("cuda.core", reason="cuda.core is not installed")
    cases = [(s, tuple(sorted((k, str(v)) for k, v in m.items()))) for s, m in instantiations(everything)]

    def compiled(case):
        log = io.StringIO()
        return len(kernels._compile(*case, arch, log)), resources(log.getvalue())

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(compiled, cases))
    for case, (size, used) in zip(cases, results, strict=True):
        assert size > 1000
        assert used, case
        for stack, spilled, registers, shared in used:
            assert max(stack, spilled) < SMALLEST_ARRAY, f"{case}: {stack} bytes of stack, {spilled} spilled"
            assert registers <= 128, case
            assert shared <= 48 * 1024, case


def test_each_instantiation_is_kept_under_a_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "_versions", lambda: ())
    monkeypatch.setattr(kernels, "_compile", lambda *case: repr(case).encode())
    cases = [(s, tuple(sorted((k, str(v)) for k, v in m.items()))) for s, m in instantiations(True)]
    codes = {kernels.binary(*case, arch) for case in cases for arch in ARCHITECTURES}
    assert len(codes) == len(list(tmp_path.iterdir())) == len(cases) * len(ARCHITECTURES)


SMALL = ("sums.cu", (("FIXED", "1"), ("TYPE", "Float")), "sm_80")


@pytest.mark.parametrize("damage", [b"", b"short", bytes(5000)])
def test_a_damaged_cache_entry_is_built_again(damage, tmp_path, monkeypatch):
    pytest.importorskip("cuda.core")
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path))
    code = kernels.binary(*SMALL)
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(damage)
    assert kernels.binary(*SMALL) == code
    compiled = []
    monkeypatch.setattr(kernels, "_compile", lambda *a: compiled.append(a))
    assert kernels.binary(*SMALL) == code, "the new entry serves"
    assert not compiled


def test_options_and_versions_are_part_of_the_name(tmp_path, monkeypatch):
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "_compile", lambda source, macros, arch: repr((source, macros, arch)).encode())
    for versions in (("1",), ("2",)):
        monkeypatch.setattr(kernels, "_versions", lambda versions=versions: versions)
        for arch in ("sm_80", "sm_90"):
            for fixed in ("0", "1"):
                assert arch.encode() in kernels.binary("sums.cu", (("FIXED", fixed),), arch)
    assert len(list(tmp_path.iterdir())) == 8


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "file" / "kernels"))
    monkeypatch.setattr(kernels, "_versions", lambda: ())
    monkeypatch.setattr(kernels, "_compile", lambda *a: b"code")
    assert kernels.binary(*SMALL) == b"code"


@host.needs_compiler
def test_a_trial_is_launched_before_anything_else(monkeypatch, caplog):
    """A launch that fails, and a kernel that makes other numbers, end in the PyTorch form and one line."""

    def refused(*_):
        raise RuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU")

    def wrong(source, name, grid, block, arguments, *rest):
        host.run(source, name, grid, block, arguments, *rest)
        arguments[1][0] += 1

    told = {}
    for run in (host.run, refused, wrong):
        monkeypatch.setattr(kernels, "run", run)
        monkeypatch.setattr(kernels, "_trials", {})
        caplog.clear()
        with caplog.at_level("WARNING", "detkit"):
            told[run] = kernels._works_on(CPU, (9, 0)), caplog.messages
    assert told[host.run] == (True, [])
    assert told[refused][0] is told[wrong][0] is False
    assert told[refused][1][0].endswith("sampling ops run in their PyTorch form: CUDA_ERROR_NO_BINARY_FOR_GPU")
    assert "a trial kernel made [1.75, " in told[wrong][1][0]


def test_without_cuda_core_one_line_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path))
    for module in ("cuda.core", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(kernels, "_trials", {})
    monkeypatch.setattr(kernels, "_launched", set())
    kernels._versions.cache_clear()
    try:
        with caplog.at_level("WARNING", "detkit"):
            assert not any(kernels._works_on(CPU, (9, 0)) for _ in range(3))
            assert not kernels._works_on(CPU, (7, 5))
            monkeypatch.setattr(torch.version, "hip", "6.4")
            assert not kernels._works_on(CPU, (9, 4))
    finally:
        kernels._versions.cache_clear()
    assert len(caplog.messages) == 3
    assert caplog.messages[0].startswith("no CUDA kernels for sm_90, sampling ops run in their PyTorch form: ")
    assert "cuda.core" in caplog.messages[0]
    assert caplog.messages[1].endswith("compute capability 7.5 is below 8.0")
    assert caplog.messages[2].endswith("this torch is built for ROCm")


if __name__ == "__main__":  # what runs under ThreadSanitizer
    kernels.FOLDER = Path(sys.argv[2])
    both_ways(VECTOR[sys.argv[1]](), torch.bfloat16, channels_last=True, mode="races")
