"""On a GPU: the kernels run, on any stream and device, at the models' sizes, and deterministically where asked."""

import pytest
import torch

from detkit.ops.cuda import compile as kernels
from tests.ops import cases
from tests.ops.cases import CASES

pytestmark = pytest.mark.cuda

LARGE = {
    "roi_align": lambda **k: cases.roi_align(2, True, channels=256, num=300, size=(7, 7), **k),
    "deform_conv": lambda **k: cases.deform_conv(channels=256, out_channels=256, size=(50, 84), **k),
    "deform_conv, grouped": lambda **k: cases.deform_conv(
        groups=2, offset_groups=4, channels=96, out_channels=80, size=(33, 41), **k
    ),
}


@pytest.fixture(autouse=True)
def nothing_deterministic():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def launched(monkeypatch):
    names, run = [], kernels.run
    monkeypatch.setattr(kernels, "run", lambda source, name, *rest: (names.append(name), run(source, name, *rest)))
    return names


def values(case, dtype, upstream=None):
    inputs = [t.to(dtype).requires_grad_() for t in case.inputs]
    out = case.op(*inputs)
    upstream = torch.ones_like(out) if upstream is None else upstream.to(out)
    return [out, *torch.autograd.grad(out, inputs, upstream)]


@pytest.mark.parametrize("dtype", kernels.TYPES)
@pytest.mark.parametrize("name", LARGE)
def test_kernels_run_and_equal_the_cpu(name, dtype, launched):
    ours = values(LARGE[name](device="cuda"), dtype)
    assert launched
    step = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    for a, b in zip(ours, values(LARGE[name](), dtype), strict=True):
        torch.testing.assert_close(a.cpu().float(), b.float(), rtol=8 * step, atol=8 * step * b.abs().max().item())


@pytest.mark.parametrize("name", CASES)
def test_a_side_stream_is_the_stream(name, launched):
    case = CASES[name](device="cuda")
    expected = values(case, torch.float32)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # what is made on this stream is late: reading it from another is seen
        doubled = [t * 1 for t in case.inputs]
        out = values(case._replace(inputs=tuple(doubled)), torch.float32)
    torch.cuda.current_stream().wait_stream(stream)
    assert launched
    for a, b in zip(out, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LARGE)
def test_deterministic_mode_gives_the_same_bits(name):
    torch.use_deterministic_algorithms(True)
    case = LARGE[name](device="cuda")
    first = values(case, torch.float32)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(values(case, torch.float32), first, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU here")
def test_the_tensors_device_is_used_whatever_is_current():
    for name in CASES:
        expected = values(CASES[name](device="cuda:0"), torch.float32)
        with torch.cuda.device(0):
            out = values(CASES[name](device="cuda:1"), torch.float32)
        for a, b in zip(out, expected, strict=True):
            torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-4, atol=1e-4)
