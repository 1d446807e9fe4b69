"""The inspect tool for models: its numbers, its files, with and without data, and what it says to mistakes."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from detkit.app.cli.components import load_components
from detkit.app.cli.overrides import normalize_overrides
from detkit.app.cli.paths import config_dir
from detkit.app.inspect import model as inspect_model
from detkit.app.inspect import model_report
from detkit.app.inspect.model import checked, inspect, main
from detkit.app.inspect.model_found import Inspection
from detkit.config import ConfigError
from detkit.models import Neck, build_detector
from detkit.structures import Categories
from tests.app.test_configs import EXPERIMENTS
from tests.data.builders import annotation, image, write_coco

load_components()
SMALL = ("experiment=quickstart", "device=cpu", "num_inputs=2")
FILES = {"config.yaml", "model.json", "model.txt", "receptive_field.png"}


def composed(*overrides):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("inspect_model", overrides=normalize_overrides(overrides))


def look(*overrides: str) -> Inspection:
    return inspect(checked(composed(*SMALL, *overrides)))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Three images of 64 x 128 and one of 128 x 64, with sides of 3, 6, 20, 40 and a crowd."""
    images = [image(1, 64, 128), image(2, 64, 128), image(3, 64, 128), image(4, 128, 64)]
    boxes = [[1, 1, 3, 3], [10, 10, 4, 9], [2, 2, 20, 20], [1, 1, 32, 50], [5, 5, 9, 9]]
    annotations = [annotation(i + 1, i % 4 + 1, box, iscrowd=int(i == 4)) for i, box in enumerate(boxes)]
    return write_coco(tmp_path_factory.mktemp("data"), images, annotations)


@pytest.fixture(scope="module")
def found(root) -> Inspection:
    return look("data=coco", f"data.root={root}", "transform=identity", "data.loader.val.size_divisor=64")


def test_boxes_are_set_against_the_levels(found):
    assert found.input_size == (64, 128), "the commonest"
    assert sorted(found.sides.round(3)) == [3.0, 6.0, 20.0, 40.0], "the crowd is no object"
    covers = [level.cover for level in found.levels]
    assert [c.low for c in covers] == [8, 16, 32, 64, 128]
    assert [level.field.size[0] for level in found.levels] == [467, 467, 467, 499, 499]
    assert [level.anchors for level in found.levels] == [(16,), (32,), (64,), (128,), (256,)]
    numbers = model_report.as_dict(found)
    assert numbers["uncovered"] == [{"low": 0.0, "high": 8, "boxes": 2}, {"low": 499, "high": None, "boxes": 0}]
    assert [(b["low"], b["count"], b["levels"]) for b in numbers["sizes"]] == [
        (2, 1, ()), (4, 1, ()), (8, 0, ()), (16, 1, (0, 1)), (32, 1, (0, 1, 2))
    ]  # fmt: skip
    assert "covered by no level: below 8 px (2 boxes, 50.0%), above 499 px (0 boxes, 0.0%)" in model_report.describe(
        found
    )


def test_the_resize_of_validation_scales_the_boxes(root):
    found = look("data=coco", f"data.root={root}", "transform=fit", "transform.train.resize.size=256", "num_inputs=0")
    assert found.input_size == (128, 256)
    assert sorted(found.sides.round(3)) == [6.0, 12.0, 40.0, 80.0]
    assert found.levels[0].effective is None
    assert found.inputs == "none"
    assert model_report.as_dict(found)["larger_than_effective"] == 0
    model_report.plot(found)


def test_parts_and_effective_fields(found):
    costs = found.costs
    assert costs["total"].parameters == sum(costs[p].parameters for p in ("backbone", "neck", "head"))
    assert all(cost.flops > 0 and cost.trainable > 0 for cost in costs.values())
    assert found.inputs == "2 images of the data set, 64 x 128 px"
    for level in found.levels:
        assert level.gradient.shape == (64, 128)
        assert 4 < level.effective <= math.sqrt(64 * 128)
    again = look("data=null", "input_size=[64,100]")
    assert again.input_size == (64, 128), "padded as the loader pads"
    assert again.sides is None
    assert again.inputs == "2 images of noise, 64 x 128 px"


def test_objects_larger_than_every_effective_field_are_counted(found):
    sides = np.array([4.0, 9.0, 30.0, 460.0])
    levels = tuple(dataclasses.replace(level, effective=10.0) for level in found.levels)
    numbers = dataclasses.replace(found, sides=sides, levels=levels)
    assert model_report.as_dict(numbers)["larger_than_effective"] == 2
    text = model_report.describe(numbers)
    assert "covered, but by no level within its effective field: 2 boxes (50.0%)" in text


def test_anchors_fifty_times_too_large_are_noted(root):
    data = (f"data.root={root}", "data=coco", "transform=identity")
    for given in (data, ("data=null",)):
        wrong = look(*given, "num_inputs=0", "model.head.rpn.anchors.scales=[400]")
        (note,) = [n for n in wrong.notes if "anchor" in n]
        assert note.startswith("every anchor (1600..")
        assert f"note: {note}" in model_report.describe(wrong)
        assert not [n for n in look(*given, "num_inputs=0").notes if "anchor" in n]


def test_a_gated_backbone_sees_the_whole_image():
    found = look(
        "data=null",
        "model/backbone=Timm",
        "model.backbone.name=mobilenetv3_small_050",
        "model.backbone.pretrained=false",
        "input_size=[64,64]",
        "num_inputs=1",
    )
    text = model_report.describe(found)
    assert "stride 4 sees the whole image through mean; without that, what stands in brackets" in text
    assert found.levels[3].gradient.shape == (64, 64), "all of the image was looked at"
    assert model_report._field(found.levels[0]).startswith("image (")


class Pyramid(Neck):
    """The finest map of the image at full and at three quarters of its size, and one whose stride is told wrongly."""

    def __init__(self, in_spec):
        super().__init__()
        self.out_spec = type(in_spec)(in_spec.channels[:1] * 3, (4.0, 4 / 0.75, 5.0))

    def forward(self, pixels, backbone):
        small = F.interpolate(pixels, scale_factor=0.75, mode="bilinear")
        return [backbone(pixels)[0], backbone(small)[0], backbone(pixels)[0]]


def test_any_neck_will_do():
    """An image pyramid, of which the tool knows nothing; and a neck that contradicts itself."""
    detector = build_detector(checked(composed(*SMALL, "data=null"))["model"], Categories(("a",), (1,)))
    detector.neck = Pyramid(detector.backbone.out_spec)
    levels, _, notes = inspect_model._look(detector.eval(), (96, 128), None, [], 1, 0)
    assert [level.field.stride[0] for level in levels] == pytest.approx([4, 4 / 0.75, 4])
    assert levels[0].field.size == (43, 43)
    assert math.ceil(43 / 0.75) <= levels[1].field.size[0] <= 43 / 0.75 + 2
    assert notes == ["level 2: the neck says stride 5, but its operations make 4 x 4"]
    assert [level.anchors for level in levels] == [()] * 3, "the head's anchors belong to other levels"


def test_the_window_is_as_large_as_the_largest_field(found):
    fields = [level.field for level in found.levels]
    strides = [level.stride for level in found.levels]
    assert inspect_model._window((1024, 320), fields, strides) == (576, 320), "499 and a cell of 64, in whole cells"
    gated = dataclasses.replace(fields[0], whole_image=("mean",))
    assert inspect_model._window((1024, 320), [*fields, gated], strides) == (1024, 320)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_can_be_looked_at_without_data(experiment):
    node = checked(composed(f"experiment={experiment}", "data=null"))
    assert "data" not in node


def test_no_experiment_is_needed_and_its_groups_are_those_of_training():
    assert "data" in checked(composed())

    def groups(name):
        defaults = OmegaConf.to_container(OmegaConf.load(config_dir() / f"{name}.yaml").defaults)
        return [d for d in defaults if d != "_self_" and not any("sweep" in k or "launcher" in k for k in d)]

    assert groups("inspect_model") == groups("train")


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (("modle.neck=1", "num_input=3"), ("modle: no key 'modle'; did you mean 'model'?", "num_input: no key 'num_input'; did you mean 'num_inputs'?")),
        (("model.neck.out_chanels=3",), ("model.neck.out_chanels: no argument 'out_chanels'; did you mean 'out_channels'?",)),
        (("optim.lrr=3",), ("optim.lrr: no argument 'lrr'; did you mean 'lr'?",)),
        (("split=test",), ("split: must be one of 'train', 'val', not 'test'",)),
        (("input_size=[3]",), ("input_size: must be a list of 2: int, int or null, not [3]",)),
        (("input_size=[0,64]",), ("input_size: must be [height, width] in px, not [0, 64]",)),
        (("num_inputs=-1",), ("num_inputs: must be 0 or more, not -1",)),
        (("classes=0",), ("classes: must be 1 or more, not 0",)),
        (("data=coco",), ("data.root: needs a value; data=null inspects the model without data",)),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_the_nearest_name(overrides, messages):
    with pytest.raises(ConfigError) as caught:
        checked(composed(*SMALL, *overrides))
    assert caught.value.errors == messages


def test_a_split_that_is_not_there(root):
    with pytest.raises(ConfigError, match=r"split: the configuration has no data\.val"):
        look("data=coco", f"data.root={root}", "data.val=null", "split=val")


def run(monkeypatch, tmp_path, *arguments: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["inspect_model.py", *arguments])
    main()


def test_the_command_writes_its_files(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    run(monkeypatch, tmp_path, *SMALL, "data=coco", f"data.root={root}", "num_inputs=1")
    (folder,) = (tmp_path / "runs" / "inspect_model" / "quickstart").iterdir()
    assert {p.name for p in folder.iterdir()} == FILES
    numbers = json.loads((folder / "model.json").read_text())
    assert [level["stride"] for level in numbers["levels"]] == [4, 8, 16, 32, 64]
    assert numbers["num_boxes"] == 4
    shown = capsys.readouterr().out
    for text in (
        "backbone",
        "closed form",
        "levels that cover them",
        "covered by no level: below 8 px",
        "467",
        "<= 471",
    ):
        assert text in shown
    picture = cv2.imread(str(folder / "receptive_field.png"))
    assert picture.shape[1] > 800
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_the_commands_mistakes_have_no_traceback(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, tmp_path, *SMALL, "data=coco", f"data.root={tmp_path / 'nowhere'}")
    assert caught.value.code != 0
    assert "train.json: No such file or directory" in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("*.*"))


def test_help_tells_what_can_be_given(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, tmp_path, "--help")
    assert caught.value.code in (0, None)
    shown = capsys.readouterr().out
    for text in ("experiment=quickstart", "data=null", "num_inputs=4", "model/neck:"):
        assert text in shown


def test_branches_show_a_field_each_and_not_their_union():
    """A 3x3 convolution of dilation d reads 2 d cells more than one: two of them at stride 16 add 64 d px."""
    found = look("experiment=tridentnet/shapes", "data=null", "input_size=[256,256]", "num_inputs=1")
    sides = [level.field.size[0] for level in found.levels]
    assert [b - a for a, b in itertools.pairwise(sides)] == [64, 64]
    assert [level.stride for level in found.levels] == [16, 16, 16]
    assert [len(level.anchors) for level in found.levels] == [5, 5, 5]
    (alone,) = look(
        "experiment=tridentnet/shapes", "model.backbone.trident=[2]", "data=null", "input_size=[256,256]"
    ).levels
    assert alone.field == found.levels[1].field
    assert found.levels[0].gradient.ne(0).sum() < found.levels[2].gradient.ne(0).sum()
