"""Every choice that the command line offers goes with every recipe, or one line says why it does not."""

import itertools
import logging
from collections import Counter

import pytest
from omegaconf import OmegaConf

from detkit.app import train
from detkit.app.assemble.schema import TrainSchema
from detkit.app.cli.composer import Composer
from detkit.app.cli.paths import config_dir
from detkit.app.inspect.pairs import choices, try_pair
from detkit.config import ConfigError, validate
from detkit.data import ShapesDataset
from tests.app.test_configs import EXPERIMENTS

TWO_STAGE = ["faster_rcnn/bccd_mobilenetv2_fpn", "quickstart"]
RUN = [*TWO_STAGE, "retinanet/bccd_mobilenetv2_fpn", "centernet/bccd_mobilenetv2", "yolov1/bccd_mobilenetv2"]

#: Why a choice is refused, by its beginning: nobody who reads these would expect otherwise.
FIXED_SIZE = "the fully connected layers are made for a grid of"
FEWER_MAPS, BRANCHES = "min_stride must be one of [16", "trident makes 3 branches"
WITHOUT_C5 = "dilate_last changes the stride of C5, which levels="
MARGINS = ("ASoftmax", "ArcFace", "CombinedMargin", "CosFace", "LSoftmax", "NormalizedSoftmax", "Seesaw")
REFUSED = {
    "optim=CustomOptimizer": ("optim.factory: needs a value",),
    "matcher@model.head.matcher=AsCoupled": (
        "model.head.matcher.assigner: needs a value (an Assigner): +assigner@model.head.matcher.assigner=",
    ),
    **{
        f"model/backbone={name}": (FEWER_MAPS, WITHOUT_C5)
        for name in ("resnet50_c4", "resnet50_dilated", "resnet101_dilated")
    },
    **{
        f"model/backbone={name}": (FEWER_MAPS, BRANCHES, WITHOUT_C5, "trident gives plain convolutions branches")
        for name in ("resnet50_trident", "resnet101_trident", "mobilenetv2_trident")
    },
    **{
        f"{slot}=two_stage_snip": ("choose model/neck=image_pyramid_16, which has three scales",)
        for slot in ("model/head", "model/head@model.head.auxiliary", "model/head@model.head.inner")
    },
    **{
        f"loss@model.head{part}.{slot}.cls_loss={name}": (
            "the RPN has one, object: take BCE, CrossEntropy or Focal"
            if slot == "rpn"
            else "take RegionMLP, or a loss",
        )
        for part in ("", ".inner", ".auxiliary")
        for slot in ("rpn", "roi")
        for name in MARGINS
    },
    **{
        f"region_pool@model.head.roi.pool={name}": ("ScoreMaps makes other maps for each bin",)
        for name in ("RoIAlign", "DeformRoIPool", "ModulatedDeformRoIPool")
    },
    **{
        f"model={name}_torchvision": ("norm_eps=0 goes with norm=frozen_bn alone",)
        for name in ("faster_rcnn_fpn", "retinanet")
    },
    **{
        f"model={name}_detectron2": ("have no 1x1 convolution to stride in: take depth 50 or 101, or",)
        for name in ("faster_rcnn_fpn", "retinanet")
    },
    **{
        f"region_pool@model.head.{pool}=PSRoIAlign": (
            "position-sensitive pooling to 7 x 7 bins needs maps of a multiple of 49",
        )
        for pool in ("roi.pool", "auxiliary.roi.pool", "decoder.pool")
    },
    **{
        f"loss@model.head.box_loss={name}": ("FlowHead: box_loss must compare boxes in px",)
        for name in ("L1", "SmoothL1")
    },
}
#: Recipes whose backbone gives branches, or a few maps of its own, for which most heads and necks are not made.
OF_BRANCHES = (
    BRANCHES,
    "must be one of [16]",
    "trident gives plain convolutions branches",
    "bins needs maps of a multiple",
)
OF_FINE_MAPS = (WITHOUT_C5, "must be one of [4, 8]", "there are valid_ranges for", "bins needs maps of a multiple")
OF_RECIPE = {
    "tridentnet/": OF_BRANCHES,
    "scale/tridentnet": OF_BRANCHES,
    "scale/single_level": OF_BRANCHES,
    "scale/": OF_FINE_MAPS,
    "faster_rcnn/shapes_many": ("NormalizedSoftmax needs the layer that it makes, and ScoreMaps has another: take",),
    "faster_rcnn/finetune_mobilenetv3": ("must be one of [32, 32]", "need a detector with a backbone; MTCNN has none"),
    "rfcn/": ("must be one of [16, 16]",),  # C4 and a dilated C5
}


@pytest.fixture(scope="module")
def composer():
    return Composer(keep=True)


def reasons(pair):
    return (
        *REFUSED.get(pair.choice, ()),
        *itertools.chain(*(known for recipe, known in OF_RECIPE.items() if pair.experiment.startswith(recipe))),
    )


def refused(pairs):
    """What did not fit, and is not known not to."""
    return [
        (pair.choice, pair.refused)
        for pair in pairs
        if pair.refused and not any(reason in pair.refused for reason in reasons(pair))
    ]


def test_every_slot_offers_every_class_that_fits_it(composer):
    offered = choices(composer, "quickstart")
    slots = Counter(choice.partition("=")[0] for choice in offered)
    assert slots["model/neck"] == len(list((config_dir() / "model/neck").glob("*.yaml")))
    assert {"optim=SGD", "schedule=Cosine"} <= set(offered)
    assert {"loss@model.head.roi.cls_loss=Focal", "loss@model.head.roi.box_loss=GIoULoss"} <= set(offered)
    assert "loss@model.head.roi.cls_loss=GIoULoss" not in offered, "it is no loss of classes"
    assert "model/head/rpn=RPN" in offered, "at home where its group is"
    assert not [c for c in offered if c.startswith("+")], "all of these can be chosen as they are"


def test_a_part_that_the_model_lacks_is_not_offered_and_inner_heads_come_as_presets(composer):
    slots = {choice.partition("=")[0] for choice in choices(composer, "mtcnn/shapes_tiny")}
    assert "model" in slots
    assert not slots & {"model/backbone", "model/neck", "model/head"}
    offered = choices(composer, "tridentnet/shapes")
    assert "model/head@model.head.inner=two_stage" in offered
    assert "model/head@model.head.inner=TwoStageHead" not in offered, "the class alone lacks its parts"


def test_what_a_preset_says_for_another_class_is_left_out(composer):
    """The preset's ``norm_eps`` is of the ResNet that it is made for; the recipe has its own backbone."""
    cfg, notes, _ = composer("experiment=yolov1/bccd_mobilenetv2", "model=faster_rcnn_fpn_torchvision")
    assert cfg.model.backbone == composer("experiment=yolov1/bccd_mobilenetv2").cfg.model.backbone
    assert "model.backbone stays the recipe's MobileNetV2; left out what the preset says there for another" in "".join(
        notes
    )


def test_a_choice_of_data_may_come_before_its_root(composer):
    cfg = composer("experiment=yolov1/bccd_mobilenetv2", "data=coco", "data.root=here").cfg
    assert cfg.data.train.root == "here"


def test_the_quickstart_takes_every_head_and_every_part_of_its_own(composer):
    of_a_part = ("model/head=", "region_network@", "region_pool@")  # losses: in the slow test
    offered = [c for c in choices(composer, "quickstart") if c.startswith(of_a_part)]
    assert len(offered) > 12
    assert refused(try_pair(composer, "quickstart", choice) for choice in offered) == []


def test_what_does_not_fit_is_told_in_one_line(composer):
    pair = try_pair(composer, "quickstart", "region_pool@model.head.roi.pool=PSRoIAlign")
    assert pair.refused.startswith("model.head.roi.network: RegionMLP: position-sensitive pooling to 7 x 7 bins needs")
    assert "\n" not in pair.refused


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_everything_composes_and_builds(experiment, composer):
    logging.disable(logging.INFO)
    assert refused(try_pair(composer, experiment, choice) for choice in choices(composer, experiment)) == []


@pytest.fixture(scope="module")
def coco_layout(tmp_path_factory):
    """A few generated images in COCO's layout, and the overrides that lead any experiment there."""
    folder = ShapesDataset(root=str(tmp_path_factory.mktemp("data")), num_train=4, num_val=2, image_size=96).folder
    return [
        f"data.root={folder}",
        *(f"data.{split}.annotations={split}.json" for split in ("train", "val")),
        *(f"data.{split}.images=images" for split in ("train", "val")),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", RUN)
def test_every_pair_takes_a_step_and_an_evaluation(experiment, composer, coco_layout, tmp_path):
    failed = {}
    for choice in choices(composer, experiment):
        if choice.startswith("data="):
            continue
        try:
            take_a_step(composer, experiment, choice, coco_layout, tmp_path)
        except Exception as error:
            if not (
                isinstance(error, ValueError)
                and any(reason in str(error) for reason in REFUSED.get(choice, (FIXED_SIZE,)))
            ):
                failed[choice] = f"{type(error).__name__}: {error}"
    assert failed == {}


def take_a_step(composer, experiment, choice, coco_layout, folder):
    said = [f"experiment={experiment}", choice, "debug=fast", "device=cpu", "trainer.steps=1", "trainer.precision=fp32"]
    said.append("init_from=null")  # no weights are fetched
    if experiment == "quickstart":
        data = [f"data.root={folder}", "data.train.num_train=4", "data.train.num_val=2", "data.train.image_size=96"]
    else:
        data = coco_layout
    cfg = composer(*said, *data).cfg
    if "weights" in cfg.model.get("backbone", {}):  # MTCNN has none
        OmegaConf.update(cfg, "model.backbone.weights", None)
    validate(cfg, TrainSchema)
    trainer, _ = train.build_trainer(cfg, folder)
    result = trainer.fit()
    assert result.step == 1
    assert 0 <= trainer.metrics["AP"] <= 1


def test_an_unknown_choice_is_told_as_on_the_command_line(composer):
    with pytest.raises(ConfigError, match="model/nek: no group 'model/nek'; did you mean 'model/neck'"):
        composer("experiment=quickstart", "model/nek=fpn")
