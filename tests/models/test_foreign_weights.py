"""detectron2's and mmdetection's weights: files of their names and shapes with random values, and what each trap does.

Neither library is installed: names and shapes are written down here from their published code (detectron2
modeling/backbone/{resnet,fpn}.py, meta_arch/retinanet.py, proposal_generator/rpn.py, roi_heads/{box_head,fast_rcnn}.py;
mmdetection configs/_base_/models and models/{backbones,necks,dense_heads,roi_heads}).
"""

import itertools
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from detkit.config import build
from detkit.models.backbones import ResNet
from detkit.models.converters import Foreign, coco_categories, load_converted, read_foreign
from detkit.models.converters.arrays import read_arrays
from detkit.models.converters.mmdetection_config import input_in, names_in
from detkit.models.converters.pixels import Pixels
from detkit.models.necks import FPN
from detkit.structures import Categories, FeatureSpec, PixelStats
from detkit.structures.feature_spec import IMAGENET_STATS
from tests.models.builders import build_model, compose_model

COCO = coco_categories()
ANIMALS = Categories(("dog", "cat"), (1, 2))


RGB_MEAN, RGB_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
BGR_MEAN = RGB_MEAN[::-1]


def stats(mean, std):
    """The buffers of detectron2's older files."""
    return {"pixel_mean": torch.tensor(mean).view(-1, 1, 1), "pixel_std": torch.tensor(std).view(-1, 1, 1)}


def norm(name, channels, *, counts=False):
    shapes = {f"{name}.{kind}": (channels,) for kind in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, **({f"{name}.num_batches_tracked": ()} if counts else {})}


def layer(name, *shape, bias=True):
    return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}


def bottlenecks(conv, norm_of, projection, projection_norm, counts):
    """ResNet-50's blocks under the names that the functions give: of stage 2 to 5, block and number."""
    shapes = {}
    channels = 64
    for stage, count in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True):
        width = 64 * 2 ** (stage - 2)
        for block in range(count):
            sizes = ((width, channels, 1), (width, width, 3), (4 * width, width, 1))
            for i, (outputs, inputs, side) in enumerate(sizes, start=1):
                shapes |= layer(conv(stage, block, i), outputs, inputs, side, side, bias=False)
                shapes |= norm(norm_of(stage, block, i), outputs, counts=counts)
            if block == 0:
                shapes |= layer(projection(stage), 4 * width, channels, 1, 1, bias=False)
                shapes |= norm(projection_norm(stage), 4 * width, counts=counts)
            channels = 4 * width
    return shapes


def detectron2_backbone():
    res = "backbone.bottom_up.res"
    return {
        **layer("backbone.bottom_up.stem.conv1", 64, 3, 7, 7, bias=False),
        **norm("backbone.bottom_up.stem.conv1.norm", 64),
        **bottlenecks(
            lambda s, b, i: f"{res}{s}.{b}.conv{i}", lambda s, b, i: f"{res}{s}.{b}.conv{i}.norm",
            lambda s: f"{res}{s}.0.shortcut", lambda s: f"{res}{s}.0.shortcut.norm", False,
        ),
    }  # fmt: skip


def mmdetection_backbone():
    stage = "backbone.layer"
    return {
        **layer("backbone.conv1", 64, 3, 7, 7, bias=False),
        **norm("backbone.bn1", 64, counts=True),
        **bottlenecks(
            lambda s, b, i: f"{stage}{s - 1}.{b}.conv{i}", lambda s, b, i: f"{stage}{s - 1}.{b}.bn{i}",
            lambda s: f"{stage}{s - 1}.0.downsample.0", lambda s: f"{stage}{s - 1}.0.downsample.1", True,
        ),
    }  # fmt: skip


def pyramid(lateral, output, levels):
    shapes = {}
    for n, level in enumerate(levels):
        shapes |= layer(lateral(n, level), 256, 64 * 2**level, 1, 1) | layer(output(n, level), 256, 256, 3, 3)
    return shapes


def detectron2_pyramid(levels):
    return pyramid(lambda n, i: f"backbone.fpn_lateral{i}", lambda n, i: f"backbone.fpn_output{i}", levels)


def mmdetection_pyramid(levels):
    return pyramid(lambda n, i: f"neck.lateral_convs.{n}.conv", lambda n, i: f"neck.fpn_convs.{n}.conv", levels)


def detectron2_rcnn(k):
    rpn, roi = "proposal_generator.rpn_head", "roi_heads"
    return {
        "pixel_mean": (3, 1, 1), "pixel_std": (3, 1, 1),
        **detectron2_backbone(), **detectron2_pyramid((2, 3, 4, 5)),
        **{f"proposal_generator.anchor_generator.cell_anchors.{i}": (3, 4) for i in range(5)},
        **layer(f"{rpn}.conv", 256, 256, 3, 3), **layer(f"{rpn}.objectness_logits", 3, 256, 1, 1),
        **layer(f"{rpn}.anchor_deltas", 12, 256, 1, 1),
        **layer(f"{roi}.box_head.fc1", 1024, 256 * 49), **layer(f"{roi}.box_head.fc2", 1024, 1024),
        **layer(f"{roi}.box_predictor.cls_score", k + 1, 1024), **layer(f"{roi}.box_predictor.bbox_pred", 4 * k, 1024),
    }  # fmt: skip


def detectron2_retina(k):
    return {
        **detectron2_backbone(), **detectron2_pyramid((3, 4, 5)),
        **layer("backbone.top_block.p6", 256, 2048, 3, 3), **layer("backbone.top_block.p7", 256, 256, 3, 3),
        **{n: s for net, i in itertools.product(("cls", "bbox"), range(0, 8, 2))
           for n, s in layer(f"head.{net}_subnet.{i}", 256, 256, 3, 3).items()},
        **layer("head.cls_score", 9 * k, 256, 3, 3), **layer("head.bbox_pred", 36, 256, 3, 3),
    }  # fmt: skip


def mmdetection_rcnn(k):
    roi = "roi_head.bbox_head"
    return {
        **mmdetection_backbone(), **mmdetection_pyramid((2, 3, 4, 5)),
        **layer("rpn_head.rpn_conv", 256, 256, 3, 3), **layer("rpn_head.rpn_cls", 3, 256, 1, 1),
        **layer("rpn_head.rpn_reg", 12, 256, 1, 1),
        **layer(f"{roi}.shared_fcs.0", 1024, 256 * 49), **layer(f"{roi}.shared_fcs.1", 1024, 1024),
        **layer(f"{roi}.fc_cls", k + 1, 1024), **layer(f"{roi}.fc_reg", 4 * k, 1024),
    }  # fmt: skip


def mmdetection_retina(k):
    return {
        **mmdetection_backbone(), **mmdetection_pyramid((3, 4, 5)),
        **layer("neck.fpn_convs.3.conv", 256, 2048, 3, 3), **layer("neck.fpn_convs.4.conv", 256, 256, 3, 3),
        **{n: s for net, i in itertools.product(("cls", "reg"), range(4))
           for n, s in layer(f"bbox_head.{net}_convs.{i}.conv", 256, 256, 3, 3).items()},
        **layer("bbox_head.retina_cls", 9 * k, 256, 3, 3), **layer("bbox_head.retina_reg", 36, 256, 3, 3),
    }  # fmt: skip


def mmdetection_centernet(k):
    shapes = layer("backbone.conv1", 64, 3, 7, 7, bias=False) | norm("backbone.bn1", 64, counts=True)
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"backbone.layer{stage}.{block}"
            inputs = channels if block == 0 else width
            shapes |= layer(f"{name}.conv1", width, inputs, 3, 3, bias=False) | norm(f"{name}.bn1", width, counts=True)
            shapes |= layer(f"{name}.conv2", width, width, 3, 3, bias=False) | norm(f"{name}.bn2", width, counts=True)
            if block == 0 and stage > 1:
                shapes |= layer(f"{name}.downsample.0", width, inputs, 1, 1, bias=False)
                shapes |= norm(f"{name}.downsample.1", width, counts=True)
        channels = width
    for i, width in enumerate((256, 128, 64)):
        steps = f"neck.deconv_layers.{2 * i}", f"neck.deconv_layers.{2 * i + 1}"
        shapes |= layer(f"{steps[0]}.conv", width, channels, 3, 3, bias=False)
        shapes |= layer(f"{steps[0]}.conv.conv_offset", 27, channels, 3, 3)
        shapes |= layer(f"{steps[1]}.conv", width, width, 4, 4, bias=False)
        shapes |= norm(f"{steps[0]}.bn", width, counts=True) | norm(f"{steps[1]}.bn", width, counts=True)
        channels = width
    for head, outputs in (("heatmap", k), ("wh", 2), ("offset", 2)):
        shapes |= layer(f"bbox_head.{head}_head.0", 64, 64, 3, 3) | layer(f"bbox_head.{head}_head.2", outputs, 64, 1, 1)
    return shapes


def state_of(shapes):
    """A tensor of each shape, full of a number of its own, which needs no memory."""
    return {name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items(), start=1)}


FILES = {
    "faster_rcnn_fpn_detectron2": ("detectron2", detectron2_rcnn, "caffe"),
    "retinanet_detectron2": ("detectron2", detectron2_retina, "caffe"),
    "faster_rcnn_fpn_mmdetection": ("mmdetection", mmdetection_rcnn, "pytorch"),
    "retinanet_mmdetection": ("mmdetection", mmdetection_retina, "pytorch"),
    "centernet_mmdetection": ("mmdetection", mmdetection_centernet, "pytorch"),
}


@pytest.fixture(scope="module", params=FILES)
def case(request):
    """Of a preset: the library, the shapes of its tensors by the number of classes, the style, and the model."""
    with torch.device("meta"):
        model = build_model(request.param, ANIMALS)
    return request.param, *FILES[request.param], model


def foreign(folder, library, state, **beside):
    path = folder / "theirs.pth"
    torch.save({"model" if library == "detectron2" else "state_dict": state, **beside}, path)
    return read_foreign(library, path)


@pytest.mark.filterwarnings("ignore:.*from a non-meta parameter")
def test_every_tensor_of_a_file_is_placed_and_none_is_left_over(case):
    preset, library, shapes, style, model = case
    state = state_of(shapes(80))
    file = Foreign(library, state, style, None)
    assert file.preset == preset
    found, with_classes = file.converted(ANIMALS, style)
    assert with_classes
    assert load_converted(model, found) == []
    taken = sorted({float(value.flatten()[0]) for value in found.values()})
    given = [float(v.flatten()[0]) for name, v in state.items() if "pixel_" not in name and "cell_anchors" not in name]
    assert taken == given


def test_one_missing_extra_or_misshapen_tensor_is_named(case):
    _, library, shapes, style, model = case
    state = state_of(shapes(2))
    state["mask_head.a"] = torch.zeros(1)
    state[next(n for n in state if n.endswith("conv1.weight"))] = torch.zeros(5, 3, 7, 7)
    del state[next(n for n in state if n.endswith(("norm.running_var", "bn1.running_var")))]
    words = (
        r"1 unknown \[\"mask_head\.a \(no key of (detectron2|mmdetection)'s .*"
        r"1 of another shape \['backbone.conv1.weight \(5, 3, 7, 7\) .*1 missing \['backbone.bn1.running_var'\]"
    )
    with pytest.raises(ValueError, match=words):
        load_converted(model, Foreign(library, state, None, None).converted(ANIMALS, style)[0])


def last_layers(library, kind, k):
    """The last layers alone: value of a row of classes is its number."""
    names = {
        ("detectron2", "rcnn"): ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"),
        ("mmdetection", "rcnn"): ("roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg"),
        ("detectron2", "retina"): ("head.cls_score", "head.bbox_pred"),
        ("mmdetection", "retina"): ("bbox_head.retina_cls", "bbox_head.retina_reg"),
    }[library, kind]
    num, boxes = (k + 1, 4 * k) if kind == "rcnn" else (9 * k, 36)
    marks = {"head.cls_subnet.0.bias": torch.zeros(1)} if (library, kind) == ("detectron2", "retina") else {}
    for name, rows in zip(names, (num, boxes), strict=True):
        marks |= {f"{name}.bias": torch.arange(float(rows)), f"{name}.weight": torch.arange(float(rows))[:, None]}
    return marks


@pytest.mark.parametrize("library", ["detectron2", "mmdetection"])
def test_classes_of_regions_are_matched_by_name_and_background_stays_last(library, tmp_path):
    found, with_classes = foreign(tmp_path, library, last_layers(library, "rcnn", 80)).converted(ANIMALS, "pytorch")
    cat, dog = COCO.names.index("cat"), COCO.names.index("dog")
    assert with_classes
    assert found["head.roi.network.cls_score.bias"].tolist() == [dog, cat, 80]
    assert found["head.roi.network.bbox_pred.bias"].tolist() == [
        *range(4 * dog, 4 * dog + 4),
        *range(4 * cat, 4 * cat + 4),
    ]
    other = foreign(tmp_path, library, last_layers(library, "rcnn", 7)).converted(ANIMALS, "pytorch")
    assert other == ({}, False)
    one = foreign(tmp_path, library, last_layers(library, "rcnn", 1)).converted(ANIMALS, "pytorch")
    assert one == ({}, False), "four rows of boxes are those of the one class"
    state = last_layers(library, "rcnn", 2)
    told = Foreign(library, state, None, ("nut", "bolt")).converted(ANIMALS, "pytorch")
    assert told == ({}, False), "as many, but of other names"
    assert Foreign(library, state, None, None).converted(ANIMALS, "pytorch")[1], "by place, for want of names"


@pytest.mark.parametrize(
    ("library", "kind"), [(lib, kind) for lib in ("detectron2", "mmdetection") for kind in ("rcnn", "retina")]
)
def test_last_layers_that_do_not_fit_each_other_are_named(library, kind):
    state = last_layers(library, kind, 2)
    name = next(n for n in state if n.endswith(("cls_score.weight", "fc_cls.weight", "retina_cls.weight")))
    state[name] = torch.zeros(5, 1)
    with pytest.raises(
        ValueError, match=r"last layers of .* do not fit each other: head\..*weight \(5, 1\), not \d+ rows"
    ):
        Foreign(library, state, None, None).converted(ANIMALS, "pytorch")
    if kind == "retina":
        boxes = next(n for n in state if n.endswith(("bbox_pred.bias", "retina_reg.bias")))
        state[boxes] = torch.zeros(12)
        with pytest.raises(ValueError, match=r"head.bbox_pred.bias \(12,\), not 36 rows"):
            Foreign(library, state, None, None).converted(ANIMALS, "pytorch")


@pytest.mark.parametrize("library", ["detectron2", "mmdetection"])
def test_rows_of_anchors_belong_to_the_anchors_of_their_size_and_ratio(library, tmp_path):
    """detectron2 counts sizes outermost (generate_cell_anchors), mmdetection ratios (gen_single_level_base_anchors)."""
    preset = "retinanet_detectron2" if library == "detectron2" else "retinanet_mmdetection"
    strides = FeatureSpec((256,) * 5, (8.0, 16.0, 32.0, 64.0, 128.0))
    boxes = build(compose_model(preset).head.anchors, in_spec=strides)([(1, 1)] * 5, torch.device("cpu"))[0]
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    sizes, ratios = (width * height).sqrt() / 32, height / width
    found, _ = foreign(tmp_path, library, last_layers(library, "retina", 2)).converted(ANIMALS, "pytorch")
    theirs = found["head.cls_logits.bias"].view(9, 2)[:, 0] / 2
    for number, size, ratio in zip(theirs.long().tolist(), sizes, ratios, strict=True):
        which = divmod(number, 3) if library == "detectron2" else divmod(number, 3)[::-1]
        assert (float(size), float(ratio)) == pytest.approx((2 ** (which[0] / 3), (0.5, 1, 2)[which[1]]), rel=1e-4)
    assert torch.equal(found["head.bbox_pred.bias"].view(9, 4)[:, 0] / 4, theirs)


@torch.no_grad()
def test_caffes_style_is_bgr_less_the_mean_and_halves_in_the_first_convolution(tmp_path):
    stem = "backbone.bottom_up.stem.conv1.weight"
    state = {**last_layers("detectron2", "rcnn", 2), **stats(BGR_MEAN, [1.0] * 3), stem: torch.randn(64, 3, 7, 7)}
    file = foreign(tmp_path, "detectron2", state)
    assert file.style == "caffe"
    found, _ = file.converted(ANIMALS, "caffe")
    ours = ResNet(weights=None, stride_in_1x1=True, pixel_std=(1.0, 1.0, 1.0))
    assert ours.pixel_stats == ((123.675, 116.28, 103.53), (1.0, 1.0, 1.0))
    image = torch.randint(0, 256, (1, 3, 32, 40)).float()
    mean = torch.tensor(ours.pixel_stats.mean).view(3, 1, 1)
    theirs = F.conv2d((image - mean).flip(1), state[stem], stride=2, padding=3)
    mine = F.conv2d(image - mean, found["backbone.conv1.weight"], stride=2, padding=3)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-2)
    strides = [(m.conv1.stride[0], m.conv2.stride[0]) for m in (ours.layer1[0], ours.layer2[0], ours.layer2[1])]
    assert strides == [(1, 1), (2, 1), (1, 1)]
    assert [m.shape[-1] for m in ours(torch.zeros(1, 3, 32, 64))] == [16, 8, 4, 2]
    with pytest.raises(ValueError, match="stride_in_1x1: the blocks of ResNet-18 have no 1x1 convolution"):
        ResNet(depth=18, weights=None, stride_in_1x1=True)


@pytest.mark.parametrize(
    ("mean", "std", "style", "is_bgr", "carried"),
    [
        (RGB_MEAN, RGB_STD, "pytorch", False, IMAGENET_STATS),
        (BGR_MEAN, [1.0] * 3, "caffe", True, (IMAGENET_STATS.mean, (1, 1, 1))),
        ([102.9801, 115.9465, 122.7717], [1.0] * 3, "caffe", True, ((122.7717, 115.9465, 102.9801), (1, 1, 1))),
        (BGR_MEAN, RGB_STD[::-1], None, True, IMAGENET_STATS),
        (RGB_MEAN, [1.0] * 3, None, False, (IMAGENET_STATS.mean, (1, 1, 1))),
    ],
)
def test_mean_and_deviation_of_a_file_of_detectron2_tell_its_order_and_are_carried(
    mean, std, style, is_bgr, carried, tmp_path
):
    stem = "backbone.bottom_up.stem.conv1.weight"
    state = {**last_layers("detectron2", "rcnn", 2), **stats(mean, std), stem: torch.randn(64, 3, 7, 7)}
    file = foreign(tmp_path, "detectron2", state)
    assert file.style == style
    assert file.pixels.is_bgr == is_bgr
    np.testing.assert_allclose(file.pixels.stats, carried, rtol=1e-6)
    for asked in ("pytorch", "caffe"):
        found = file.converted(ANIMALS, asked)[0]["backbone.conv1.weight"]
        assert torch.equal(found, state[stem].flip(1) if is_bgr else state[stem]), "the order is the file's to tell"


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        (
            stats([0.0] * 3, [255.0] * 3),
            r"its pixel_mean is \[0.0, 0.0, 0.0\], which does not tell RGB from BGR; allowed: ",
        ),
        (stats(RGB_MEAN, [0.0] * 3), r"its pixel_std is \[0.0, 0.0, 0.0\]; allowed: three numbers above 0"),
        ({"pixel_std": torch.ones(3, 1, 1)}, "its pixel_mean is None; allowed: three numbers"),
        ({"pixel_mean": torch.tensor([1.0])}, r"its pixel_mean is \[1.0\]; allowed: three numbers"),
    ],
)
def test_statistics_that_tell_no_order_are_refused(beside, words, tmp_path):
    with pytest.raises(ValueError, match=rf"theirs\.pth: {words}"):
        foreign(tmp_path, "detectron2", {**last_layers("detectron2", "rcnn", 2), **beside})


@torch.no_grad()
def test_mmdetections_p7_reads_p6_without_a_relu():
    neck = FPN(in_spec=FeatureSpec((4,), (32.0,)), out_channels=4, num_extra=2, extra="conv_c5", extra_relu=False)
    x = torch.randn(1, 4, 8, 8)
    p6 = neck.extra_convs[0](x)
    assert torch.equal(neck(x, lambda pixels: [pixels])[-1], neck.extra_convs[1](p6))
    neck.extra_relu = True
    assert torch.equal(neck(x, lambda pixels: [pixels])[-1], neck.extra_convs[1](p6.relu()))


CONFIG = """
model = dict(type='FasterRCNN', backbone=dict(type='ResNet', depth=50, style='{style}'), {more})
img_norm_cfg = dict(mean=[1.0, 2.0, 3.0], std={std}, to_rgb={rgb})
import os; os.abort()
"""


def told(style="pytorch", std="[58.3, 57.1, 57.3]", rgb=True, more=""):
    return input_in(CONFIG.format(style=style, std=std, rgb=rgb, more=more))


def test_style_and_pixels_stand_in_a_configuration_that_is_never_run(tmp_path):
    assert told() == ("pytorch", Pixels(False, PixelStats((1, 2, 3), (58.3, 57.1, 57.3))))
    assert told("caffe", "[4, 5, 6]", rgb=False) == ("caffe", Pixels(True, PixelStats((3, 2, 1), (6, 5, 4))))
    zero = "data_preprocessor=dict(mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb={})"
    for is_rgb in (True, False):
        stats = PixelStats((0, 0, 0), (255, 255, 255))
        assert told(more=zero.format(is_rgb)) == ("pytorch", Pixels(not is_rgb, stats)), "the model's own goes first"
    assert input_in("img_norm_cfg = dict(mean=[1, 2, 3], std=[4, 5, 6])")[1].is_bgr is False
    assert input_in("data_preprocessor = dict(mean=[1, 2, 3], std=[4, 5, 6])")[1].is_bgr is True
    assert input_in("model = dict(backbone=dict(style='caffe'))") == ("caffe", None)
    assert input_in("") == (None, None)
    for text in ("model = (", "model = " + "(" * 5000, "a = 1\0"):
        with pytest.raises(ValueError, match="its configuration is no Python"):
            input_in(text)
    for text in ("model = 3", "model = dict(backbone='ResNet', data_preprocessor=[1])\nimg_norm_cfg = 'none'"):
        assert input_in(text) == (None, None)
    assert names_in({"dataset_meta": "coco"}) is None
    meta = {"config": CONFIG.format(style="caffe", std="[1, 1, 1]", rgb=False, more=""), "CLASSES": ("cat", "dog")}
    file = foreign(tmp_path, "mmdetection", last_layers("mmdetection", "rcnn", 2), meta=meta)
    assert (file.style, file.names) == ("caffe", ("cat", "dog"))
    assert file.pixels == Pixels(True, PixelStats((3, 2, 1), (1, 1, 1)))
    found, _ = file.converted(ANIMALS, "caffe")
    assert found["head.roi.network.cls_score.bias"].tolist() == [1.0, 0.0, 2.0], "by name, not by place"
    assert names_in({"dataset_meta": {"classes": ["a"]}}) == ("a",)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (
            "mean=[1.0], std=[58.0], bgr_to_rgb=True",
            r"mean is \[1.0\]; allowed: three numbers, of the channels in 0..255",
        ),
        ("mean=[1, 2, 3], std=[58, 0, 58]", r"std is \[58, 0, 58\]; allowed: three numbers above 0"),
        ("mean=[1, 2, 3]", "std is None; allowed: three numbers above 0"),
        ("mean=MEAN, std=[1, 1, 1]", "mean is None"),
        ("mean='123', std=[1, 1, 1]", "mean is 123"),
        ("pad_size_divisor=32", "mean is None"),
    ],
)
def test_statistics_of_a_configuration_that_are_no_numbers_are_named(node, words):
    with pytest.raises(ValueError, match=rf"its model\.data_preprocessor\.{words}"):
        told(more=f"data_preprocessor=dict({node})")
    with pytest.raises(ValueError, match=r"its backbone\.style is 'tensorflow'; allowed: 'pytorch', 'caffe'"):
        told("tensorflow")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_of_a_pickle_are_read(protocol, tmp_path):
    arrays = OrderedDict(
        a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.asfortranarray(np.ones((2, 2)) * [[1], [2]]),
        c=np.array(7, dtype=np.int64), d=np.array([1.5, -2], dtype=">f4"), e=np.zeros((0, 3), np.float32),
    )  # fmt: skip
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "zoo"}, protocol))
    found = read_arrays(tmp_path / "zoo.pkl")
    assert found["__author__"] == "zoo"
    for name, array in arrays.items():
        assert torch.equal(found["model"][name], torch.from_numpy(array.astype(array.dtype.newbyteorder("="))))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


class Codec:
    def __reduce__(self):
        import codecs

        return codecs.encode, ("61", "hex")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Evil(), r"it names posix\.mkdir, which is not taken from a file"),
        (np.array([Evil()], dtype=object), r"it names posix\.mkdir"),
        (np.array(["text"], dtype=object), r"not a pickle of numpy arrays"),
        (np.array(["text"]), "are no numbers"),
        (Codec(), "bytes in the encoding 'hex'"),
    ],
)
def test_a_strangers_pickle_runs_no_code(content, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": {"a": content}}, 2))
    with pytest.raises(ValueError, match=rf"zoo\.pkl is not a pickle of numpy arrays: .*{words}|{words}"):
        read_foreign("detectron2", tmp_path / "zoo.pkl")
    torch.save({"model": {"a": torch.zeros(1)}, "hooks": content}, tmp_path / "model.pth")
    with pytest.raises(
        ValueError, match=r"model\.pth holds objects beside tensors, .*: with detectron2's own Python save"
    ):
        read_foreign("detectron2", tmp_path / "model.pth")
    assert not (tmp_path / "made_by_a_pickle").exists()


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.pkl: there is no such file"):
        read_foreign("detectron2", tmp_path / "nowhere.pkl")
    (tmp_path / "broken.pkl").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.pkl is not a pickle of numpy arrays"):
        read_foreign("detectron2", tmp_path / "broken.pkl")
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.pth"):
        read_foreign("mmdetection", tmp_path / "broken.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(
        ValueError, match=r"list\.pth is not a state dict \(name -> tensor\), nor has it one under 'model'"
    ):
        read_foreign("detectron2", tmp_path / "list.pth")
