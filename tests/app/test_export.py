"""``tools/export.py``: the file says what the detector says, in onnxruntime, and a file that does not is not kept."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import detkit
from detkit.app.assemble import exported
from detkit.app.assemble import stored as stored_module
from detkit.app.assemble.schema import ExportOptions
from detkit.app.assemble.stored import load_stored, open_split
from detkit.app.calibrate import tool as calibrate
from detkit.app.export import check
from detkit.app.export import tool as export
from detkit.app.export.check import ResizedDetector, edges_of, most_detections, partners
from detkit.app.use import predict
from detkit.config import ConfigError
from detkit.data.decode import ImageError
from detkit.engine.state.checkpoint import load_checkpoint
from detkit.matching import Selector, fixed
from detkit.models import Detector
from detkit.models.calibrated import Calibrated
from detkit.models.export import NoFormError
from detkit.models.export.resize import Resized
from detkit.models.export.runtime import ExportedDetector
from detkit.structures import Categories, Detections
from detkit.utils.download import checksum
from tests.app.test_explain import checkpoint  # noqa: F401 - a fixture: a small run on shapes
from tests.app.tools import call, largest_file
from tests.models.builders import SMALL, build_model, small

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

CATEGORIES = Categories(("a", "b", "c"), (1, 4, 9))

#: What a file says of itself, as far as it must.
CONTRACT = {
    "categories": CATEGORIES.to_dict(), "input": "", "layout": "bchw", "size": None, "score_threshold": 0.0,
    "thresholds": None, "checkpoint": "", "sha256": "", "config": {}, "metrics": {},
}  # fmt: skip


def found(boxes, scores, labels):
    return Detections(torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor(scores), torch.tensor(labels))


def test_detections_are_partners_whatever_their_order():
    one = found([[0, 0, 9, 9], [5, 5, 9, 9]], [0.5, 0.5], [1, 1])
    two = found([[5, 5, 9, 9.005], [0, 0, 9, 9]], [0.5, 0.5], [1, 1])
    pairs, left = partners(one, two)
    assert pairs.tolist() == [[0, 1], [1, 0]]
    assert not left


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (found([[0, 0, 9, 9.02], [5, 5, 9, 9]], [0.5, 0.4], [1, 1]), "only here: class 1, score 0.50000"),
        (found([[0, 0, 9, 9], [5, 5, 9, 9]], [0.5002, 0.4], [1, 1]), "only in the file: class 1, score 0.50020"),
        (found([[0, 0, 9, 9], [5, 5, 9, 9]], [0.5, 0.4], [0, 1]), "only in the file: class 0"),
        (found([[5, 5, 9, 9]], [0.4], [1]), "only here: class 1, score 0.50000"),
    ],
)  # fmt: skip
def test_what_has_no_partner_is_told(changed, words):
    _, left = partners(found([[0, 0, 9, 9], [5, 5, 9, 9]], [0.5, 0.4], [1, 1]), changed)
    assert any(words in line for line in left), left


def test_where_rounding_decides_a_detection_may_be_on_one_side():
    one = found([[0, 0, 9, 9]], [0.05004], [0])
    two = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert not partners(one, one, [[0.05, 0.05]])[1]
    assert not partners(one, two, [[0.05, 0.05]])[1], "the other side rounded it down to the threshold"
    assert partners(one, two)[1]
    assert not partners(two, one, [[0.0, 0.0], [0.05, 0.9]])[1], "the threshold of its own class"
    assert partners(two, one, [[0.0, 0.0], [0.9, 0.05]])[1], "and of no other"


def test_the_last_of_a_side_that_is_not_full_needs_a_partner():
    """Where one object is found, it is the last of as many on either side, wherever it lies."""
    one, two = found([[0, 0, 9, 9]], [0.5], [0]), found([[50, 50, 90, 90]], [0.5], [0])
    assert len(partners(one, two, most=100)[1]) == 2
    assert not partners(one, two, most=1)[1]
    assert most_detections(build_model("mtcnn", CATEGORIES, ["model.max_detections=7"])) == 7
    detector = build_model("retinanet", CATEGORIES, [*small("retinanet"), "model.head.selector.max_detections=30"])
    assert most_detections(ResizedDetector(Calibrated(detector, [0.5] * 3), Resized((10, 10), (20, 20)), 32)) == 30
    assert most_detections(detector.backbone) is None


def test_the_edges_are_what_scores_must_reach():
    """A calibrated detector's thresholds are scores of its own detections on these very images."""
    detector = build_model(
        "faster_rcnn_fpn",
        CATEGORIES,
        ["model/backbone=resnet18", *SMALL, "model.head.roi.selector.score_threshold=0.2"],
    )
    assert edges_of(detector, 3) == [[0.2] * 3]
    calibrated = Calibrated(detector, [0.5, 0.25, 0.75])
    assert edges_of(calibrated, 3) == [[0.2] * 3, [0.5, 0.25, 0.75]]
    halved = Calibrated(detector, [0.5, 0.25, 0.75], scores=lambda s: s / 2)
    behind = ResizedDetector(halved, Resized((10, 10), (20, 20)), 32)
    assert edges_of(behind, 3) == [[0.1] * 3, [0.25, 0.125, 0.375]]
    assert edges_of(build_model("mtcnn", CATEGORIES, ["model.thresholds=[0.6,0.7,0.8]"]), 3) == [[0.8] * 3]


class Session:
    """As onnxruntime has it: one input of that type and shape, so many outputs."""

    def __init__(self, kind, shape, num):
        self.inputs, self.num = [SimpleNamespace(type=kind, shape=shape)], num

    def get_inputs(self):
        return self.inputs

    def get_outputs(self):
        return [None] * self.num


def test_a_file_that_takes_something_else_than_it_says_is_refused():
    def check(kind="tensor(uint8)", shape=("batch", 3, 8, 8), num=3, **changes):
        exported._check(exported.Contract(**CONTRACT | changes), Session(kind, shape, num))

    check()
    check(shape=(1, 8, 8, 3), layout="bhwc", size=[8, 8], num=4)
    for words, changes in (
        ("layout: must be bchw or bhwc, not 'rgb'", {"layout": "rgb"}),
        (r"size: must be null or \[height, width\], not 'x'", {"size": "x"}),
        ("does not fit what the file takes and gives", {"layout": "bhwc"}),
        ("does not fit what the file takes and gives", {"kind": "tensor(float)"}),
        ("does not fit what the file takes and gives", {"num": 2}),
    ):
        with pytest.raises(ValueError, match=words):
            check(**changes)


def test_an_export_that_fails_leaves_nothing_and_a_place_is_tried_first(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    start = (export.main, monkeypatch, capsys, f"checkpoint={checkpoint}")
    asked = []

    def refuse(*_):
        asked.append(True)
        raise NoFormError("this cannot be said")

    monkeypatch.setattr(export, "write", refuse)
    (tmp_path / "file").touch()
    (tmp_path / "folder.onnx").mkdir()
    assert "file: Not a directory" in call(*start, f"output={tmp_path / 'file' / 'm.onnx'}", code=1)
    assert "folder.onnx is a folder" in call(*start, f"output={tmp_path / 'folder.onnx'}", code=2)
    said = call(*start, f"output={tmp_path / 'm.onnx'}", "size=[64,80]", code=2)
    assert "px after transform.val, and the file would take images of 64 x 80 px alone" in said
    assert not asked
    assert "this cannot be said" in call(*start, f"output={tmp_path / 'a' / 'b' / 'm.onnx'}", code=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.onnx"]


@pytest.mark.parametrize("name", ["onnx", "torch_export"])
def test_a_file_that_does_not_fit_on_the_disk_is_told(name, tmp_path, monkeypatch):
    layer = torch.nn.Conv2d(3, 64, 7)
    graph = torch.export.export(layer, (torch.zeros(1, 3, 8, 8),))
    monkeypatch.setattr(export, "traced", lambda *_, **__: graph)
    options = ExportOptions("a.pt", format=name, size=(8, 8))
    contract = exported.Contract(**CONTRACT)
    path = tmp_path / "own"
    with largest_file(10_000), pytest.raises(OSError, match="File too large"):
        export.write(path, cast("export.Program", layer), contract, options)
    export.write(path, cast("export.Program", layer), contract, options)
    if name == "torch_export":
        assert torch.equal(torch.export.load(path).state_dict["weight"], layer.weight)


@pytest.mark.slow
def test_an_exported_detector_predicts_as_its_checkpoint(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    output = tmp_path / "model.onnx"
    said = call(export.main, monkeypatch, capsys, f"checkpoint={checkpoint}", f"output={output}", "layout=bhwc")
    assert "8 images" in said
    values = next(line for line in said.splitlines() if line.startswith("AP on")).split()
    assert values[4] == values[6], "AP here and by the file, to four digits"
    assert f"next: python tools/predict.py checkpoint={output}" in said
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]

    metadata = exported.onnx_session(output).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == list(exported.load_exported(output)[0].categories.names)
    assert metadata["checkpoint_sha256"] == checksum(checkpoint)
    assert "uint8 RGB (batch, height, width, 3)" in metadata["input"]

    image = next(checkpoint.parent.rglob("train_*.jpg"))
    rows = []
    for path in (checkpoint, output):
        call(
            predict.main,
            monkeypatch,
            capsys,
            f"checkpoint={path}",
            f"input={image}",
            "device=cpu",
            f"output={tmp_path / path.name}_p",
        )
        rows.append(json.loads((tmp_path / f"{path.name}_p" / "detections.json").read_text()))
    assert len(rows[0]) == len(rows[1]) > 0
    for key in ("bbox", "score"):
        np.testing.assert_allclose([r[key] for r in rows[0]], [r[key] for r in rows[1]], atol=0.01)
    refused = call(
        predict.main,
        monkeypatch,
        capsys,
        f"checkpoint={output}",
        f"input={image}",
        "model.head.roi.selector.nms_iou=0.3",
        code=2,
    )
    assert "an exported file, whose model stays as it was exported" in refused


@pytest.fixture
def loaded(checkpoint, monkeypatch):  # noqa: F811
    """A detector as from an exported file for images of 64 x 48 px, which finds one object; it was trained in fp16."""
    one = (np.array([[[1, 2, 30, 40]]], np.float32), np.array([[0.9]], np.float32), np.array([[0]]))
    held = load_checkpoint(checkpoint)
    trainer = {**held.config["trainer"], "precision": "fp16"}
    held = replace(held, detector={}, average=None, config={**held.config, "trainer": trainer}, source="a.onnx")
    detector = ExportedDetector(lambda _: one, size=(64, 48), calibrated=True)
    monkeypatch.setattr(stored_module, "load_exported", lambda path: (held, detector))
    return lambda *overrides: detkit.load("a.onnx", *overrides)


def test_a_picture_of_another_size_than_the_file_takes_is_a_fault_and_the_rest_goes_on(loaded):
    images = [np.full((64, width, 3), width, np.uint8) for width in (48, 60, 48)]
    found = []
    with pytest.raises(ImageError, match=r"^image 2: 64 x 60 px, and the file takes images of 64 x 48 px alone"):
        found.extend(loaded("batch_size=1").stream(images))
    assert [one.file for one in found] == ["image 1", "image 3"]


def test_a_file_of_a_detector_that_was_trained_in_fp16_runs(loaded):
    assert loaded().predict(np.zeros((64, 48, 3), np.uint8)).scores.tolist() == pytest.approx([0.9])


def test_thresholds_in_a_file_are_warned_of_where_it_looks_at_several_views(loaded, caplog):
    image = np.zeros((64, 48, 3), np.uint8)
    loaded().predict(image)
    assert "thresholds" not in caplog.text
    loaded("tta=flip").predict(image)
    assert "a.onnx: its thresholds are in the file and cut what each view has before the merge" in caplog.text


@pytest.mark.slow
def test_a_file_that_resizes_takes_images_as_they_are(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    """A detector that wants 64 px, and pictures of 96 x 90, which are padded then: the file makes one of the other."""
    output = tmp_path / "model.onnx"
    fit = ["transform.val.resize={_target_:ResizeFit,size:64}"]
    start = (monkeypatch, capsys, f"checkpoint={checkpoint}", *fit)
    said = call(export.main, *start, f"output={output}", "resize=true", "size=[90,96]")
    assert "8 images" in said
    values = next(line for line in said.splitlines() if line.startswith("AP on")).split()
    assert values[4] == values[6]
    metadata = exported.onnx_session(output).get_modelmeta().custom_metadata_map
    assert "uint8 RGB (batch, 3, height, width), one image of 90 x 96 px, as they are" in metadata["input"]
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), cv2.resize(cv2.imread(str(next(checkpoint.parent.rglob("train_*.jpg")))), (96, 90)))
    rows = []
    for name, options in {"here": (f"checkpoint={checkpoint}", *fit), "there": (f"checkpoint={output}",)}.items():
        folder = tmp_path / name
        call(
            predict.main,
            monkeypatch,
            capsys,
            *options,
            f"input={image}",
            "device=cpu",
            "score_threshold=0",
            f"output={folder}",
        )
        rows.append(max(json.loads((folder / "detections.json").read_text()), key=lambda row: row["score"]))
    np.testing.assert_allclose(rows[0]["bbox"], rows[1]["bbox"], atol=0.5)
    assert rows[0]["score"] == pytest.approx(rows[1]["score"], abs=0.01), "one grey level is not much"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["nms", "bgr"])
def test_a_file_that_differs_is_not_left_behind(fault, checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    if fault == "nms":
        plain = fixed.nms_marks
        monkeypatch.setattr(fixed, "nms_marks", lambda b, s, iou: plain(b, s, 0.9))
    else:
        plain = export.Program.forward
        monkeypatch.setattr(export.Program, "forward", lambda self, images: plain(self, images.flip(1)))
    said = call(export.main, monkeypatch, capsys, f"checkpoint={checkpoint}", f"output={tmp_path / 'm.onnx'}", code=1)
    assert "finds something else" in said
    assert not list(tmp_path.iterdir())


class Told(Detector):
    """Finds what ``found`` says of the name of an image: what both sides of a comparison are in these tests."""

    def __init__(self, found):
        super().__init__()
        self.found, self.selector = found, Selector()

    def forward(self, images, targets=None):
        return [self.found(meta) for meta in images.meta]


@pytest.fixture
def compared(checkpoint):  # noqa: F811
    """Compare two functions of an image's meta on the pictures of the run: of its right boxes, and the number of its image."""
    options, stored = load_stored(OmegaConf.create({"checkpoint": str(checkpoint)}), ExportOptions, choices={})
    dataset, loader = open_split(stored, options.split)
    right = {}
    for batch in loader:
        for meta, target in zip(batch.images.meta, batch.targets, strict=True):
            right[meta.image_id] = Detections(target.boxes, torch.full((len(target.boxes),), 0.9), target.labels)
    numbers = {image: number for number, image in enumerate(right)}
    assert len(numbers) == 8
    assert all(len(found) for found in right.values())

    def compare(here, there, **changes):
        sides = [Told(lambda m, side=side: side(right[m.image_id], numbers[m.image_id])) for side in (here, there)]
        export._compare(*sides, stored, dataset, loader, replace(options, **changes))

    return compare


def nothing(found, number):
    return found.select(torch.zeros(0, dtype=torch.int64))


def test_more_images_are_looked_at_until_something_is_compared(compared):
    """A fault that only the last images show, of which the first has been asked for: nothing is found in the others."""
    late = lambda found, number: found if number > 5 else nothing(found, number)  # noqa: E731
    compared(late, late, num_images=1)

    def shifted(found, number):
        return replace(late(found, number), boxes=late(found, number).boxes + 1)

    with pytest.raises(export.DiffersError, match="finds something else"):
        compared(late, shifted, num_images=1, evaluate=False)


def test_where_nothing_is_found_the_file_is_not_kept_and_where_little_is_it_is_said(compared, caplog):
    with pytest.raises(ConfigError, match=r"split: the detector finds nothing in 8 images of val, so that nothing of"):
        compared(nothing, nothing, num_images=1)
    one = lambda found, number: found.select(torch.arange(int(number == 0)))  # noqa: E731
    compared(one, one)
    assert "only 1 detections in 8 images could be compared" in caplog.text


def test_no_more_images_than_the_bound_are_looked_at(compared, monkeypatch):
    monkeypatch.setattr(check, "MOST_IMAGES", 3)
    with pytest.raises(ConfigError, match="finds nothing in 3 images"):
        compared(nothing, nothing, num_images=1)


def test_a_file_of_another_ap_is_not_kept(compared, capsys):
    """It finds the same in the images that are held against each other one by one, and something else in others."""
    same = lambda found, number: found  # noqa: E731
    compared(same, same)
    assert "AP on 8 images: 1.0000 here, 1.0000 by the file" in " ".join(capsys.readouterr().out.split())

    def worse(found, number):
        return replace(found, boxes=found.boxes + 3) if number > 5 else found

    with pytest.raises(export.DiffersError, match=r"another AP on 8 images .*: 1.0000 here, 0\.[0-9]+ by the file"):
        compared(same, worse, num_images=4)
    compared(same, worse, num_images=4, evaluate=False)


def test_what_is_no_export_is_told(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    start = (export.main, monkeypatch, capsys, f"checkpoint={checkpoint}")
    assert "output: a file of format=onnx ends in .onnx, not x.pt2" in call(*start, "output=x.pt2", code=2)
    assert "num_images: must be 1 or more, not 0" in call(*start, "num_images=0", code=2)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    url = f"checkpoint='{checkpoint.as_uri()}#sha256={checksum(checkpoint)}'"
    said = call(export.main, monkeypatch, capsys, url, code=2)
    assert "output: say where the file goes, since the checkpoint is a URL" in said
    assert "resize=true needs size=[H,W], the px of the images" in call(*start, "resize=true", code=2)
    mirrored = "transform.val.flip={_target_:HorizontalFlip,p:1.0}"
    said = call(*start, "resize=true", "size=[96,96]", mirrored, code=2)
    assert "transform.val.flip: HorizontalFlip cannot go into a file: export with resize=false" in said
    for tool, more in ((calibrate.main, "target.recall=0.9"), (export.main, "size=[64,64]")):
        said = call(tool, monkeypatch, capsys, "checkpoint=a.onnx", more, code=2)
        assert "a.onnx is an exported file, which evaluate, explain and predict take alone" in said
    for more in ("device=cuda", "precision=bf16"):
        said = call(predict.main, monkeypatch, capsys, "checkpoint=a.onnx", "input=x.jpg", more, code=2)
        assert "a.onnx is an exported file: it takes device=cpu and precision=fp32 alone" in said
    stranger = tmp_path / "stranger.onnx"
    stranger.write_bytes(b"no file of ONNX")
    said = call(predict.main, monkeypatch, capsys, f"checkpoint={stranger}", "input=x.jpg", code=2)
    assert "onnxruntime does not read it" in said
    said = call(predict.main, monkeypatch, capsys, "checkpoint=absent.onnx", "input=x.jpg", code=2)
    assert "absent.onnx: there is no such file" in said


def test_a_size_from_the_command_line_is_a_pair_that_can_be_kept(checkpoint):  # noqa: F811
    """As a list it ended an export with resize=true, since constants are remembered by their values."""
    said = OmegaConf.create({"checkpoint": str(checkpoint), "size": [480, 640]})
    options, _ = load_stored(said, ExportOptions, choices={})
    assert options.size == (480, 640)
