"""Whose weights a file holds, by what its tensors are called."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

#: How torchvision's published files begin (their own names have these digits), of the first Faster R-CNN and
#: RetinaNet; their batch norms are meant without epsilon.
_PUBLISHED_SHA256 = ("258fb6c6", "eeacb38b")

#: A tensor that MobileNetV3 has: torchvision's detectors with it are all of torch's epsilon.
_OF_MOBILENET = "backbone.body.0.0.weight"

#: torch's epsilon of a batch norm; torchvision's detectors have it unless they come from the published weights.
_TORCH_EPS = 1e-5

#: A change of scale that is worth a word: of the batch norm channel with the least variance.
_FACTOR = 1.01

#: Beginnings of names that only one kind of file has, the more special first; what that is, and what to do with it. A
#: {path} is of a state dict, a {file} may have one inside.
_KINDS = (
    (("backbone.body.", "roi_heads.mask_"), "torchvision's Mask R-CNN, which detkit does not have"),
    (("backbone.body.", "roi_heads.keypoint_"), "torchvision's Keypoint R-CNN, which detkit does not have"),
    (("backbone.body.", "roi_heads."), "torchvision's Faster R-CNN: init_from=torchvision:{path}"),
    (("backbone.body.", "head.regression_head.bbox_ctrness."), "torchvision's FCOS, which detkit does not have"),
    (("backbone.body.", "head.classification_head."), "torchvision's RetinaNet: init_from=torchvision:{path}"),
    (("backbone.body.", "head."), "another detector of torchvision's; its Faster R-CNN and RetinaNet alone are taken"),
    (("backbone.bottom_up.",), "detectron2's: init_from=detectron2:{file}"),
    (("backbone.", "rpn_head."), "mmdetection's: init_from=mmdetection:{file}"),
    (("backbone.", "bbox_head."), "mmdetection's: init_from=mmdetection:{file}"),
    (("transformer.", "class_embed."), "DETR, whose weights are not taken"),
    (("model.0.", "model.1."), "a YOLO of ultralytics', whose weights are not taken"),
    (("backbone.", "neck.", "head."), "a detector of detkit's without its checkpoint: take a last.pt or best.pt"),
    (("backbone.", "head."), "a detector of detkit's without its checkpoint: take a last.pt or best.pt"),
    (("layer1.", "layer4."), "a classifier, a ResNet: model.backbone.weights={path}"),
    (("features.", "classifier."), "a classifier of torchvision's: model.backbone.weights={path}"),
    (("conv_stem.", "blocks."), "a classifier of timm's: model/backbone=Timm model.backbone.checkpoint={path}"),
)  # fmt: skip

#: Where other programs put the tensors, beside what else a training needs.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "ema")


def describe_origin(path: Path) -> str:
    """ "; it looks like ..." for a file that is no checkpoint of detkit's; empty where nothing can be told."""
    if path.suffix.lower() in (".onnx", ".pt2"):
        return "; it looks like an exported file, which is for use alone: take the checkpoint that it was made from"
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError):
        return ""  # what is wrong with it has been said
    if not isinstance(state, Mapping):
        return ""
    if {"format", "detector", "categories"} <= state.keys():
        return f"; it looks like a checkpoint of detkit's: init_from={path}"
    inside = next((w for w in _WRAPPERS if isinstance(state.get(w), Mapping)), None)
    names = [str(name).removeprefix("module.") for name in (state if inside is None else state[inside])]
    for beginnings, what in _KINDS:
        if all(any(name.startswith(b) for name in names) for b in beginnings):
            wrapped = f" (under {inside!r}: save that alone first)" if inside and "{path}" in what else ""
            return f"; it looks like {what.format(path=path, file=path)}{wrapped}"
    return ""


def check_norms(detector: nn.Module, state: Mapping[str, Tensor], path: Path, known: str | None = None) -> str:
    """What is to be said of the epsilon of the batch norms in ``state``, which a file does not hold; mostly nothing.

    torchvision's published ``fasterrcnn_resnet50_fpn`` and what was fine-tuned from it has 0 (``overwrite_eps``), all
    else 1e-5. Batch norms that were trained count their batches, and such a model is never of the first kind.

    Args:
        known: a library other than torchvision that the file is of: its batch norms have torch's epsilon.

    Raises:
        ValueError: the epsilon of ``detector`` is surely another one, and a channel has so little variance that it
            matters.
    """
    found = {m.eps for m in detector.modules() if isinstance(m, (_BatchNorm, FrozenBatchNorm2d))}
    variances = [v.min() for k, v in state.items() if k.endswith("running_var")]
    if len(found) != 1 or not variances:
        return ""
    eps, least = found.pop(), float(torch.stack(variances).min())
    is_trained = any(k.endswith("num_batches_tracked") for k in state)
    sure = _TORCH_EPS if is_trained or known or _OF_MOBILENET in state else 0.0 if _is_published(path) else None
    other = (_TORCH_EPS if eps == 0 else 0.0) if sure is None else sure
    factor = _scale(least, min(eps, other)) / _scale(least, max(eps, other))
    if factor < _FACTOR:
        return ""
    change = f"with the other a channel (of variance {least:.2g}) is scaled {factor:.3g} times"
    if sure is not None:
        why = f"{known} has it" if known else _why(sure, is_trained)
        raise ValueError(
            f"{path}: its batch norms have the epsilon {sure:g} ({why}), the model has {eps:g}; {change}: set "
            f"model.backbone.norm_eps={sure:g}"
        )
    return (
        f"{path} does not tell the epsilon of its batch norms: 0 where it was fine-tuned from torchvision's COCO "
        f"weights, else 1e-05; the model has {eps:g}, and {change}: see that model.backbone.norm_eps is right"
    )


def _why(sure: float, is_trained: bool) -> str:
    """What gives the epsilon away."""
    if is_trained:
        return "they count their batches, so they are torch's own"
    return "these are the published weights" if sure == 0 else "torchvision's MobileNetV3 detectors all have it"


def _scale(variance: float, eps: float) -> float:
    return (variance + eps) ** -0.5 if variance + eps > 0 else float("inf")


def _is_published(path: Path) -> bool:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(_PUBLISHED_SHA256)
