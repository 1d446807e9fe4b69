"""MTCNN beside the published implementation in PyTorch, facenet-pytorch: the same weights, pictures and boxes."""

from __future__ import annotations

import argparse
import importlib
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich
import torch
from PIL import Image
from torch import Tensor

from benchmarks.timing import time_alternately
from detkit.config import ConfigError
from detkit.config.ranges import check_range
from detkit.models import MTCNN
from detkit.structures import ImageMeta, Images

#: height, width px
SIZE = (480, 640)

#: px by which the two may differ. Sums in another order move a box by 1e-4 px; where that moves a crop's corner over a
#: whole px, where it is cut off, the network sees another crop, and the box moves by some tenths.
TOLERANCE = 1.0

PICTURES = (".bmp", ".jpeg", ".jpg", ".png")


def main(arguments: Sequence[str]) -> None:
    """The command line of ``tools/benchmark.py mtcnn``.

    Raises:
        ConfigError: there are no pictures, or facenet-pytorch is not installed.
    """
    parser = argparse.ArgumentParser(
        prog="benchmark.py mtcnn", description="Time MTCNN beside facenet-pytorch: one picture at a time, on the CPU."
    )
    parser.add_argument("--images", type=Path, required=True, help="a folder of pictures, of which the first are taken")
    parser.add_argument("--num", type=int, default=40, help="how many")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    check_range("--num", options.num, 1)
    check_range("--threads", options.threads, 1)
    peer, pictures = published(), read_pictures(options.images, options.num)
    torch.set_num_threads(options.threads)
    rich.print(compare(peer, pictures))


def published() -> Any:
    """facenet-pytorch's MTCNN with its own weights, least face 20 px.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        package = importlib.import_module("facenet_pytorch.models.mtcnn")
    except ImportError as error:
        raise ConfigError(
            f"{error}: the peer is facenet-pytorch; pip install --no-deps facenet-pytorch (it asks for an older torch)"
        ) from error
    return package.MTCNN(keep_all=True, device="cpu", min_face_size=20)


def read_pictures(folder: Path, num: int) -> list[np.ndarray]:
    """The first ``num`` pictures of ``folder`` by name, uint8 (h, w, 3) of SIZE.

    Raises:
        ConfigError: there is none.
    """
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in PICTURES) if folder.is_dir() else []
    if not files:
        raise ConfigError(f"--images: {folder} is no folder with pictures ({', '.join(PICTURES)})")
    return [np.array(Image.open(file).convert("RGB").resize((SIZE[1], SIZE[0]))) for file in files[:num]]


def compare(peer: Any, pictures: Sequence[np.ndarray]) -> str:
    """Pictures a second of both, and how many boxes both gave.

    Raises:
        ValueError: they gave other boxes.
    """
    ours, theirs = detector_like(peer), boxes_of(peer)
    for picture in pictures[:2]:
        ours(picture)
        theirs(picture)
    times: dict[str, list[float]] = {"facenet-pytorch": [], "detkit": []}
    apart, found = [], {}
    for i, picture in enumerate(pictures):
        runs: dict[str, Callable[[], object]] = {
            "facenet-pytorch": lambda p=picture: found.update(theirs=theirs(p)),
            "detkit": lambda p=picture: found.update(ours=ours(p)),
        }
        for name, seconds in time_alternately(runs, 1, torch.device("cpu")).items():
            times[name] += seconds
        apart += check_same(found["ours"], found["theirs"], i)
    rates = {name: len(pictures) / sum(seconds) for name, seconds in times.items()}
    pairs = zip(times["facenet-pytorch"], times["detkit"], strict=True)
    return (
        f"MTCNN, {len(pictures)} pictures of {SIZE[1]} x {SIZE[0]} px, {torch.get_num_threads()} thread(s), "
        f"the same {len(apart)} boxes to {max(apart, default=0):.1g} px ({sum(a > 0.05 for a in apart)} of them by "
        f"more than 0.05): facenet-pytorch {rates['facenet-pytorch']:.1f} images/s, "
        f"detkit {rates['detkit']:.1f} images/s, {rates['detkit'] / rates['facenet-pytorch']:.2f} times as fast "
        f"(median over pictures {statistics.median(a / b for a, b in pairs):.2f})"
    )


def detector_like(peer: Any) -> Callable[[np.ndarray], Tensor]:
    """A picture to the boxes (D, 4) px that detkit finds with the weights of ``peer``."""
    detector = MTCNN(num_classes=1, num_landmarks=5, min_size=float(peer.min_face_size)).eval()
    for net in ("pnet", "rnet", "onet"):
        getattr(detector, net).load_state_dict(getattr(peer, net).state_dict())

    @torch.no_grad()
    def run(picture: np.ndarray) -> Tensor:
        size = picture.shape[:2]
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous()
        return detector(Images(pixels, (ImageMeta(0, "", size, size),)))[0].boxes

    return run


def boxes_of(peer: Any) -> Callable[[np.ndarray], Tensor]:
    """A picture to the boxes (D, 4) px of ``peer``, cut at the border as detkit's are."""

    def run(picture: np.ndarray) -> Tensor:
        boxes, _, _ = peer.detect(picture, landmarks=True)
        found = np.zeros((0, 4)) if boxes is None else np.asarray(boxes, dtype=np.float64)
        return torch.from_numpy(found.clip(0, [*picture.shape[1::-1]] * 2))

    return run


def check_same(ours: Tensor, theirs: Tensor, place: int) -> list[float]:
    """How far each box of ours lies from its like; a race between two that do not do the same is refused.

    Raises:
        ValueError: picture number ``place`` has other boxes in one than in the other.
    """
    apart = torch.cdist(ours.double(), theirs.double(), p=float("inf"))
    worst = max([0.0, *apart.amin(0).tolist(), *apart.amin(1).tolist()]) if len(ours) and len(theirs) else 0.0
    if len(ours) != len(theirs) or worst > TOLERANCE:
        raise ValueError(f"picture {place}: detkit gives {ours.tolist()}, facenet-pytorch {theirs.tolist()}")
    return apart.min(1).values.tolist() if len(ours) else []
