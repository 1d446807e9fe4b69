"""Whether ImageNet's weights of a backbone are to be had, without fetching them."""

from __future__ import annotations

import urllib.request
from http.client import HTTPException
from pathlib import Path

import torch
from torchvision.models import MobileNet_V2_Weights, ResNet50_Weights

#: Of the backbones that recipes start from.
_WEIGHTS = {"mobilenetv2": MobileNet_V2_Weights.IMAGENET1K_V1, "resnet50": ResNet50_Weights.IMAGENET1K_V1}

_PATIENCE = 5  # seconds without an answer


def at_hand(backbone: str) -> bool:
    """Whether the weights of the preset ``backbone`` lie in torch's cache (TORCH_HOME), or their server answers."""
    url = _WEIGHTS[backbone].url
    return (Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]).is_file() or _answers(url)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PATIENCE):
            return True
    except (OSError, HTTPException):
        return False
