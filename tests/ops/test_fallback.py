"""A kernel that fails when it first comes: its op goes on in its PyTorch form, forward and backward, and one line says so."""

import pytest
import torch

from detkit.ops.cuda import compile as kernels
from tests.ops import host
from tests.ops.cases import CASES
from tests.ops.test_kernels import LAUNCHES, assert_same

pytestmark = host.needs_compiler

CPU = torch.device("cpu")


@pytest.fixture
def fail(monkeypatch, caplog):
    """A function that has a kernel fail from now on; ops on CPU tensors take the CUDA path, with nothing known before."""
    launched, failing = [], {}

    def run(source, name, *rest):
        launched.append(name)
        if name in failing:
            raise failing[name]
        host.run(source, name, *rest)

    for name, value in (("_failed", set()), ("_launched", set()), ("_trials", {}), ("run", run)):
        monkeypatch.setattr(kernels, name, value)
    monkeypatch.setattr(kernels, "_on_a_gpu", lambda given: True)
    caplog.set_level("WARNING", "detkit")
    failing["launched"] = launched
    yield failing
    torch.use_deterministic_algorithms(False)


def values(case):
    leaves = [t.clone().requires_grad_() for t in case.inputs]
    out = case.op(*leaves)
    return [out, *torch.autograd.grad(out, leaves, torch.linspace(-1, 1, out.numel()).view(out.shape))]


def launches(name):
    return next(v for k, v in LAUNCHES.items() if name.startswith(k))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", ["roi_align", "ps_roi_pool", "deform_conv v2"])
def test_an_op_whose_kernel_is_refused_goes_on_in_its_pytorch_form(name, which, fail, caplog, monkeypatch):
    case, kernel = CASES[name](), launches(name)[which]
    fail[kernel] = RuntimeError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES")
    first = values(case)
    assert fail["launched"] == launches(name)[: which + 1], (
        "the backward pass of a forward pass without kernels has none"
    )
    fail["launched"].clear()
    again = values(case)
    assert not fail["launched"], "and from then on neither pass has"
    (line,) = caplog.messages
    assert line.startswith("no CUDA kernels for ")
    assert line.endswith(
        " with Float on cpu, sampling ops run in their PyTorch form: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"
    )
    monkeypatch.setattr(kernels, "_on_a_gpu", lambda given: False)
    expected = values(case)
    assert_same(first, expected, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_what_settles_sums_belongs_to_the_op(fail, caplog):
    torch.use_deterministic_algorithms(True)
    fail["settle"] = RuntimeError("refused")
    values(CASES["roi_align"]())
    assert fail["launched"] == ["region_forward", "region_backward", "settle"]
    values(CASES["roi_align"]())
    assert len(fail["launched"]) == 3
    assert len(caplog.messages) == 1
    assert "region_pooling.cu" in caplog.messages[0]


def test_other_ops_keep_their_kernels(fail):
    fail["region_forward"] = RuntimeError("refused")
    values(CASES["roi_align"]())
    fail["launched"].clear()
    values(CASES["ps_roi_pool"]())
    assert fail["launched"] == launches("ps_roi_pool")


OUT_OF_MEMORY = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA_ERROR_OUT_OF_MEMORY"), MemoryError()]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["torch", "driver", "host"])
def test_a_lack_of_memory_is_raised_and_not_remembered(error, fail, caplog):
    case = CASES["roi_align"]()
    fail["region_forward"] = fail["settle"] = error
    with pytest.raises(type(error)) as raised:
        values(case)
    with pytest.raises(type(error)):
        kernels._works_on(CPU, (9, 0))
    assert raised.value is error
    del fail["region_forward"], fail["settle"]
    fail["launched"].clear()
    values(case)
    assert fail["launched"] == launches("roi_align")
    assert kernels._works_on(CPU, (9, 0))
    assert not caplog.messages


def test_what_worked_before_and_fails_now_is_raised(fail):
    case = CASES["roi_align"]()
    values(case)
    fail["region_backward"] = RuntimeError("an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        values(case)


def test_nothing_is_tried_or_remembered_while_a_graph_captures(fail, caplog, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_captures", lambda device: True)
        assert kernels._works_on(CPU, (9, 0)), "on trust"
        assert not kernels._works_on(CPU, (7, 5)), "what needs no trial is known"
        fail["region_forward"] = RuntimeError("operation not permitted when stream is capturing")
        with pytest.raises(RuntimeError, match="not permitted"):
            values(CASES["roi_align"]())
        assert not fail["launched"].count("settle")
    assert len(caplog.messages) == 1
    del fail["region_forward"]
    values(CASES["roi_align"]())
    assert fail["launched"][-2:] == launches("roi_align")
    assert kernels._works_on(CPU, (9, 0))
    assert fail["launched"][-1] == "settle"
