"""Starting from weights: what is taken over, and what starts anew."""

import logging

import pytest
import torch

from detkit.app.init_from import class_layers, initialize
from detkit.config import ConfigError
from detkit.engine.checkpoint import Checkpoint, save_checkpoint
from detkit.models import build_detector
from detkit.structures import Categories
from tests.models.builders import compose_model

ONE, OTHER = Categories(("a", "b", "c"), (1, 2, 3)), Categories(("x", "y", "z"), (1, 2, 3))
LAYERS = [f"head.roi.{layer}.{kind}" for layer in ("cls_score", "bbox_pred") for kind in ("weight", "bias")]


@pytest.fixture(scope="module")
def model():
    overrides = ["model/backbone=resnet18_narrow", "model.neck.out_channels=16", "model.head.roi.network.hidden=[32]"]
    return compose_model("faster_rcnn_fpn", overrides)


@pytest.fixture
def checkpoint(model, tmp_path):
    torch.manual_seed(1)
    trained = build_detector(model, ONE)
    save_checkpoint(
        tmp_path / "best.pt",
        Checkpoint(step=7, detector=trained.state_dict(), categories=ONE, config={}, metrics={}),
    )
    return tmp_path / "best.pt", trained.state_dict()


def loaded(model, path, categories):
    torch.manual_seed(2)
    detector = build_detector(model, categories)
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    initialize(detector, str(path), categories, model)
    return before, detector.state_dict()


def test_class_layers_are_those_whose_shape_depends_on_the_classes(model):
    assert class_layers(model, ONE) == LAYERS


def test_same_classes_take_everything(model, checkpoint):
    path, trained = checkpoint
    _, state = loaded(model, path, ONE)
    assert all(torch.equal(state[k], v) for k, v in trained.items())


def test_other_classes_start_their_layers_anew_even_when_as_many(model, checkpoint, caplog):
    path, trained = checkpoint
    with caplog.at_level(logging.WARNING, "detkit"):
        before, state = loaded(model, path, OTHER)
    for name, value in trained.items():
        assert torch.equal(state[name], before[name] if name in LAYERS else value), name
    assert "head.roi.network.cls_score.weight" in caplog.text


def test_files_that_do_not_fit(model, checkpoint, tmp_path):
    detector = build_detector(model, ONE)
    with pytest.raises(ConfigError, match=r"init_from: .*nowhere\.pt: there is no such file"):
        initialize(detector, "nowhere.pt", ONE, model)
    with pytest.raises(ConfigError, match=r"init_from: weights: no file 'nowhere\.pth'"):
        initialize(detector, "torchvision:nowhere.pth", ONE, model)
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="is not a readable state dict"):
        initialize(detector, f"torchvision:{tmp_path / 'broken.pth'}", ONE, model)
