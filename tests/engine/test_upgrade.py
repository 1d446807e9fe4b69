"""Checkpoints of format 1: their names and their configuration become today's, and the model is the same."""

import copy

import torch

from detkit.config import validate
from detkit.engine.state.checkpoint import load_checkpoint
from detkit.engine.state.upgrade import upgrade_config, upgrade_weights
from detkit.models import build_detector
from detkit.structures import Categories
from tests.models.builders import build_model, compose_model, small
from tests.models.test_contracts import batch

CATEGORIES = Categories(("a", "b", "c"), (1, 4, 9))
SELECTOR = {"score_threshold": 0.05, "nms_iou": 0.5, "max_detections": 100, "min_size": 0.01}


def plain(name, *overrides):
    from omegaconf import OmegaConf

    return OmegaConf.to_container(compose_model(name, [*small(name), *overrides]))


def as_format_1(weights, model):
    """What a detkit that wrote format 1 would have written of a two-stage model."""
    old = {
        name.replace("head.roi.network.", "head.roi.").replace("head.roi.pool.", "head.roi.deform."): value
        for name, value in weights.items()
    }
    model = copy.deepcopy(model)
    roi = model["head"]["roi"]
    pool, network, selector = roi.pop("pool"), roi.pop("network"), roi.pop("selector")
    pool.pop("in_padding", None)
    pooling = {"RoIAlign": "align", "DeformRoIPool": "deform", "ModulatedDeformRoIPool": "modulated_deform"}
    roi |= {"pooling": pooling[pool.pop("_target_")], "aligned": True} | {
        k: v for k, v in pool.items() if k != "hidden"
    }
    roi |= {k: v for part in (network, selector) for k, v in part.items() if not k.startswith("_")}
    for name in ("rpn_levels", "roi_levels"):
        del model["head"][name]
    for name in ("valid_ranges", "class_share", "agnostic_above", "convs", "norm"):
        del roi[name]
    for name in ("num_convs", "min_score", "in_padding"):
        del model["head"]["rpn"][name]
    for name in ("offset", "in_padding"):
        del model["head"]["rpn"]["anchors"][name]
    return old, model


def test_a_two_stage_model_of_format_1_is_the_same_model(tmp_path):
    for pool in ("RoIAlign", "DeformRoIPool", "ModulatedDeformRoIPool"):
        overrides = [f"region_pool@model.head.roi.pool={pool}"]
        torch.manual_seed(0)
        detector = build_model("faster_rcnn_fpn", CATEGORIES, [*small("faster_rcnn_fpn"), *overrides]).eval()
        weights, model = as_format_1(detector.state_dict(), plain("faster_rcnn_fpn", *overrides))
        config = {"model": model, "seed": 0}
        path = tmp_path / f"{pool}.pt"
        state = {"format": 1, "step": 3, "detector": weights, "average": {"detector": weights, "num": 2},
                 "categories": CATEGORIES.to_dict(), "config": config, "metrics": {}, "training": None, "versions": {}}  # fmt: skip
        torch.save(state, path)
        checkpoint = load_checkpoint(path)
        for part in checkpoint.config["model"].values():
            validate(part)
        again = build_detector(checkpoint.config["model"], CATEGORIES).eval()
        again.load_state_dict(checkpoint.detector)
        again.load_state_dict(checkpoint.weights)
        images, targets = batch()
        with torch.no_grad():
            before, after = detector(images, targets), again(images, targets)
        assert {k: v.item() for k, v in before.terms.items()} == {k: v.item() for k, v in after.terms.items()}


def test_dense_heads_of_format_1_get_their_selector():
    for name in ("retinanet", "centernet", "yolov1"):
        model = plain(name)
        selector = {k: v for k, v in model["head"].pop("selector").items() if k in SELECTOR or k == "_target_"}
        old = {"model": {**model, "head": {**model["head"], **{k: v for k, v in selector.items() if k != "_target_"}}}}
        old["model"]["head"].pop("level", None)
        new = upgrade_config(old)["model"]["head"]
        assert new["selector"] == selector
        validate(new)


def test_what_is_of_today_stays_as_it_is():
    config = {"model": plain("faster_rcnn_fpn"), "seed": 0}
    assert upgrade_config(config) == config
    assert upgrade_config({"model": {"_target_": "MyDetector"}}) == {"model": {"_target_": "MyDetector"}}
    weights = build_model("faster_rcnn_fpn", CATEGORIES, small("faster_rcnn_fpn")).state_dict()
    assert list(upgrade_weights(weights)) == list(weights)
