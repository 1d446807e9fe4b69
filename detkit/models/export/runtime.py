"""An exported file run as a detector: what the checks of an export, ``evaluate`` and ``predict`` call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detkit.config import ConfigError
from detkit.models.interfaces import Detector
from detkit.structures import Detections, Images, Losses, Target

#: From images uint8 (1, 3, H, W), or (1, H, W, 3) where the file has them so, to boxes, scores and labels of each, and
#: landmarks where it has them.
Run = Callable[[np.ndarray], Sequence[np.ndarray]]


class WrongSizeError(ConfigError):
    """A file is not made for images of this size."""


class ExportedDetector(Detector):
    """The detector in a file. It finds, and learns nothing; the images of a batch go through one by one.

    Args:
        run: see :data:`Run`.
        channels_last: how the file wants its images.
        size: (h, w) px, the only size of images that it takes, None for any.
        calibrated: whether thresholds of the classes are in it.

    Raises:
        WrongSizeError: an image is of a size that it does not take; the message begins with its file.
    """

    def __init__(
        self, run: Run, *, channels_last: bool = False, size: Sequence[int] | None = None, calibrated: bool = False
    ) -> None:
        super().__init__()
        self.run, self.channels_last, self.calibrated = run, channels_last, calibrated
        self.size = None if size is None else (int(size[0]), int(size[1]))

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Losses | list[Detections]:
        if targets is not None:
            raise ConfigError("an exported file has no losses")
        return [self._of_one(images.pixels[i], meta.size, meta.file) for i, meta in enumerate(images.meta)]

    def _of_one(self, pixels: torch.Tensor, size: tuple[int, int], file: str) -> Detections:
        if self.size is not None and size != self.size:
            raise WrongSizeError(
                f"{file}: {size[0]} x {size[1]} px, and the file takes images of {self.size[0]} x {self.size[1]} px "
                "alone: choose a transform that makes this size, or export without size="
            )
        # pixels of resized views lie between the levels, and a little beyond them
        image = pixels[:, : size[0], : size[1]].round().clamp(0, 255).to("cpu", torch.uint8)
        image = image.permute(1, 2, 0) if self.channels_last else image
        try:
            found_here = self.run(image[None].numpy())
        except WrongSizeError as error:
            raise WrongSizeError(f"{file}: {error}") from error
        columns = [torch.from_numpy(np.asarray(o)[0]) for o in found_here]
        found = columns[2] >= 0
        return Detections(*(column[found] for column in columns))


def onnx_run(session: Any) -> Run:
    """What runs a ``session`` of :func:`onnx_session`."""
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: np.ascontiguousarray(images)})


def onnx_session(path: Path) -> Any:
    """onnxruntime's session for the file at ``path``, on the CPU, with as many threads as torch has.

    Raises:
        ConfigError: onnxruntime is not there, or does not read the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{path}: onnxruntime is not installed: pip install 'detkit[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # its remarks on buffers are none of the user's
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen kinds, none of which it exports
        raise ConfigError(f"{path}: onnxruntime does not read it: {str(error).partition(chr(10))[0]}") from error


def torch_run(path: Path) -> Run:
    """The file of ``torch.export`` at ``path``, which must be one's own: torch unpickles parts of it.

    What it gives raises a WrongSizeError for images of a size that the program does not hold for.
    """
    module = torch.export.load(path).module()

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        try:
            with torch.no_grad():
                return [o.numpy() for o in module(torch.from_numpy(images))]
        except AssertionError as error:
            if not str(error).startswith("Guard failed"):
                raise
            size = " x ".join(map(str, images.shape))
            raise WrongSizeError(
                f"{path} is made for images of other sizes than {size}. Where it takes any, those have two cells and "
                f"more of each map: a transform that makes larger ones helps, or format=onnx ({error})"
            ) from error

    return run
