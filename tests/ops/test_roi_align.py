"""RoIAlign against its reference, closed forms, torchvision, and bad boxes."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.ops import multi_level_roi_align, roi_align, roi_align_reference

OPTIONS = [(s, a) for s in (1, 2, 3, 0) for a in (True, False)]


def random_case(seed: int = 0, dtype: torch.dtype = torch.float32, num: int = 12):
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 5, 9, 13, generator=g, dtype=dtype)
    corner = torch.rand(num, 2, generator=g) * torch.tensor([110.0, 80.0]) - 15
    boxes = torch.cat([corner, corner + torch.rand(num, 2, generator=g) * 70], dim=1)
    return features, boxes.to(dtype), torch.randint(0, 2, (num,), generator=g)


@pytest.mark.parametrize(("sampling", "aligned"), OPTIONS)
def test_equals_the_reference(sampling, aligned):
    case = random_case()
    kwargs = {"output_size": (3, 4), "scale": 1 / 8, "sampling_ratio": sampling, "aligned": aligned}
    torch.testing.assert_close(roi_align(*case, **kwargs), roi_align_reference(*case, **kwargs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("sampling", "aligned"), OPTIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_torchvision_with_gradient(sampling, aligned, layout):
    features, boxes, index = random_case(1)
    ours = features.clone(memory_format=layout).requires_grad_()
    theirs = features.clone().requires_grad_()
    a = roi_align(ours, boxes, index, output_size=(7, 7), scale=1 / 8, sampling_ratio=sampling, aligned=aligned)
    rois = torch.cat([index[:, None].float(), boxes], dim=1)
    b = torchvision.ops.roi_align(theirs, rois, 7, 1 / 8, sampling or -1, aligned)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(b.shape, generator=torch.Generator().manual_seed(2))
    a.backward(upstream)
    b.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_a_ramp_is_averaged_exactly():
    """The mean of a linear function over a bin is its value at the bin's centre: a half-cell error cannot hide."""
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    features = torch.stack([x, y, 2 * x - 3 * y])[None]
    box = torch.tensor([[16.0, 24.0, 144.0, 88.0]])  # stride 8: cells 2..18 by 3..11
    out = roi_align(features, box, torch.tensor([0]), output_size=(4, 8), scale=1 / 8, sampling_ratio=2)[0]
    centre_x = 2 + 2 * torch.arange(8.0) + 1 - 0.5  # pixel centre of a cell lies half a cell inside
    centre_y = 3 + 2 * torch.arange(4.0) + 1 - 0.5
    torch.testing.assert_close(out[0], centre_x.expand(4, 8), rtol=0, atol=1e-4)
    torch.testing.assert_close(out[1], centre_y[:, None].expand(4, 8), rtol=0, atol=1e-4)
    torch.testing.assert_close(out[2], 2 * out[0] - 3 * out[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("sampling", [0, 2])
def test_gradcheck(sampling):
    features, boxes, index = random_case(3, torch.float64, num=4)

    def pooled(f):
        return roi_align(f, boxes, index, output_size=(2, 3), scale=1 / 8, sampling_ratio=sampling)

    assert torch.autograd.gradcheck(pooled, features[:, :2].clone().requires_grad_())


def test_each_box_reads_its_own_level():
    features, boxes, index = random_case(4)
    coarse = torch.randn(2, 5, 5, 7)
    levels = torch.arange(len(boxes)) % 2
    out = multi_level_roi_align(
        [features, coarse], boxes, index, levels, output_size=(2, 2), scales=(1 / 8, 1 / 16), sampling_ratio=2
    )
    for level, (f, scale) in enumerate(((features, 1 / 8), (coarse, 1 / 16))):
        pick = levels == level
        alone = roi_align(f, boxes[pick], index[pick], output_size=(2, 2), scale=scale)
        torch.testing.assert_close(out[pick], alone)


@pytest.mark.parametrize("sampling", [0, 2])
def test_padding_is_invisible_where_image_sizes_are_given(sampling):
    features, boxes, index = random_case(7)
    padded = torch.nn.functional.pad(features, (0, 4, 0, 3), value=1e6)
    kwargs = {"output_size": (3, 3), "sampling_ratio": sampling}
    alone = roi_align(features, boxes, index, scale=1 / 8, **kwargs)
    sizes = [(9 * 8, 13 * 8)] * 2
    levels = torch.zeros_like(index)
    out = multi_level_roi_align([padded], boxes, index, levels, scales=(1 / 8,), image_sizes=sizes, **kwargs)
    torch.testing.assert_close(out, alone)
    as_tensor = torch.tensor(sizes)
    again = multi_level_roi_align([padded], boxes, index, levels, scales=(1 / 8,), image_sizes=as_tensor, **kwargs)
    assert torch.equal(again, out)


@pytest.mark.parametrize("stride", [7, 13, 14, 15, 28, 30, 16 / 3, 32 / 3])
def test_padding_is_invisible_at_strides_that_are_no_power_of_two(stride):
    """The float32 next to 1 / 14 times 42 px is above 3 cells: the fourth is padding all the same."""
    features, index = torch.randn(1, 2, 30, 30), torch.tensor([0])
    padded = torch.nn.functional.pad(features, (0, 4, 0, 3), value=1e6)
    side = round(30 * stride)
    boxes = torch.tensor([[side - 4 * stride, side - 4 * stride, side, side]])
    kwargs = {"output_size": (3, 3), "scales": (1 / stride,)}
    alone = multi_level_roi_align([features], boxes, index, index, **kwargs)
    out = multi_level_roi_align([padded], boxes, index, index, image_sizes=[(side, side)], **kwargs)
    assert torch.equal(out, alone)
    longer = multi_level_roi_align([padded], boxes, index, index, image_sizes=[(side + 1, side + 1)], **kwargs)
    assert not torch.allclose(longer, alone), "one px more is of the next cell"


@pytest.mark.slow
def test_a_compiled_graph_takes_images_of_other_sizes():
    features, boxes, index = random_case(7)
    levels, options = torch.zeros_like(index), {"output_size": (3, 3), "scales": (1 / 8,)}

    def pooled(features, sizes):
        return multi_level_roi_align([features], boxes, index, levels, image_sizes=sizes, **options)

    torch._dynamo.reset()
    compiled = torch.compile(pooled, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in ((72, 104), (40, 50), (64, 33)):
            sizes, x = torch.tensor([size, (72, 80)]), features.clone().requires_grad_()
            out, expected = compiled(x, sizes), pooled(x, sizes)
            assert torch.equal(out, expected)
            one, two = (torch.autograd.grad(o.sum(), x)[0] for o in (out, expected))
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype):
    features, boxes, index = random_case(5)
    half = features.to(dtype)
    out = roi_align(half, boxes, index, output_size=(3, 3), scale=1 / 8)
    exact = roi_align(half.float(), boxes, index, output_size=(3, 3), scale=1 / 8)
    assert out.dtype == dtype
    assert torch.equal(out, exact.to(dtype))


@pytest.mark.parametrize("sampling", [0, 2])
def test_no_boxes_and_no_cells_are_legal_and_connected(sampling):
    for features, num in ((torch.randn(2, 3, 4, 4), 0), (torch.randn(2, 3, 0, 4), 0)):
        features.requires_grad_()
        out = roi_align(
            features, torch.zeros(num, 4), torch.zeros(num, dtype=torch.int64),
            output_size=(2, 2), scale=1.0, sampling_ratio=sampling,
        )  # fmt: skip
        assert out.shape == (num, 3, 2, 2)
        out.sum().backward()
        assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_boxes_give_zeros(sampling, bad):
    features, boxes, index = random_case(6)
    good = roi_align(features, boxes, index, output_size=(2, 2), scale=1 / 8, sampling_ratio=sampling)
    boxes[3, 2] = bad
    out = roi_align(features, boxes, index, output_size=(2, 2), scale=1 / 8, sampling_ratio=sampling)
    assert torch.equal(out[3], torch.zeros_like(out[3]))
    rest = torch.arange(len(boxes)) != 3
    torch.testing.assert_close(out[rest], good[rest])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e30, 1e30), min_size=4, max_size=4), st.sampled_from([0, 1, 2]), st.booleans())
def test_any_box_gives_a_finite_result(coordinates, sampling, aligned):
    features = torch.ones(1, 1, 6, 6)
    box = torch.tensor([coordinates])
    out = roi_align(
        features, box, torch.tensor([0]), output_size=(2, 2), scale=0.5, sampling_ratio=sampling, aligned=aligned
    )
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-5


def test_shapes_are_checked():
    features, boxes, index = random_case()
    with pytest.raises(ValueError, match=r"boxes must be \(R, 4\), not \(12, 3\)"):
        roi_align(features, boxes[:, :3], index, output_size=(2, 2), scale=1.0)
    with pytest.raises(ValueError, match="12 boxes but 2 image indices"):
        roi_align(features, boxes, index[:2], output_size=(2, 2), scale=1.0)
    with pytest.raises(ValueError, match="output_size must be at least 1 x 1, not 0 x 2"):
        roi_align(features, boxes, index, output_size=(0, 2), scale=1.0)


BOXES, INDEX = torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([0])


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (torch.zeros(2, 4, 4, 4, dtype=torch.float16), r"\(2, 4, 8, 8\) float32 on cpu; \(2, 4, 4, 4\) float16 on cpu"),
        (torch.zeros(2, 8, 4, 4), r"\(2, 8, 4, 4\) float32 on cpu"),
        (torch.zeros(3, 4, 4, 4), r"\(3, 4, 4, 4\) float32 on cpu"),
        (torch.zeros(2, 4, 4, 8).permute(0, 3, 1, 2), r"\(2, 8, 4, 4\) float32 on cpu"),
        (torch.zeros(4, 4, 4), r"\(4, 4, 4\) float32 on cpu"),
        (torch.zeros(2, 4, 4, 4, device="meta"), r"\(2, 4, 4, 4\) float32 on meta"),
        (torch.zeros(2, 4, 4, 4).to_sparse(), r"\(2, 4, 4, 4\) float32 sparse_coo on cpu"),
        (torch.zeros(2, 4, 4, 4, dtype=torch.uint8), r"\(2, 4, 4, 4\) uint8 on cpu"),
    ],
)
def test_maps_that_do_not_go_together_are_refused(second, words):
    """A kernel would read one as if it were of the other's size and type, past its end."""
    with pytest.raises(ValueError, match=f"the same B and C, of one floating type, on one device.*{words}"):
        pool([torch.zeros(2, 4, 8, 8), second])


def pool(features, boxes=BOXES, index=INDEX, levels=INDEX, **options):
    scales = [1 / 8, 1 / 16][: len(features)]
    return multi_level_roi_align(features, boxes, index, levels, output_size=(2, 2), scales=scales, **options)


def test_maps_in_different_memory_orders_go_together():
    maps = [torch.randn(2, 4, 8, 8), torch.randn(2, 4, 4, 4)]
    mixed = [maps[0], maps[1].contiguous(memory_format=torch.channels_last)]
    boxes, index = torch.tensor([[0.0, 0, 40, 40]]).repeat(2, 1), torch.tensor([0, 1])
    torch.testing.assert_close(pool(mixed, boxes, index, index), pool(maps, boxes, index, index))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": BOXES.to("meta")}, "boxes on meta, but feature maps on cpu"),
        ({"index": INDEX.to("meta")}, "image_index on meta, but feature maps on cpu"),
        ({"levels": INDEX.to("meta")}, "levels on meta, but feature maps on cpu"),
        ({"index": INDEX.float()}, "image_index must be int64, not float32"),
        ({"levels": INDEX.bool()}, "levels must be int64, not bool"),
        ({"image_sizes": [(64, 64)]}, "1 image sizes, but feature maps of 2 images"),
        ({"image_sizes": torch.zeros(2, 3)}, r"image_sizes must be \(B, 2\) int64, not \(2, 3\) float32"),
    ],
)
def test_what_does_not_belong_to_the_maps_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pool([torch.zeros(2, 4, 8, 8)], **arguments)


def test_no_maps_are_refused():
    with pytest.raises(ValueError, match="no feature maps"):
        pool([])
