"""The rules of ``tools/recipe.py``: findings and timings in, choices out; no file, no network."""

import dataclasses
import json
import re
import time
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given as over
from hypothesis import strategies as st
from omegaconf import OmegaConf

from detkit.app.cli.paths import config_dir
from detkit.app.recipe import measure, rules
from detkit.app.recipe.findings import Findings
from detkit.app.recipe.given import DETECTORS, Choice, Fits, Given, Measured, View, basis_of
from detkit.app.recipe.made import Option, make, options
from detkit.app.recipe.measure import RATIOS, SCALES
from detkit.app.recipe.notes import notes
from detkit.app.recipe.speed import Line, Pace, Speeds, read_speeds
from detkit.app.recipe.written import experiment
from detkit.config import ConfigError

PACE = Pace(Line(0.05, 2.0), Line(0.05, 0.5))
SPEEDS = Speeds("2 CPU threads", 1.5, {"faster_rcnn_fpn": PACE, "centernet": Pace(Line(0.02, 1.0), Line(0.01, 0.3))})
FITS = Fits(dict.fromkeys(SCALES, 0.05), dict.fromkeys(RATIOS, 0.05))


def findings(sides=(0.1, 0.2), long_side=640, num_images=200, num_val=80, names=("cat", "dog"), per_image=4, **more):
    """A set whose objects have ``sides``, shares of the longer side, equally often."""
    shares = np.repeat(np.array(sides, float), 100)
    return Findings(
        names=names,
        **{
            "boxes": np.full(len(names), 100),
            "images": np.full(len(names), 50),
            "per_image": np.full(num_images, per_image),
            "long_sides": np.full(num_images, float(long_side)),
            "aspect": 0.75,
            "sides": shares,
            "own_sides": shares * long_side,
            "num_val": num_val,
            "val_boxes": np.full(len(names), 40),
            "num_shared": 0,
            "is_grey": False,
            **more,
        },
    )


def given(found=None, minutes=20.0, device="cpu", is_pretrained=True):
    return Given(found or findings(), minutes, device, is_pretrained)


@pytest.mark.parametrize(
    ("sides", "long_side", "needed"),
    [
        ((0.5,), 640, 128),  # 64 px at 128
        ((0.05,), 640, 320),  # 16 px at 320: the least anchors
        ((0.05, 0.02), 640, 800),  # a tenth have 16 px at 800
        ((0.05,) * 50 + (0.02,), 640, 320),  # one in 51 may be below 8 px
        ((0.01,), 640, 1280),  # never large enough; twice the picture is the most that is of use
        ((0.01,), 200, 320),
    ],
)
def test_the_size_that_objects_need_by_hand(sides, long_side, needed):
    assert rules.needed_size(findings(sides, long_side)) == needed


def test_an_input_is_the_usual_one_unless_objects_or_time_say_otherwise():
    assert rules.choose_view(given(), PACE) == View(416)
    assert rules.choose_view(given(findings((0.2, 0.4), 128)), PACE) == View(128), "small pictures stay as they are"
    assert rules.choose_view(given(findings((0.1, 0.4), 128)), PACE) == View(160), "unless their objects are small"
    assert rules.choose_view(given(findings((0.03,))), PACE) == View(640), (
        "a tenth of the objects have 16 px from 534 on"
    )
    assert rules.choose_view(given(is_pretrained=False), PACE) == View(320)
    shown = rules.images_shown(given(minutes=5), PACE, View(416))
    assert shown < rules.ENOUGH < rules.images_shown(given(minutes=5), PACE, View(320))
    assert rules.choose_view(given(minutes=5), PACE) == View(320)
    assert rules.choose_view(given(minutes=0.5), PACE) == View(224), "no smaller for want of time alone"


def test_short_time_takes_from_the_size_only_what_objects_leave():
    small = findings((0.04,))  # 416 px are needed
    assert rules.needed_size(small) == 416
    assert rules.LEAST < rules.images_shown(given(small, 6), PACE, View(416)) < rules.ENOUGH
    assert rules.choose_view(given(small, 6), PACE) == View(416)
    assert rules.images_shown(given(small, 2), PACE, View(416)) < rules.LEAST
    assert rules.choose_view(given(small, 2), PACE).size < 416


def test_tiny_objects_in_huge_pictures_are_seen_in_tiles_and_huge_pictures_alone_are_not():
    huge = findings((0.003,), long_side=8000)  # 24 px; 3.8 of whole pictures of 1280 px
    assert rules.choose_view(given(huge), PACE) == View(256, is_tile=True)
    assert rules.choose_view(given(findings((0.1,), long_side=8000)), PACE) == View(416)
    assert rules.tile_size(findings((0.003,), long_side=640)) is None, "they are tiny in their own pixels too"
    lines = {c.key: c.value for c in made(given(huge))}
    assert (lines["/transform"], lines["transform.train.tile.tile"]) == ("tiles", 256)
    assert lines["transform.val.resize"]["size"] == rules.LARGEST_WHOLE, "64 megapixels fit into no memory"
    assert lines["data.loader.val.batch_size"] == 1
    assert any(
        "tta=tiles tta.tile=256 transform.val.resize=null" in line for line in notes(given(huge), PACE, View(256, True))
    )


def made(situation, speeds=SPEEDS, fits=FITS, number=0):
    return make(situation, Measured(speeds, fits), options(situation, speeds)[number], "coco")


@over(
    minutes=st.floats(0.1, 600), num_val=st.integers(0, 5000), num_images=st.integers(1, 3000),
    fixed=st.floats(0.001, 2), slope=st.floats(0.01, 30), side=st.floats(0.005, 0.9), number=st.integers(0, 1),
)  # fmt: skip
def test_what_is_planned_takes_the_time_and_no_more(minutes, num_val, num_images, fixed, slope, side, number):
    pace = Pace(Line(fixed, slope), Line(fixed / 4, slope / 4))
    situation = given(findings((side,), num_val=num_val, num_images=num_images), minutes)
    lines = {c.key: c.value for c in made(situation, Speeds("", 1.0, dict.fromkeys(DETECTORS, pace)), number=number)}
    view = options(situation, Speeds("", 1.0, dict.fromkeys(DETECTORS, pace)))[number].view
    steps, batch = lines["trainer.steps"], lines["data.loader.train.batch_size"]
    training = steps * batch * pace.train(situation.megapixels(view))
    count, each = rules.evaluations(situation, pace, view)
    assert steps % 20 == 0
    assert lines["schedule.warmup_steps"] < steps
    if steps > 20:
        assert training <= 0.95 * 60 * minutes
        assert training + count * each <= 60 * minutes or count * each > 15 * minutes, "unless measuring takes long"
    assert (lines["trainer.eval_every"] is None) == (count < 2)
    if count >= 2:
        assert -(-steps // lines["trainer.eval_every"]) == count
    epochs = steps * batch / num_images
    assert epochs <= rules.MOST_EPOCHS or steps * batch <= max(rules.ENOUGH, 20 * batch)
    full = 0.9 * rules.images_shown(situation, pace, view)
    assert steps * batch >= full - 20 * batch or epochs > 0.9 * rules.MOST_EPOCHS - 20 * batch / num_images


def test_anchors_stay_the_usual_ones_unless_others_are_clearly_better():
    def fits(**shares):
        return Fits(
            {(4.0,): shares["usual"], (2.0,): shares["small"]}, {(0.5, 1.0, 2.0): 0.1, (0.25, 4.0): shares["wide"]}
        )

    assert rules.choose_scales(fits(usual=0.05, small=0.031, wide=0)).value == [4.0]
    assert rules.choose_scales(fits(usual=0.05, small=0.029, wide=0)).value == [2.0]
    assert rules.choose_ratios(fits(usual=0, small=0, wide=0.081)).value == [0.5, 1.0, 2.0]
    assert rules.choose_ratios(fits(usual=0, small=0, wide=0.079)).value == [0.25, 4.0]
    assert "[4]: 5.0%, [2]: 2.9%" in rules.choose_scales(fits(usual=0.05, small=0.029, wide=0)).reason


def test_the_finest_level_goes_where_no_object_would_be_pooled_from_it():
    large, small = findings((0.4,)), findings((0.2,))
    assert rules.choose_finest(large, View(416), 224).value == 8  # 166 px
    assert rules.choose_finest(small, View(416), 224).value == 4  # 83 px, and regions below 112 px are pooled from P2
    few = findings((0.4,) * 19 + (0.2,))  # one in twenty; one in 100 would do
    assert rules.choose_finest(few, View(416), 224).value == 4
    lines = {c.key: c.value for c in made(given(large))}
    assert (lines["model.neck.min_stride"], lines["model.head.roi.pool.num_levels"]) == (8, 3)


@pytest.mark.parametrize(("per_image", "number"), [(1, 128), (21, 128), (22, 256), (60, 512), (500, 512)])
def test_a_quarter_of_the_regions_have_room_for_the_objects(per_image, number):
    assert rules.choose_regions(findings(per_image=per_image), is_pretrained=True).value == number


def test_crowded_images_let_more_detections_out():
    assert rules.choose_detections(findings(per_image=100), DETECTORS[0]) == []
    first, second = rules.choose_detections(findings(per_image=150), DETECTORS[0])
    assert (first.key, first.value) == ("model.head.roi.selector.max_detections", 200)
    assert (second.key, second.value) == ("evaluator.max_detections", [1, 10, 200])
    assert rules.choose_detections(findings(per_image=150), DETECTORS[1])[0].key == "model.head.selector.max_detections"


def test_candidates_are_lowered_and_not_removed_unless_tiles_are_merged():
    [choice] = rules.choose_selector(View(416))
    assert (choice.key, choice.value) == ("/selector@model.head.roi.selector", "SoftSelector")
    assert rules.choose_selector(View(640, is_tile=True)) == []
    assert choice in made(given(findings((0.4,) * 20)))


def test_many_classes_get_what_was_ahead_on_rare_ones():
    many = findings(names=tuple(f"class {i}" for i in range(240)))
    expected = {
        "/loss@model.head.roi.cls_loss": "CrossEntropy",
        "model.head.roi.cls_loss.prior_prob": 0.25,
        "model.head.roi.network.class_agnostic": True,
        "data.loader.train.sampling._target_": "RepeatFactor",
    }
    made_of_many = made(given(many))
    assert expected.items() <= {c.key: c.value for c in made_of_many}.items()
    reason = next(c.reason for c in made_of_many if c.key == "/loss@model.head.roi.cls_loss")
    lower, upper = re.search(r"\+0\.045 \[\+(0\.012), \+(0\.077)\]", reason).groups()
    table = (config_dir() / "sweep" / "README.md").read_text()
    assert f"**-0.045** [-{upper}, -{lower}]" in table, "the figure is that of the study, cosines against plain softmax"
    assert not expected.keys() & {c.key for c in made(given())}
    assert not expected.keys() & {c.key for c in made(given(many), number=1)}, "CenterNet has no such"


@pytest.mark.parametrize(
    ("name", "is_mirrored"), [("cat", True), ("turn left", False), ("LEFT", False), ("leftovers", True), ("6", False)]
)
def test_nothing_is_mirrored_that_becomes_another_class(name, is_mirrored):
    choice = rules.choose_flip(findings(names=("cat", name) if name != "cat" else ("cat", "dog")))
    assert (choice.value is not None) == is_mirrored
    assert is_mirrored or name in choice.reason


def test_precision_follows_the_timing():
    assert rules.choose_precision(Speeds("", 1.5, {})).value == "bf16"
    assert rules.choose_precision(Speeds("", 1.1, {})).value == "fp32"


def test_a_gpu_gets_a_larger_network_batch_and_rate():
    lines = {c.key: c.value for c in made(given(device="cuda"))}
    assert lines["/model/backbone"] == "resnet50"
    assert (lines["data.loader.train.batch_size"], lines["optim.lr"]) == (8, 4e-4)
    assert lines["model.backbone.frozen_stages"] == 2
    lines = {c.key: c.value for c in made(given(is_pretrained=False))}
    assert (lines["/model/backbone"], lines["optim.lr"], lines["data.loader.train.batch_size"]) == (
        "resnet18_narrow",
        1e-3,
        4,
    )


def test_more_epochs_than_anyone_has_tried_are_not_run_and_it_is_said():
    basis = basis_of(DETECTORS[0], True)
    steps = rules.choose_steps(given(minutes=1000), PACE, View(416), basis)
    assert steps.value * basis.batch_size == rules.MOST_EPOCHS * 200
    assert "no recipe here is longer than 140 epochs" in steps.reason
    assert rules.choose_steps(given(findings(num_images=1), 1000), PACE, View(416), basis).value == 500, (
        "1000 of one image"
    )


def test_the_doubt_is_about_the_other_detector_and_the_next_size():
    first, other, size = options(given(), SPEEDS)
    assert (first.detector, other.detector, size.detector) == (*DETECTORS, DETECTORS[0])
    assert (first.view, other.view, size.view) == (View(416), View(416), View(512))
    assert (first.doubt, size.doubt) == ("", "512 px show more")
    small = options(given(findings((0.03,)), minutes=10), SPEEDS)[2]  # 640 px are needed, and 800 take too long
    assert (small.view, small.doubt) == (View(512), "512 px take less time")
    huge = findings((0.003,), long_side=8000)
    assert [o.name for o in options(given(huge), SPEEDS)] == ["faster_rcnn_fpn_tiles_256", "centernet_tiles_256"]
    assert "try=true compares" in made(given(), dataclasses.replace(SPEEDS, paces={**SPEEDS.paces, "centernet": Pace(
        Line(0.01, 0.5), Line(0.01, 0.3))}))[0].reason  # fmt: skip


@pytest.mark.parametrize(
    ("found", "minutes", "words"),
    [
        (findings(num_images=1), 20, "1 image to learn from"),
        (findings(num_val=0), 20, "nothing to measure by: no AP, and no best.pt"),
        (findings(val_boxes=np.zeros(2, int)), 20, "not one object in the images to measure by"),
        (findings(num_shared=3), 20, "3 of the 80 images to measure by are learnt from too"),
        (findings(is_grey=True), 20, "the images are grey"),
        (findings((0.1,)), 20, "all objects are of about one size (64 to 64 px)"),
        (findings(boxes=np.array([100, 0])), 20, "without a box to learn from: 1 of 2 classes: dog"),
        (
            findings(boxes=np.array([7, 100])),
            20,
            "with fewer than 20 boxes, and so rarely found: 1 of 2 classes: cat 7",
        ),
        (findings(), 1, "no recipe here was run with fewer than 400"),
        (findings(num_val=50_000), 20, "measuring 50000 images takes"),
        (findings((0.004,), long_side=640), 20, "100.0% of the objects are below 8 px there"),
    ],
)
def test_what_is_lacking_is_said_and_nothing_else(found, minutes, words):
    situation = given(found, minutes)
    lines = notes(situation, PACE, rules.choose_view(situation, PACE))
    assert [line for line in lines if words in line]
    assert not notes(given(), PACE, View(416))


def test_a_line_through_two_timings_is_never_negative():
    assert Line.through([(0.1, 0.3), (0.2, 0.5)]) == Line(0.1, 2.0)
    assert Line.through([(0.2, 0.5), (0.1, 0.1)]) == Line(0.0, 2.0)
    assert Line.through([(0.1, 0.5), (0.2, 0.4)]) == Line(0.0, 3.0)


def test_timings_are_read_back_and_what_is_none_is_told(tmp_path):
    path = tmp_path / "a.speed.json"
    SPEEDS.write(path)
    assert read_speeds(path, DETECTORS) == SPEEDS
    content = json.loads(path.read_text())

    def refused(words, **changes):
        path.write_text(json.dumps({**content, **changes}))
        with pytest.raises(ConfigError, match=words):
            read_speeds(path, DETECTORS)

    refused("a.speed.json: bf16: must be a number from 0 on, not 'x'", bf16="x")
    refused("a.speed.json has no 'centernet'", paces={"faster_rcnn_fpn": content["paces"]["faster_rcnn_fpn"]})
    line = {"fixed": -1, "per_megapixel": 1}
    refused(
        r"centernet\.train\.fixed: must be a number from 0 on, not -1",
        paces={**content["paces"], "centernet": {"train": line, "val": line}},
    )
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"a\.speed\.json cannot be read"):
        read_speeds(path, DETECTORS)
    with pytest.raises(ConfigError, match="there is no file"):
        read_speeds(tmp_path / "none.json", DETECTORS)


def test_the_file_is_yaml_whose_lines_stand_below_their_reasons():
    choices = [
        Choice("/model", "centernet", "no anchors " * 30),
        Choice("a.b.c", [1, 2.5, None], "a list"),
        Choice("a.b.text", "yes: # no", "what YAML could take for something else"),
        Choice("a.word", "no", "a word that YAML has a meaning for"),
        Choice("a.nothing", None, "nothing"),
        Choice("z", {"_target_": "ResizeFit", "size": 3}, "a mapping"),
        Choice("a.b.rate", 2e-4, "a small number"),
    ]
    text = experiment("mine", "python tools/train.py", ["one", "two"], choices)
    assert text.startswith("# @package _global_\n# mine\n#   python tools/train.py\n# one\n# two\n")
    assert max(map(len, text.splitlines())) <= 118
    assert yaml.safe_load(text) == {
        "defaults": [{"override /model": "centernet"}],
        "a": {"b": {"c": [1, 2.5, None], "text": "yes: # no", "rate": 2e-4}, "word": "no", "nothing": None},
        "z": {"_target_": "ResizeFit", "size": 3},
    }
    lines = text.splitlines()
    assert lines[lines.index("    # a list") + 1] == "    c: [1, 2.5, null]"


def test_every_line_has_a_reason():
    for number in range(3):
        for choice in made(given(), number=number):
            assert len(choice.reason) > 5, choice.key


def test_the_name_of_an_option_tells_it_from_the_others():
    assert Option("centernet", View(256, is_tile=True)).name == "centernet_tiles_256"


def test_names_with_line_ends_and_control_characters_stay_in_their_comment():
    odd = "a\u2028b: [c\nd: 1 \x07\x85 e: }"
    text = experiment(odd, "train", [odd], [Choice("a.b", odd, odd), Choice("/model", "centernet", odd)])
    assert yaml.safe_load(text) == {"defaults": [{"override /model": "centernet"}], "a": {"b": odd}}


def test_a_smaller_input_tells_what_the_larger_one_could_show():
    """A size that is tried, though the time would be enough for what the objects want."""
    small = findings((0.03,))
    shown = rules.images_shown(given(small, 60), PACE, View(640))
    assert shown > rules.ENOUGH
    assert f"the objects want 640 px, at which {shown:.0f} could be" in rules.why_view(
        given(small, 60), PACE, View(512)
    )
    shown = rules.images_shown(given(minutes=60), PACE, View(416))
    assert f"at the usual 416 px {shown:.0f} could be" in rules.why_view(given(minutes=60), PACE, View(320))


def test_what_was_not_measured_says_so():
    def reasons(**situation):
        return {c.key: c.reason for c in made(given(**situation), Speeds("", 1.5, SPEEDS.paces))}

    on_cpu, on_gpu, untrained = reasons(), reasons(device="cuda"), reasons(is_pretrained=False)
    assert "0.56 s an image in place of 0.61 on bccd" in on_cpu["trainer.channels_last"]
    assert "not timed on a GPU" in on_gpu["trainer.channels_last"]
    assert "no difference shown" in on_cpu["trainer.precision"]
    assert "not measured" in on_cpu["model.backbone.frozen_stages"]
    assert "2 is faster" not in untrained["model.backbone.frozen_stages"], "frozen random weights learn nothing"
    assert all("not measured" in on_gpu[key] for key in ("data.loader.train.batch_size", "optim.lr"))


class Slow:
    """Three pictures that take a fiftieth of a second each to read."""

    def __len__(self):
        return 3

    def read(self, index):
        time.sleep(0.02)


def test_an_evaluation_also_reads_its_images(monkeypatch):
    pictures: Any = Slow()
    assert measure.reading_time(pictures) >= 0.02
    monkeypatch.setattr(measure, "_timed", lambda bench, option, *_: (0.1 * option.view.size, 0.01 * option.view.size))
    bench: Any = measure.Bench(given(), "coco", lambda choices: OmegaConf.create())
    paces = []
    for seconds in (0.0, 0.5):
        monkeypatch.setattr(measure, "reading_time", lambda dataset, seconds=seconds: seconds)
        paces.append(measure.time_all(bench, pictures, "cpu", 1).paces["centernet"])
    small, large = paces
    assert (small.train, small.val.per_megapixel) == (large.train, large.val.per_megapixel)
    assert large.val.fixed == pytest.approx(small.val.fixed + 0.5)
