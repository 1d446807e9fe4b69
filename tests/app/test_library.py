"""detkit from Python: several detectors one after another, plain numpy back, and nothing of Hydra left behind."""

import json
import re
from dataclasses import fields

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

import detkit
from detkit.app import library
from detkit.app.assemble.schema import PredictOptions
from detkit.app.use import predict
from detkit.config import ConfigError
from detkit.structures import Losses
from tests.app.documents import ROOT, own_experiment
from tests.app.tools import call, train_briefly
from tests.engine.stubs import make_batch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return train_briefly(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)


def test_an_image_from_memory_is_one_from_a_file(checkpoint, image, tmp_path):
    file = tmp_path / "one.png"
    Image.fromarray(image).save(file)
    predictor = detkit.load(checkpoint, device="cpu")
    found = predictor.predict(image)
    assert len(found) > 0
    assert found.boxes.shape == (len(found), 4)
    assert (found.boxes[:, 2:] >= found.boxes[:, :2]).all()
    assert found.boxes[:, [0, 2]].max() <= 96
    assert found.boxes[:, [1, 3]].max() <= 48
    assert (np.diff(found.scores) <= 0).all()
    assert set(found.names) <= set(predictor.class_names)
    for other in (file, str(file), Image.fromarray(image)):
        np.testing.assert_array_equal(predictor.predict(other).boxes, found.boxes)
    assert predictor.predict(file).file == str(file)


def test_a_picture_of_16_bits_is_its_file(checkpoint, image, tmp_path):
    file = tmp_path / "deep.png"
    Image.fromarray(image[:, :, 0].astype(np.uint16) * 257).save(file)
    predictor = detkit.load(checkpoint, device="cpu")
    with Image.open(file) as opened:
        np.testing.assert_array_equal(predictor.predict(opened).boxes, predictor.predict(file).boxes)


def test_it_is_what_the_command_line_finds(checkpoint, image, tmp_path, monkeypatch, capsys):
    Image.fromarray(image).save(tmp_path / "one.png")
    output = tmp_path / "out"
    arguments = [f"checkpoint={checkpoint}", f"input={tmp_path / 'one.png'}", f"output={output}", "device=cpu"]
    call(predict.main, monkeypatch, capsys, *arguments)
    rows = sorted(json.loads((output / "detections.json").read_text()), key=lambda row: -row["score"])
    found = detkit.load(checkpoint, device="cpu").predict(image)
    np.testing.assert_allclose([row["score"] for row in rows], found.scores)
    assert [row["category_id"] for row in rows] == found.category_ids.tolist()
    x1, y1, x2, y2 = found.boxes.T
    np.testing.assert_allclose([row["bbox"] for row in rows], np.stack([x1, y1, x2 - x1, y2 - y1], 1))


def test_several_images_come_in_their_order(checkpoint, image, tmp_path):
    for i in range(3):
        Image.fromarray(np.roll(image, i, axis=1)).save(tmp_path / f"{i}.png")
    predictor = detkit.load(checkpoint, "batch_size=2", device="cpu")
    by_folder = predictor.predict(tmp_path)
    by_list = predictor.predict([tmp_path / "0.png", np.roll(image, 1, axis=1), tmp_path / "2.png"])
    assert [found.file for found in by_folder] == [str(tmp_path / f"{i}.png") for i in range(3)]
    for a, b in zip(by_folder, by_list, strict=True):
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-4)


def test_what_was_found_can_be_drawn_filtered_and_sent(checkpoint, image):
    found = detkit.load(checkpoint, device="cpu").predict(image)
    middle = float(np.median(found.scores))
    some = found.above(middle)
    assert 0 < len(some) < len(found)
    assert (some.scores >= middle).all()
    drawn = found.draw()
    assert drawn.shape == image.shape
    assert (drawn != image).any()
    np.testing.assert_array_equal(found.image, image)
    assert found.to_list()[0] == {
        "class": found.names[0], "category_id": int(found.category_ids[0]), "score": float(found.scores[0]), "box": found.boxes[0].tolist(),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros((4, 4), np.uint8), r"image 1 is uint8 \(4, 4\), not uint8 \(H, W, 3\) RGB"),
        (np.zeros((4, 4, 3), np.float32), r"image 1 is float32 \(4, 4, 3\), not uint8"),
        (Image.new("RGB", (0, 5)), "image 1: 0 x 5 px hold nothing"),
        (Image.new("F", (4, 4)), "image 1: cannot convert pixels of the mode F to RGB"),
        ("nowhere.png", "no file or folder 'nowhere.png'"),
    ],
)
def test_what_is_no_image_is_refused(checkpoint, bad, words):
    with pytest.raises(ValueError, match=words):
        detkit.load(checkpoint, device="cpu").predict(bad)
    with pytest.raises(TypeError, match="image 2 is a int"):
        detkit.load(checkpoint, device="cpu").predict([np.zeros((4, 4, 3), np.uint8), 3])


def test_a_damaged_file_is_named(checkpoint, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.jpg"):
        detkit.load(checkpoint, device="cpu").predict(tmp_path / "bad.jpg")


def test_several_live_beside_each_other_and_hydra_is_as_it_was(checkpoint, image):
    first = detkit.load(checkpoint, device="cpu")
    before = first.predict(image).boxes
    second = detkit.load(checkpoint, "model.head.roi.selector.score_threshold=0.9", device="cpu")
    assert len(second.predict(image)) < len(before)
    np.testing.assert_array_equal(first.predict(image).boxes, before)
    assert not GlobalHydra.instance().is_initialized()


def test_an_override_that_does_not_fit_is_told(checkpoint):
    with pytest.raises(ConfigError, match="score_treshold'; did you mean 'score_threshold'"):
        detkit.load(checkpoint, "model.head.roi.selector.score_treshold=0.5")
    with pytest.raises(ConfigError, match="model: no option 'faster_rcnn'; did you mean 'faster_rcnn_fpn'"):
        detkit.create("faster_rcnn", ["a"])


@pytest.mark.parametrize(
    "override", ["score_threshold=0.9", "format=csv", "output=out", "input=a.png", "checkpoint=b.pt", "image_prefix=a"]
)
def test_an_option_of_predict_without_use_is_refused(checkpoint, override):
    with pytest.raises(ConfigError) as caught:
        detkit.load(checkpoint, override, "hydra.job.chdir=true")
    told, hydra = caught.value.errors
    assert told.startswith(f"{override.partition('=')[0]}: ")
    assert hydra == "hydra.job.chdir: a key of Hydra's, which does nothing here"


def test_every_option_of_predict_is_of_use_or_refused(checkpoint):
    of_use = {"device": "cpu", "precision": "fp32", "unknown": "false", "batch_size": "2", "tta": "flip"}
    assert {field.name for field in fields(PredictOptions)} == of_use.keys() | library._NOT_LOADED.keys()
    assert detkit.load(checkpoint, *(f"{key}={value}" for key, value in of_use.items()))


def test_the_folder_of_a_run_is_not_named_as_to_hydra(tmp_path):
    with pytest.raises(ConfigError, match=r"^hydra.run.dir: folder= names the folder of the run$"):
        detkit.train(["experiment=quickstart", f"run_root={tmp_path}", f"hydra.run.dir={tmp_path / 'x'}"])
    with pytest.raises(ConfigError, match=r"^hydra.run.dir: a key of Hydra's"):
        detkit.create("faster_rcnn_fpn", ["a"], "hydra.run.dir=x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["faster_rcnn_fpn", "experiment=quickstart"])
def test_a_model_takes_keys_of_the_model_alone(model):
    outside = ("optim.lr=3", "debug=fast", "~transform.train", "dataset@data.train=CocoDataset", "modell.x=1")
    with pytest.raises(ConfigError) as caught:
        detkit.create(model, ["a"], "model.backbone.weights=null", "model.nck=1", *outside)
    told = [line.partition(": ")[0] for line in caught.value.errors]
    assert told == ["optim.lr", "debug", "transform.train", "dataset@data.train", "modell.x"]
    with pytest.raises(ConfigError, match=r"^model\.nck: no key 'nck'; did you mean 'neck'\?$"):
        detkit.create(model, ["a"], "model.backbone.weights=null", "model.nck=1")


def test_a_model_takes_every_form_of_its_keys(capsys):
    loss, layers = "loss@model.head.roi.box_loss=GIoULoss", "++model.head.roi.network.hidden=[32]"
    detector = detkit.create("experiment=quickstart", ["a"], "model/neck=single_level", loss, layers)
    assert type(detector.head.roi.box_loss).__name__ == "GIoULoss"
    assert detector.head.roi.network.fcs[0].out_features == 32
    assert "note: model/neck=single_level: model.neck is SingleLevel now" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["cat", [1, 2]])
def test_classes_are_a_list_of_names(names):
    with pytest.raises(TypeError, match=r"^categories: .* is no list of names, like \['cat', 'dog'\]$"):
        detkit.create("experiment=quickstart", names)


def test_overrides_are_a_list():
    with pytest.raises(TypeError, match=r"^overrides: give a list: \['experiment=quickstart'\]$"):
        detkit.train("experiment=quickstart")


def test_a_detector_for_a_loop_of_ones_own_learns():
    torch.manual_seed(0)
    detector = detkit.create("experiment=quickstart", ["circle", "square"], "model.backbone.norm=frozen_bn").train()
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01)
    batch = make_batch([1, 2], [1, 2])
    totals = []
    for _ in range(3):
        losses = detector(batch.images, batch.targets)
        assert isinstance(losses, Losses)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.item())
    assert totals[-1] < totals[0]


def test_a_run_from_a_notebook(tmp_path):
    small = [
        "experiment=quickstart",
        "debug=fast",
        "device=cpu",
        f"data.root={tmp_path / 'data'}",
        f"run_root={tmp_path}",
    ]
    small += ["data.train.num_train=4", "data.train.num_val=2", "data.train.image_size=64"]
    run = detkit.train(small)
    assert run.folder.parent == tmp_path / "quickstart"
    assert run.result["steps"] == 2
    assert run.best == run.result["best"]
    assert detkit.load(run.checkpoint, device="cpu").class_names
    assert not GlobalHydra.instance().is_initialized()
    with pytest.raises(ConfigError, match="sweep=neck is a list of jobs"):
        detkit.train([*small, "sweep=neck"])
    with pytest.raises(ConfigError, match="own_configs: there is no folder nowhere"):
        detkit.train(small, own_configs="nowhere")
    with pytest.raises(ConfigError, match=r"optim\.lrr"):
        detkit.train([*small, "optim.lrr=1"])


def test_an_experiment_of_ones_own(tmp_path, monkeypatch):
    """README's file; what it says counts, and the checkpoint needs it no more."""
    file = tmp_path / "mycfg/experiment/foo.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(own_experiment())
    monkeypatch.chdir(tmp_path)
    small = ["device=cpu", "data.train.num_train=4", "data.train.num_val=2", "data.train.image_size=64"]
    small += ["data.loader.train.batch_size=2", "data.loader.train.num_workers=0", "data.loader.val.num_workers=0"]
    run = detkit.train(["experiment=foo", *small], own_configs="mycfg")
    assert run.result["steps"] == 7
    assert run.folder.parent.name == "foo"
    file.unlink()
    assert len(detkit.load(run.checkpoint, device="cpu").class_names) == 6


def test_the_page_works_word_for_word(image, tmp_path, monkeypatch, capsys):
    """Each of its pieces after the one before, as in a notebook; only the run is made smaller."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), re.DOTALL)
    small = ["debug=fast", "device=cpu", "data.train.num_train=4", "data.train.num_val=2", "data.train.image_size=64"]
    names = {"image": image}
    monkeypatch.chdir(tmp_path)
    assert len(blocks) == 3
    for block in blocks:
        exec(block.replace('"trainer.steps=200"', f"*{small}"), names)
    assert (tmp_path / names["run"].checkpoint).is_file()
    assert names["picture"].shape == image.shape
    assert len(names["batch"].targets) == 4
    assert "rpn_cls" in capsys.readouterr().out
