"""What every sampling op must do, over all of them: reference, gradients, registration, layouts, types, empty inputs."""

import pytest
import torch

from detkit.ops.sampling import scattered_rows
from tests.ops.cases import CASES, DEVICES


def run(case, **changes):
    inputs = [t.clone().requires_grad_() for t in changes.get("inputs", case.inputs)]
    out = case.op(*inputs)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.device, out.dtype)
    return out, torch.autograd.grad(out, inputs, upstream)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name, device):
    case = CASES[name](device=device)
    torch.testing.assert_close(case.op(*case.inputs), case.reference(*case.inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name):
    case = CASES[name](dtype=torch.float64)
    assert torch.autograd.gradcheck(case.op, tuple(t.clone().requires_grad_() for t in case.inputs), fast_mode=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_opcheck(name, device):
    op, arguments = CASES[name](device=device).raw
    arguments = [
        [t.clone().requires_grad_() for t in a] if isinstance(a, list) and a and isinstance(a[0], torch.Tensor) else a
        for a in arguments
    ]
    arguments = [
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() and a.ndim == 4 else a
        for a in arguments
    ]
    torch.library.opcheck(getattr(torch.ops.detkit, op).default, tuple(arguments))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_layout_changes_nothing(name, device):
    """Channels-last, and a view with gaps, give what contiguous inputs give, gradients too."""
    case = CASES[name](device=device)
    expected, gradients = run(case)
    last = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in case.inputs]
    gaps = [torch.stack([t, t * 0 + 7], dim=-1)[..., 0] for t in case.inputs]
    for inputs in (last, gaps):
        out, grads = run(case, inputs=inputs)
        torch.testing.assert_close(out, expected)
        for a, b in zip(grads, gradients, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_as_exact_as_its_type(name, dtype, device):
    case = CASES[name](device=device)
    half = [t.to(dtype) for t in case.inputs]
    out, grads = run(case, inputs=half)
    exact, exact_grads = run(case, inputs=[t.float() for t in half])
    assert out.dtype == dtype
    assert [g.dtype for g in grads] == [dtype] * len(grads)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(out.float(), exact, rtol=4 * step, atol=4 * step)
    for a, b in zip(grads, exact_grads, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=8 * step, atol=8 * step * b.abs().max().item())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_autocast_runs_in_its_type_and_offsets_stay(name, device):
    case = CASES[name](device=device)
    inputs = [t.clone().requires_grad_() for t in case.inputs]
    with torch.autocast(device, dtype=torch.bfloat16):
        out = case.op(*inputs)
    out.float().sum().backward()
    assert [t.grad.dtype for t in inputs] == [torch.float32] * len(inputs)
    assert out.dtype == (torch.bfloat16 if name.startswith("deform_conv") else torch.float32)
    torch.testing.assert_close(out.float(), case.op(*case.inputs), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["roi_align", "ps_roi_pool", "deform_conv v2"])
def test_a_second_derivative_is_refused(name):
    case = CASES[name]()
    inputs = [t.clone().requires_grad_() for t in case.inputs]
    grads = torch.autograd.grad(case.op(*inputs).square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grads[0].sum().backward()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("deform_conv")])
def test_no_images_are_legal(name, device):
    case = CASES[name](batch=0, device=device)
    out, grads = run(case)
    assert out.shape[0] == 0
    assert all(g.shape == t.shape and not g.any() for g, t in zip(grads, case.inputs, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("deform_conv")])
def test_no_boxes_are_legal_and_connected(name, device):
    case = CASES[name](num=0, device=device)
    out, grads = run(case)
    assert out.shape[0] == 0
    assert all(g.shape == t.shape and not g.any() for g, t in zip(grads, case.inputs, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("name", [n for n in CASES if "deform" in n])
def test_offsets_that_lead_nowhere_read_nothing(name, bad, device):
    case = CASES[name](device=device)
    place = 1 if name.startswith("deform_conv") else 2
    offsets = case.inputs[place].clone()
    offsets[:1] = bad
    inputs = [*case.inputs[:place], offsets, *case.inputs[place + 1 :]]
    out, grads = run(case, inputs=inputs)
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in grads)
    torch.testing.assert_close(out[1:], case.op(*case.inputs)[1:])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_rows", [7, 1 << 15, (1 << 15) + 1])
def test_the_transposed_map_adds_what_the_map_reads(num_rows, device):
    """Table rows that none, one and many read, the last too; rows of two taps, and of different lengths."""
    g = torch.Generator().manual_seed(0)
    indices = torch.randint(0, num_rows, (20, 2), generator=g)
    indices[3:7] = num_rows - 1
    weights, grad = torch.rand(20, 2, generator=g), torch.randn(20, 3, generator=g)
    expected = torch.zeros(num_rows, 3).index_add_(
        0, indices.view(-1), (weights[..., None] * grad[:, None]).view(-1, 3)
    )
    given = [t.to(device) for t in (grad, indices, weights)]
    torch.testing.assert_close(scattered_rows(*given, num_rows).cpu(), expected)
    starts = torch.arange(0, 40, 2, device=device)
    grad, indices, weights = given[0], given[1].view(-1), given[2].view(-1)
    torch.testing.assert_close(scattered_rows(grad, indices, weights, num_rows, starts).cpu(), expected)


@pytest.mark.parametrize("name", CASES)
def test_what_comes_back_may_be_changed_in_place(name):
    case = CASES[name]()
    inputs = [t.clone().requires_grad_() for t in case.inputs]
    torch.relu_(case.op(*inputs)).sum().backward()
    assert all(t.grad is not None for t in inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_compiles_to_one_graph(name):
    case = CASES[name]()
    torch._dynamo.reset()
    compiled = torch.compile(case.op, fullgraph=True, backend="aot_eager")
    expected, gradients = run(case)
    inputs = [t.clone().requires_grad_() for t in case.inputs]
    out = compiled(*inputs)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    for a, b in zip(torch.autograd.grad(out, inputs, upstream), gradients, strict=True):
        torch.testing.assert_close(a, b)
