"""``tools/import.py``: a file of another library becomes a checkpoint that every tool reads, or nothing is written."""

import json
import shutil
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import detkit
from detkit.app.assemble.stored import Stored
from detkit.app.import_weights import certificate, tool
from detkit.app.import_weights.certificate import DiffersError, Expected, certified, read_expected
from detkit.config import ConfigError
from detkit.engine.state.checkpoint import load_checkpoint
from detkit.models import build_detector
from detkit.models.converters import Foreign
from detkit.structures import Categories, Detections
from tests.app.tools import call
from tests.models.test_foreign_weights import RGB_MEAN, detectron2_rcnn, mmdetection_centernet, stats

STYLE = "model = dict(backbone=dict(type='ResNet', depth={depth}, style='{style}'))"
NAMES = ["nut", "bolt"]


def trained(shapes):
    """Random weights that keep the size of what goes through them, as those of a trained network do."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        inputs = torch.Size(shape[1:]).numel() if len(shape) > 1 else 1
        value = torch.randn(shape, generator=generator) * (2 / inputs) ** 0.5
        is_norm = f"{name.rpartition('.')[0]}.running_var" in shapes
        ones = is_norm and name.endswith(("weight", "running_var"))
        state[name] = torch.ones(shape) if ones else value if len(shape) > 1 else value * 0.1
    return state


def centernet():
    state = trained(mmdetection_centernet(2))
    for name in state:
        if "conv_offset" in name:
            state[name] = state[name] * 0.01  # else they all lead out of the map
    state["bbox_head.heatmap_head.2.weight"] = state["bbox_head.heatmap_head.2.weight"] * 5  # peaks, not a plain
    state["bbox_head.wh_head.2.bias"] = torch.tensor([8.0, 6.0])  # in cells
    return state


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A folder with a file of mmdetection's, and a picture."""
    folder = tmp_path_factory.mktemp("theirs")
    torch.save(
        {"state_dict": centernet(), "meta": {"config": STYLE.format(depth=18, style="pytorch")}}, folder / "a.pth"
    )
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.png")
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *words, code=0: call(tool.main, monkeypatch, capsys, *words, code=code)


def given_of(folder, out, **more):
    given = {"source": f"mmdetection:{folder / 'a.pth'}", "output": str(out / "own.pt"), "names": NAMES}
    return given | {key: str(value) for key, value in more.items()}


def words_of(folder, out, **more):
    return [f"{key}={value}" for key, value in (given_of(folder, out, **more) | {"names": "[nut,bolt]"}).items()]


def numbers(found):
    columns = {"boxes": found.boxes.tolist(), "scores": found.scores.tolist(), "classes": found.names}
    return {"image": "photo.png", **columns}


def test_a_file_becomes_a_checkpoint_with_its_configuration_beside_it(theirs, tmp_path):
    tool.run(OmegaConf.create(given_of(theirs, tmp_path)), tmp_path)
    own = load_checkpoint(tmp_path / "own.pt")
    assert own.categories.names == tuple(NAMES)
    config = OmegaConf.load(tmp_path / "own.yaml")
    assert config == OmegaConf.create(dict(own.config))
    assert config.model.neck.conv == "modulated_deform"
    assert (tmp_path / "own.yaml").read_text().startswith(f"# mmdetection:{theirs / 'a.pth'} as own.pt has it: ")


def test_statistics_of_the_file_are_those_of_the_imported_detector(theirs, tmp_path):
    said = "model = dict(data_preprocessor=dict(mean=[1, 2, 3], std=[255, 254, 253], bgr_to_rgb=False))"
    torch.save({"state_dict": centernet(), "meta": {"config": said}}, tmp_path / "b.pth")
    tool.run(
        OmegaConf.create(given_of(theirs, tmp_path, source=f"mmdetection:{tmp_path / 'b.pth'}") | {"names": NAMES}),
        tmp_path,
    )
    own = load_checkpoint(tmp_path / "own.pt")
    detector = build_detector(OmegaConf.to_container(OmegaConf.create(dict(own.config)))["model"], own.categories)
    assert detector.pixel_mean.flatten().tolist() == [3, 2, 1], "of R, G and B"
    assert detector.pixel_std.flatten().tolist() == [253, 254, 255]
    assert torch.equal(own.weights["backbone.conv1.weight"], centernet()["backbone.conv1.weight"].flip(1))


@pytest.mark.slow
def test_an_imported_detector_is_read_by_every_tool_and_certified_against_stored_numbers(theirs, tmp_path, run):
    assert "imported:" in run(*words_of(theirs, tmp_path))
    own = load_checkpoint(tmp_path / "own.pt")
    found = detkit.load(tmp_path / "own.pt", device="cpu").predict(theirs / "photo.png")
    assert (found.scores >= 0.4).sum() > 3
    row = numbers(found)
    (theirs / "found.json").write_text(json.dumps([row]))
    certify_planted_differences(row, theirs, own)
    torch.save({"state_dict": centernet()}, theirs / "bgr.pth")
    words = words_of(
        theirs, tmp_path / "other", source=f"mmdetection:{theirs / 'bgr.pth'}", style="pytorch",
        certify=theirs / "found.json",
    )  # fmt: skip
    assert "certified: " in run(*words)
    assert "certified: " in (tmp_path / "other" / "own.yaml").read_text()
    state = centernet()
    state["backbone.conv1.weight"] = state["backbone.conv1.weight"].flip(1)
    torch.save({"state_dict": state}, theirs / "bgr.pth")
    for file in (tmp_path / "other").iterdir():
        file.unlink()
    assert "Another style or other settings? Nothing was written" in run(*words, code=1)
    assert not list((tmp_path / "other").iterdir())


def certify_planted_differences(row, theirs, own):
    """Another box, score or class, and one too many are each seen."""
    config = OmegaConf.to_container(OmegaConf.create(dict(own.config)), resolve=True)
    detector = build_detector(config["model"], own.categories)
    detector.load_state_dict(own.weights)
    stored = Stored(own, config, detector.eval(), torch.device("cpu"))

    def certify(**changes):
        (theirs / "other.json").write_text(json.dumps([{**row, **changes}]))
        return certified(stored, read_expected(theirs / "other.json", own.categories))

    assert certify().least_iou == pytest.approx(1.0, abs=1e-4)
    for changes in (
        {"boxes": [[x + 9, y, z + 9, w] for x, y, z, w in row["boxes"]]},
        {"scores": [min(1.0, score + 0.1) for score in row["scores"]]},
        {"classes": [NAMES[1 - NAMES.index(name)] for name in row["classes"]]},
        {key: row[key][1:] for key in ("boxes", "scores", "classes")},
    ):
        with pytest.raises(DiffersError, match="only one of both libraries finds"):
            certify(**changes)
    with pytest.raises(ConfigError, match=r"certify: .*other.json: photo.png: no class is called nail"):
        certify(classes=["nail"] * len(row["classes"]))
    with pytest.raises(ConfigError, match=r"certify: .*other.json: there is no image .*nowhere.png"):
        certify(image="nowhere.png")
    with pytest.raises(ConfigError, match=r"certify: .*other.json: photo.png: .* boxes, 1 scores"):
        certify(scores=[0.5])
    with pytest.raises(ConfigError, match=r"certify: .*nowhere.json"):
        read_expected(theirs / "nowhere.json", own.categories)


def test_a_score_that_is_not_compared_certifies_nothing(monkeypatch):
    """Between 0.30 and 0.33 a detection may be on one side alone."""
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    monkeypatch.setattr(certificate, "_found", lambda stored, images: [nothing])
    for score in (0.31, 0.29):
        invented = Detections(torch.tensor([[1.0, 1, 9, 9]]), torch.tensor([score]), torch.tensor([0]))
        with pytest.raises(ConfigError, match=r"certify: no detection of 1 images scores 0\.33: that proves nothing"):
            certified(cast("Stored", None), [Expected(Path("a.png"), invented)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"image": "photo.png", "boxes": [[1,1,2,2,30,30,40,40]], "scores": [0.9], "classes": ["nut"]}]',
         r"photo.png: box 1 must be \[x1, y1, x2, y2\], not \[1, 1, 2, 2, 30, 30, \.\.\.\]"),
        ('[{"image": "photo.png", "boxes": [[1,1,2,2], [1,2,3]], "scores": [0.9, 0.8], "classes": ["nut", "nut"]}]',
         r"photo.png: box 2 must be \[x1, y1, x2, y2\], not \[1, 2, 3\]"),
        ('[{"image": "photo.png", "boxes": [[1,1,2,NaN]], "scores": [0.9], "classes": ["nut"]}]', "photo.png: box 1 must"),
        ('[{"image": "photo.png", "boxes": [[1,1,2,2]], "scores": ["x"], "classes": ["nut"]}]', "score 1 must be a number"),
        ('[{"image": "photo.png", "boxes": [[1,1,2,2]], "scores": [0.9], "classes": [7]}]', "no class is called 7"),
        ('[{"image": "photo.png", "scores": [], "classes": []}]', "photo.png: 'boxes' must be a list"),
        ('[{"image": 5}]', "row 1 names no image"),
        ('{"image": "photo.png"}', "it holds no list"),
        ("[" * 100_000, "recursion depth"),
    ],
)  # fmt: skip
def test_numbers_of_another_form_are_named(text, words, tmp_path, theirs):
    shutil.copy(theirs / "photo.png", tmp_path)
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"certify: .*found.json: .*{words}"):
        read_expected(tmp_path / "found.json", Categories(tuple(NAMES), (1, 2)))


def test_a_certificate_image_that_cannot_be_read_is_named(theirs, tmp_path):
    (tmp_path / "cut.png").write_bytes((theirs / "photo.png").read_bytes()[:99])
    row = {"image": "cut.png", "boxes": [[1, 1, 9, 9]], "scores": [0.9], "classes": ["nut"]}
    (tmp_path / "found.json").write_text(json.dumps([row]))
    given = given_of(theirs, tmp_path, certify=tmp_path / "found.json")
    with pytest.raises(ConfigError, match=r"certify: .*cut.png: "):
        tool.run(OmegaConf.create(given), tmp_path)


def test_what_is_wrong_is_told_with_its_key_and_nothing_is_written(theirs, tmp_path, run):
    def refused(words, **more):
        given = {
            "source": f"mmdetection:{theirs / 'a.pth'}",
            "output": str(tmp_path / "own.pt"),
            "names": NAMES,
            **more,
        }
        with pytest.raises(ConfigError, match=words):
            tool.run(OmegaConf.create(given), tmp_path)

    refused("source: must be detectron2:FILE or mmdetection:FILE, not 'a.pth'", source="a.pth")
    refused(r"source: nowhere.pth: there is no such file", source="mmdetection:nowhere.pth")
    refused("names: the file has 2 classes, not 1", names=["nut"])
    refused("names: the file has 2 classes and does not name them", names=None)
    refused("says that it is of the style pytorch, not caffe", style="caffe")
    refused("output: the checkpoint ends in .pt, not here.onnx", output="here.onnx")
    refused("names: category name given more than once: .'nut'", names=["nut", "nut"])
    (tmp_path / "own.yaml").write_text("mine")
    refused("own.yaml is there; nothing is written over")
    (tmp_path / "own.yaml").unlink()
    torch.save({"state_dict": {"bbox_head.heatmap_head.2.bias": torch.zeros(2)}}, tmp_path / "b.pth")
    few = {"source": f"mmdetection:{tmp_path / 'b.pth'}"}
    refused("style: the file does not tell it: style=caffe for BGR", **few)
    refused("style: CenterNet's ResNet-18 is of the style pytorch alone", style="caffe", **few)
    torch.save({"state_dict": {"roi_heads.a": torch.zeros(1)}}, tmp_path / "b.pth")
    refused("source: its last layers are missing: it is not one of mmdetection's .* tensor is roi_heads.a", **few)
    state = centernet()
    del state["backbone.conv1.weight"], state["neck.deconv_layers.0.bn.bias"]
    torch.save({"state_dict": state}, tmp_path / "b.pth")
    words = "lacks 2 tensors of the model: backbone.conv1.weight, neck.steps.0.conv_norm.bias"
    refused(words, style="pytorch", **few)
    state = centernet()
    state["backbone.conv1.weight"][0, 0, 0, 0] = float("inf")
    torch.save({"state_dict": state}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"b.pth is of no use: backbone.conv1.weight has 1 of 9408 values not finite"):
        tool.run(OmegaConf.create(given_of(theirs, tmp_path, style="pytorch", **few) | {"names": NAMES}), tmp_path)
    assert not list(tmp_path.glob("own.*"))


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("backbone.conv1.weight", lambda t: t.to(torch.int8), "1 of another type .'backbone.conv1.weight int8'"),
        ("backbone.conv1.weight", lambda t: t.to(torch.complex64), "1 of another type .'backbone.conv1.weight complex64'"),
        ("backbone.conv1.weight", lambda t: t.to_sparse(), "b.pth: the tensor backbone.conv1.weight is sparse_coo, not dense"),
        ("backbone.conv1.weight", lambda t: t.to("meta"), "the tensor backbone.conv1.weight is a shape without values"),
        ("backbone.conv1.weight", lambda t: t.sum(), r"backbone.conv1.weight \(\) for \(64, 3, 7, 7\)"),
        ("bbox_head.heatmap_head.2.bias", lambda t: t.sum(), r"bbox_head.heatmap_head.2.bias \(\) has no rows"),
        ("bbox_head.heatmap_head.2.weight", lambda t: t.sum(), r"have no rows: head.heat.2.weight \(\)"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_weights_are_named(name, changed, words, theirs, tmp_path):
    state = centernet()
    state[name] = changed(state[name])
    torch.save({"state_dict": state}, tmp_path / "b.pth")
    given = given_of(theirs, tmp_path, source=f"mmdetection:{tmp_path / 'b.pth'}", style="pytorch")
    with pytest.raises(ConfigError, match=words):
        tool.run(OmegaConf.create(given), tmp_path)
    assert not list(tmp_path.glob("own.*"))


def test_a_first_layer_without_channels_is_left_for_loading_to_name():
    state = {**centernet(), "backbone.conv1.weight": torch.tensor(1.0)}
    found, _ = Foreign("mmdetection", state, None, tuple(NAMES)).converted(Categories(tuple(NAMES), (1, 2)), "caffe")
    assert found["backbone.conv1.weight"].shape == ()


def test_where_the_second_file_cannot_be_written_the_first_does_not_stay(theirs, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(tool, "atomic_write", full)
    with pytest.raises(OSError, match="No space left on device"):
        tool.run(OmegaConf.create(given_of(theirs, tmp_path / "new")), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_faster_rcnn_of_detectron2_finds_something(tmp_path, theirs, run):
    state = trained(detectron2_rcnn(80))
    state |= stats(RGB_MEAN[::-1], [1.0] * 3)
    torch.save({"model": state}, tmp_path / "model_final.pth")
    run(f"source=detectron2:{tmp_path / 'model_final.pth'}", f"output={tmp_path / 'own.pt'}")
    own = load_checkpoint(tmp_path / "own.pt")
    assert len(own.categories) == 80
    backbone = own.config["model"]["backbone"]
    assert (backbone["stride_in_1x1"], backbone["pixel_std"]) == (True, [1.0, 1.0, 1.0])
    assert detkit.load(tmp_path / "own.pt", device="cpu").predict(theirs / "photo.png").boxes.shape[1] == 4
