"""A part that the command line puts into a slot starts from its own options, not from those of the part before it."""

import pytest
import yaml
from omegaconf import OmegaConf

from detkit.app import train
from detkit.app.assemble.schema import TrainSchema
from detkit.app.cli.command_line import read_command_line
from detkit.app.cli.composer import Composer
from detkit.app.cli.idle import told
from detkit.config import ConfigError, validate
from detkit.models import build_detector
from detkit.structures import Categories
from tests.app.test_configs import composed, settled
from tests.app.tools import call

BCCD = {
    "faster_rcnn": "experiment=faster_rcnn/bccd_mobilenetv2_fpn",
    "retinanet": "experiment=retinanet/bccd_mobilenetv2_fpn",
    "centernet": "experiment=centernet/bccd_mobilenetv2",
    "yolov1": "experiment=yolov1/bccd_mobilenetv2",
}


def test_another_class_starts_from_its_own_options_and_a_line_says_what_went():
    cfg, notes = settled("experiment=quickstart", "model/neck=upsample")
    assert cfg.model.neck == composed("model/neck=Upsample").model.neck
    assert notes == [
        "model/neck=upsample: model.neck is Upsample now; left out what the recipe says there for FPN: out_channels=64"
    ]


def test_the_same_class_keeps_what_the_recipe_says():
    cfg, notes = settled("experiment=quickstart", "model/neck=fpn_se")
    assert cfg.model.neck.out_channels == 64
    assert cfg.model.neck.attention._target_ == "SE"
    assert notes == []


def test_what_the_command_line_says_inside_stays_in_any_order():
    for line in (
        ["model.neck.out_channels=96", "model/neck=single_level"],
        ["model/neck=single_level", "model.neck.out_channels=96"],
    ):
        cfg, _ = settled("experiment=quickstart", *line)
        assert cfg.model.neck.out_channels == 96
    cfg, _ = settled("experiment=quickstart", "model/neck=fpn_se", "attention@model.neck.attention=CBAM")
    assert cfg.model.neck.attention._target_ == "CBAM"
    cfg, notes = settled("experiment=quickstart", "optim=SGD", "optim.lr=2")
    assert (cfg.optim.lr, cfg.optim.weight_decay) == (2, composed("optim=SGD").optim.weight_decay)
    assert "left out what the recipe says there for AdamW: weight_decay=0.05" in notes[0]


def test_what_the_new_class_needs_and_has_no_default_for_stays():
    cfg, notes = settled("experiment=quickstart", "optim=SGD")
    assert cfg.optim.lr == 0.001
    assert "lr=" not in notes[0]


def test_a_whole_head_takes_its_parts_with_it():
    cfg, notes = settled("experiment=quickstart", "model/head=retinanet", "loss@model.head.cls_loss=BCE")
    assert cfg.model.head.anchors.scales == composed("model=retinanet").model.head.anchors.scales
    assert cfg.model.head.cls_loss._target_ == "BCE"
    assert len(notes) == 1
    assert "rpn.anchors.scales=[4.0]" in notes[0]
    assert notes[0].endswith("more")


@pytest.mark.parametrize("recipe", BCCD)
@pytest.mark.parametrize("model", ["faster_rcnn_fpn", "retinanet", "centernet", "yolov1"])
def test_a_whole_model_brings_its_neck_and_head(recipe, model):
    """The backbone is the recipe's: it serves every model."""
    cfg, _ = settled(BCCD[recipe], f"model={model}", "data.root=somewhere")
    alone = composed(f"model={model}")
    assert cfg.model.head._target_ == alone.model.head._target_
    assert cfg.model.neck._target_ == alone.model.neck._target_
    assert cfg.model.backbone._target_ == "MobileNetV2"


def test_a_model_of_its_own_class_takes_the_place_of_parts_and_they_its():
    cfg, notes, _ = Composer()("experiment=quickstart", "model=mtcnn", "model.min_size=8")
    assert (cfg.model._target_, cfg.model.min_size, "head" in cfg.model) == ("MTCNN", 8, False)
    assert "model is MTCNN now; left out what the recipe says there for ComposedDetector" in " ".join(notes)
    cfg, notes, _ = Composer()("experiment=mtcnn/shapes_tiny", "model=retinanet")
    assert cfg.model == composed("model=retinanet").model
    assert "model is ComposedDetector now; left out what the recipe says there for MTCNN: min_size=6.0" in notes[0]


def test_a_part_chosen_beside_the_model_stays():
    cfg, _ = settled(BCCD["retinanet"], "model=centernet", "model/neck=upsample_dcn", "data.root=somewhere")
    assert cfg.model.neck == composed("model/neck=upsample_dcn").model.neck
    assert cfg.model.head._target_ == composed("model=centernet").model.head._target_


def test_what_is_left_out_of_the_recipes_own_part_stays_out():
    cfg, _ = settled(BCCD["yolov1"], "model=faster_rcnn_fpn_torchvision", "~model.backbone.frozen_stages")
    assert cfg.model.backbone._target_ == "MobileNetV2"
    assert "frozen_stages" not in cfg.model.backbone


def test_an_option_from_a_search_path_fills_a_slot(tmp_path, monkeypatch, capsys):
    (tmp_path / "own" / "model" / "neck").mkdir(parents=True)
    (tmp_path / "own" / "model" / "neck" / "mine.yaml").write_text("_target_: Upsample\nchannels: [32, 32, 32]\n")
    output = call(
        train.main, monkeypatch, capsys, f"hydra.searchpath=[file://{tmp_path / 'own'}]", "experiment=quickstart",
        "model/neck=mine", "debug=fast", "device=cpu", f"data.root={tmp_path / 'shapes'}", f"run_root={tmp_path}",
        "data.train.num_train=2", "data.train.num_val=1", "data.train.image_size=64",
    )  # fmt: skip
    assert "model/neck=mine: model.neck is Upsample now; left out" in output


def test_what_presets_say_goes_too():
    cfg, notes = settled(
        "experiment=quickstart", "loss@model.head.roi.box_loss=SmoothL1", "loss@model.head.rpn.cls_loss=Focal"
    )
    assert (cfg.model.head.roi.box_loss._target_, notes) == ("SmoothL1", [])
    cfg, notes = settled("model=retinanet", "model/head=retinanet_giou", "loss@model.head.box_loss=L1")
    assert cfg.model.head.box_loss.weight == 1.0
    assert "for GIoULoss: weight=2.0" in notes[0]


def test_an_argument_of_a_part_is_named_with_its_key():
    with pytest.raises(ConfigError) as caught:
        validate(
            composed("experiment=quickstart", "model.head.roi.max_detections=300", "model.head.roi.hidden=[8]"),
            TrainSchema,
        )
    assert caught.value.errors == (
        "model.head.roi.max_detections: no argument 'max_detections'; did you mean model.head.roi.selector.max_detections?",
        "model.head.roi.hidden: no argument 'hidden'; did you mean model.head.roi.network.hidden?",
    )


def test_what_a_recipe_says_of_a_step_goes_where_other_transforms_have_none():
    cfg, notes = settled("experiment=centernet/shapes_large_tiles", "transform=flip")
    assert cfg.transform == composed("transform=flip").transform
    assert notes == [
        "transform=flip: there is no transform.train.tile now; left out what the recipe says there for RandomTile: tile=256"
    ]
    cfg, _ = settled("experiment=centernet/shapes_large_tiles", "transform=flip", "transform.train.tile.tile=9")
    assert cfg.transform.train.tile.tile == 9, "what the command line says stays, and is then refused"


def test_what_the_command_line_leaves_out_inside_a_swapped_slot_is_left_out():
    cfg, _ = settled("experiment=quickstart", "model/neck=fpn_se", "~model.neck.attention.reduction")
    assert "reduction" not in cfg.model.neck.attention
    cfg, notes = settled("experiment=retinanet/shapes", "model/neck=fpn_cbam", "~model.neck.attention")
    assert "attention" not in cfg.model.neck
    cfg, notes = settled("experiment=centernet/shapes", "model/neck=fpn_se", "~model.neck.attention")
    assert "attention" not in cfg.model.neck
    assert "left out what the recipe says there for Upsample" in notes[0]


def test_what_is_kept_is_what_would_be_composed_anew():
    """Whatever was said in between: removals and values of one command line are not those of the next."""
    composer = Composer(keep=True)
    swapped = ("experiment=centernet/shapes", "model/neck=fpn_se")
    for more in ((), ("~model.neck.attention",), ("model.neck.attention.reduction=3",), ()):
        assert composer(*swapped, *more)[:2] == Composer()(*swapped, *more)[:2]


@pytest.fixture
def own(tmp_path):
    """A folder of a user's own experiments, and the argument that names it."""
    (tmp_path / "experiment").mkdir()

    def write(name, *overrides):
        lines = ["# @package _global_", "defaults:", "  - /experiment/retinanet/shapes"]
        lines += [f"  - override /{override}" for override in overrides]
        (tmp_path / "experiment" / f"{name}.yaml").write_text("\n".join(lines) + "\n")
        return f"--config-dir={tmp_path}"

    return write


def test_what_the_new_class_does_not_have_cannot_be_left_out():
    with pytest.raises(ConfigError, match=r"^~model\.neck\.out_channels: there is no 'out_channels' to leave out"):
        settled("experiment=quickstart", "model/neck=upsample", "~model.neck.out_channels")


def test_a_preset_may_be_named_by_a_number(tmp_path, monkeypatch, capsys):
    (tmp_path / "model" / "neck").mkdir(parents=True)
    (tmp_path / "model" / "neck" / "320.yaml").write_text("_target_: SingleLevel\n")
    start = (train.main, monkeypatch, capsys, f"--config-dir={tmp_path}", "experiment=quickstart")
    assert "_target_: SingleLevel" in call(*start, "model/neck=320", "--cfg=job")
    assert "error: model/neck: no option '321'" in call(*start, "model/neck=321", code=2)


def test_the_printed_configuration_is_what_the_run_has(monkeypatch, capsys):
    start = (train.main, monkeypatch, capsys, "experiment=quickstart", "model/neck=single_level", "--cfg=job")
    cfg, told = settled("experiment=quickstart", "model/neck=single_level")
    printed, *notes = call(*start).split("note: ")
    assert yaml.safe_load(printed)["model"]["neck"] == OmegaConf.to_container(cfg.model.neck)
    assert notes == [f"{note}\n" for note in told]
    printed, *_ = call(*start, "--package=model.neck").split("note: ")
    assert yaml.safe_load(printed)["out_channels"] == cfg.model.neck.out_channels != 64
    assert call(*start, "--package=seed").startswith("0\n")
    assert call(*start, "--package=model.nk", code=2) == "error: --package: there is nothing at 'model.nk'\n"
    assert call(*start, "data=coco", "--resolve", code=2) == "error: data.root: needs a value\n"


def test_of_a_group_that_is_named_twice_the_last_counts():
    for first, last in (("faster_rcnn_fpn", "retinanet"), ("retinanet", "faster_rcnn_fpn")):
        for start in ([], ["experiment=quickstart"]):
            assert settled(*start, f"model={first}", f"model={last}") == settled(*start, f"model={last}")
    twice = settled("experiment=quickstart", "model/neck=upsample", "model/neck=single_level")
    assert twice == settled("experiment=quickstart", "model/neck=single_level")


def test_what_an_experiment_chooses_in_a_part_goes_with_the_part(own):
    where = own("mine", "loss@model.head.box_loss: GIoULoss")
    assert read_command_line([where, "experiment=mine"], "train")[1] == []
    for choice in ("model/head=two_stage", "model=faster_rcnn_fpn"):
        said, idle = read_command_line([where, "experiment=mine", choice, "seed=1"], "train")
        assert idle == [("experiment/mine", "loss@model.head.box_loss")]
        assert told(idle[0], said[1:]) == (
            f"{choice}: left out what experiment/mine chooses for loss@model.head.box_loss, a slot that there is not now"
        )


def test_a_mistake_in_an_experiment_stays_one(own):
    where = own("mine", "loss@model.head.box_lss: GIoULoss")
    for choice in ([], ["model/head=two_stage"]):
        with pytest.raises(ConfigError, match=r"In 'experiment/mine': Could not override 'loss@model\.head\.box_lss'"):
            read_command_line([where, "experiment=mine", *choice], "train")


def test_such_an_experiment_trains(own, tmp_path, monkeypatch, capsys):
    where = own("mine", "loss@model.head.box_loss: GIoULoss", "optim: AdamW")
    output = call(
        train.main, monkeypatch, capsys, where, "experiment=mine", "model/head=two_stage", "debug=fast", "device=cpu",
        f"data.root={tmp_path / 'shapes'}", f"run_root={tmp_path / 'runs'}", "data.train.num_train=2",
        "data.train.num_val=1", "data.train.image_size=64",
    )  # fmt: skip
    assert "left out what experiment/mine chooses for loss@model.head.box_loss" in output
    assert "rpn_cls" in output


def test_nothing_chosen_nothing_changed():
    assert settled("experiment=quickstart", "model.neck.out_channels=32")[1] == []
    assert settled("experiment=quickstart", "data=shapes_tiny")[1] == []


@pytest.mark.parametrize("neck", ["fpn", "image_pyramid", "upsample", "single_level", "fpn_se"])
@pytest.mark.parametrize("recipe", BCCD)
def test_every_recipe_takes_every_neck(recipe, neck):
    """The main promise: one part for another, by one argument."""
    cfg = composed(BCCD[recipe], "data.root=somewhere", f"model/neck={neck}", "model.backbone.weights=null")
    validate(cfg, TrainSchema)
    assert build_detector(cfg.model, Categories(("a", "b", "c"), (1, 2, 3)))
