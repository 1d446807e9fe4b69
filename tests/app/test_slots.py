"""A part that the command line puts into a slot starts from its own options, not from those of the part before it."""

import pytest
from hydra.errors import HydraException

from detkit.app import train
from detkit.app.entry import _tell
from detkit.app.schema import TrainSchema
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


def test_what_the_command_line_leaves_out_of_a_swapped_slot_is_left_out():
    cfg, _ = settled("experiment=quickstart", "model/neck=upsample", "~model.neck.conv")
    assert "conv" not in cfg.model.neck
    assert "lateral" in cfg.model.neck
    cfg, _ = settled("experiment=centernet/shapes", "model/neck=fpn_se", "~attention@model.neck.attention")
    assert cfg.model.neck.attention is None
    with pytest.raises(ConfigError) as caught:
        settled("experiment=quickstart", "model/neck=upsample", "~model.neck.out_channels")
    assert caught.value.errors == (
        "model.neck.out_channels: there is no 'out_channels' to leave out; did you mean 'channels'? "
        "(model/neck=upsample starts from its own options)",
    )


def test_an_option_may_be_a_number_or_a_list(tmp_path):
    """A file is called 320.yaml, and ``[a,b]`` are two options in one slot."""
    presets = tmp_path / "model" / "neck"
    presets.mkdir(parents=True)
    (presets / "320.yaml").write_text("defaults: [Upsample, _self_]\nchannels: [8]\n")
    (presets / "lateral.yaml").write_text("lateral: true\n")
    cfg, notes = settled("experiment=quickstart", "model/neck=320", config=tmp_path)
    assert (cfg.model.neck._target_, cfg.model.neck.channels) == ("Upsample", [8])
    assert "out_channels" not in cfg.model.neck
    assert notes[0].endswith("for FPN: out_channels=64")
    cfg, notes = settled("experiment=quickstart", "model/neck=[upsample,lateral]", config=tmp_path)
    assert (cfg.model.neck._target_, cfg.model.neck.lateral) == ("Upsample", True)
    assert "out_channels" not in cfg.model.neck
    assert notes[0].endswith("for FPN: out_channels=64")


def test_of_many_processes_one_tells(monkeypatch, capsys):
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("RANK", rank)
        _tell(["something went"])
    assert capsys.readouterr().err == "note: something went\n"


def test_where_data_lie_may_be_told_on_the_command_line():
    cfg, notes = settled("experiment=yolov1/voc_paper", "data=bccd", "data.root=somewhere")
    assert (cfg.data.train.root, cfg.data.train.annotations, notes) == ("somewhere", "train.json", [])


@pytest.fixture
def mine(tmp_path):
    """A folder with an experiment of one's own, which chooses a loss inside the head."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n- override /model: retinanet\n- override /model/head: retinanet_giou\n"
        "- override /loss@model.head.box_loss: SmoothL1\nmodel: {head: {box_loss: {weight: 3.0}}}\n"
    )
    return tmp_path


def test_what_an_experiment_chooses_inside_a_swapped_slot_is_left_out(mine):
    cfg, notes = settled("experiment=mine", config=mine)
    assert (cfg.model.head.box_loss._target_, cfg.model.head.box_loss.weight, notes) == ("SmoothL1", 3.0, [])
    cfg, notes = settled("experiment=mine", "model/head=two_stage", config=mine)
    assert cfg.model.head == composed("model/head=two_stage").model.head
    assert notes == [
        "model/head=two_stage: model.head is TwoStageHead now; left out what the recipe says there for RetinaHead: "
        "box_loss.weight=3.0, loss@model.head.box_loss=SmoothL1 (experiment/mine.yaml)"
    ]
    cfg, notes = settled("experiment=mine", "model/head=retinanet", config=mine)  # the same class
    assert (cfg.model.head.box_loss._target_, notes) == ("SmoothL1", [])


def test_a_whole_model_takes_the_place_of_the_parts_that_an_experiment_chooses(mine):
    cfg, notes = settled("experiment=mine", "model=centernet", "model/backbone=mobilenetv2", config=mine)
    whole = composed("model=centernet").model
    assert (cfg.model.neck, cfg.model.head) == (whole.neck, whole.head)
    assert cfg.model.backbone._target_ == "MobileNetV2"
    assert "model.head is CenterNetHead now; left out what the recipe says there for RetinaHead:" in notes[-1]
    cfg, _ = settled("experiment=mine", "model=centernet", "model/neck=fpn", "model.neck.out_channels=8", config=mine)
    assert (cfg.model.neck._target_, cfg.model.neck.out_channels) == ("FPN", 8)
    cfg, notes = settled(BCCD["retinanet"], "model=retinanet")
    assert (cfg.model.head.box_loss._target_, notes) == ("GIoULoss", [])


def test_an_override_without_a_slot_stays_a_mistake(mine):
    preset = mine / "model" / "head"
    preset.mkdir(parents=True)
    (preset / "slip.yaml").write_text("defaults: [retinanet, override /loss@bax_loss: L1]\n")
    for line in (["experiment=mine", "model/head=slip"], ["experiment=mine", "model/head=slip", "model=retinanet"]):
        with pytest.raises(
            HydraException, match=r"In 'model/head/slip': Could not override 'loss@model.head.bax_loss'"
        ):
            settled(*line, config=mine)
    with pytest.raises(HydraException, match=r"Could not override 'loss@model.head.bax_loss'"):
        settled("experiment=mine", "loss@model.head.bax_loss=L1", config=mine)
    (mine / "experiment" / "slip.yaml").write_text("# @package _global_\ndefaults: [override /loss@model.head.x: L1]\n")
    with pytest.raises(HydraException, match=r"In 'experiment/slip': Could not override 'loss@model.head.x'"):
        settled("experiment=slip", "model/neck=fpn", config=mine)


def test_the_whole_command_line_takes_such_a_swap(mine, tmp_path, monkeypatch, capsys):
    output = call(
        train.main, monkeypatch, capsys, "--config-dir", mine, "experiment=mine", "model/head=two_stage", f"run_root={tmp_path}",
        code=2,
    )  # fmt: skip
    assert output.startswith("note: model/head=two_stage: model.head is TwoStageHead now")
    assert "optim.lr: needs a value" in output, "and what it says next is the checker's"
