"""What the published implementation gives (golden.json), and the files that tests of it read where they are."""

import json
import os
from pathlib import Path

import pytest
import torch

from detkit.models.mtcnn.nets import ONet, PNet, RNet

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


def weights_folder():
    """TORCH_HOME/mtcnn with pnet.pt, rnet.pt, onet.pt of facenet-pytorch; skips without it."""
    folder = Path(os.environ.get("TORCH_HOME", "")) / "mtcnn"
    if not os.environ.get("TORCH_HOME") or not folder.is_dir():
        pytest.skip("TORCH_HOME has no mtcnn/ with the published weights")
    return folder


def image_folder():
    """DETKIT_DATA/facemask/images; skips without it."""
    folder = Path(os.environ.get("DETKIT_DATA", "")) / "facemask" / "images"
    if not os.environ.get("DETKIT_DATA") or not folder.is_dir():
        pytest.skip("DETKIT_DATA has no facemask/images")
    return folder


def published_nets():
    nets = PNet(), RNet(), ONet(1, num_landmarks=5)
    for net, name in zip(nets, ("pnet", "rnet", "onet"), strict=True):
        net.load_state_dict(torch.load(weights_folder() / f"{name}.pt", weights_only=True))
    return nets
