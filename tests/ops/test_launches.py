"""What is launched for which tensors: copies that pay, levels beyond what a kernel takes, a graph that captures."""

import pytest
import torch

from detkit.ops import multi_level_roi_align
from detkit.ops.cuda.region_pooling import MAX_LEVELS
from tests.ops import cases, host
from tests.ops.test_kernels import assert_same, both_ways

pytestmark = host.needs_compiler

SQUARE = {"kernel": (1, 1), "padding": (0, 0), "out_channels": 8, "channels": 16, "size": (3, 4)}


@pytest.fixture
def macros(monkeypatch):
    """What the kernels that run are compiled for, by name."""
    seen, run = {}, host.run

    def noted(source, name, grid, block, arguments, macros, *rest, **mode):
        seen[name] = dict(macros)
        run(source, name, grid, block, arguments, macros, *rest, **mode)

    monkeypatch.setattr(host, "run", noted)
    return seen


@pytest.mark.parametrize("channels", [16, 12])
def test_a_convolution_reads_contiguous_maps_from_a_copy_where_that_is_read_faster(channels, macros):
    case = cases.deform_conv(**{**SQUARE, "channels": channels})
    assert case.inputs[0].is_contiguous()
    ours, expected, _ = both_ways(case, torch.float32)
    assert_same(ours, expected, torch.float32)
    packed = "1" if channels == 16 else "0"
    assert {macros[f"deform_{name}"]["PACKED"] for name in ("forward", "backward_weight")} == {packed}


@pytest.mark.parametrize(("num", "channels", "vec"), [(30, 8, "4"), (30, 6, "1"), (1, 8, "1")])
def test_boxes_read_contiguous_maps_from_a_copy_where_they_read_more_than_is_copied(num, channels, vec, macros):
    ours, expected, _ = both_ways(cases.roi_align(2, True, num=num, channels=channels), torch.float32)
    assert_same(ours, expected, torch.float32)
    assert macros["region_forward"]["VEC"] == vec


@pytest.mark.parametrize(("name", "kernel"), [("ps_roi_align", "region_forward"), ("ps_roi_pool", "ps_pool_forward")])
@pytest.mark.parametrize(("num", "copied"), [(70, True), (20, False)])
def test_few_channels_of_a_bin_lie_together_where_more_is_read_than_copied(name, kernel, num, copied, monkeypatch):
    """Two channels of each bin: too few for 16 bytes at a time."""
    strides, run = {}, host.run

    def noted(source, name, grid, block, arguments, *rest, **mode):
        strides.update({name: arguments[0].stride()} if name == kernel else {})
        run(source, name, grid, block, arguments, *rest, **mode)

    monkeypatch.setattr(host, "run", noted)
    case = getattr(cases, name)(*([1] if name == "ps_roi_align" else []), num=num)
    ours, expected, _ = both_ways(case, torch.float32)
    assert_same(ours, expected, torch.float32)
    assert (strides[kernel][1] == 1) == copied


def pyramid(num, **options):
    """The op on ``num`` maps, each half as large as the one before but for rounding, and its maps."""
    g = torch.Generator().manual_seed(3)
    maps = [torch.randn(2, 4, 2 + 24 // (i + 1), 3 + 16 // (i + 1), generator=g) for i in range(num)]
    boxes, index = cases.boxes_and_images(g, 2 * num, torch.float32, "cpu")
    levels = torch.arange(num).repeat(2)
    scales = [1 / (4 * (i + 1)) for i in range(num)]
    case = cases.roi_align(2, True)
    return case._replace(
        op=lambda *maps: multi_level_roi_align(
            maps, boxes, index, levels, output_size=(2, 2), scales=scales, **options
        ),
        inputs=tuple(maps),
    )


@pytest.mark.parametrize("num", [3, pytest.param(MAX_LEVELS, marks=pytest.mark.slow), MAX_LEVELS + 1])
def test_each_box_reads_its_own_of_many_maps(num):
    ours, expected, launched = both_ways(pyramid(num), torch.float32)
    assert_same(ours, expected, torch.float32)
    assert bool(launched) == (num <= MAX_LEVELS), "beyond, the sparse form serves"


#: what would copy from the host, whose copies a graph cannot capture
COPIES = [(torch, name) for name in ("tensor", "as_tensor", "from_numpy")]
COPIES += [(torch.Tensor, name) for name in ("new_tensor", "pin_memory")]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", ["pyramid", *cases.CASES])
def test_nothing_is_copied_from_the_host_while_a_graph_captures(name, deterministic, monkeypatch):
    """The sizes of images come as a tensor, which is the caller's: a graph that is played again reads what is there."""
    sizes = torch.tensor([[50, 100], [72, 60]])
    case = pyramid(3, image_sizes=sizes) if name == "pyramid" else cases.CASES[name]()
    leaves = [t.clone().requires_grad_() for t in case.inputs]
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    launched, undo = host.take_over()
    try:
        with monkeypatch.context() as patch:
            for owner, maker in COPIES:
                patch.setattr(owner, maker, lambda *_, **__: pytest.fail("copied from the host"))
            out = case.op(*leaves)
            grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
    finally:
        undo()
    assert len(launched) >= 2
    assert ("settle" in launched) == deterministic
    assert len(grads) == len(leaves)
