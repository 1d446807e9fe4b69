"""The sections that a configuration may have. What stands inside a component's section, its constructor says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from detkit.config import Count, Share
from detkit.data.datasets.base import DetectionDataset
from detkit.data.subset import Subset
from detkit.data.transforms import Transform
from detkit.engine.callbacks import Callback
from detkit.engine.optim import OptimizerRecipe
from detkit.engine.schedule import Schedule
from detkit.models import Backbone, Detector, Head, Neck


@dataclass
class ModelSection:
    """A detector composed of three parts."""

    backbone: Backbone
    neck: Neck
    head: Head


@dataclass
class LoaderSection:
    """How images become batches."""

    train: Callable[..., Any]
    val: Callable[..., Any]


@dataclass
class DataSection:
    """The data sets, and how they are loaded. ``root`` is for the others to point to; ``subset``: which images of
    ``train`` are seen, all of them where it is missing."""

    train: DetectionDataset
    val: DetectionDataset | None
    loader: LoaderSection
    root: str | None = None
    subset: Subset | None = None


@dataclass
class TransformSection:
    """What happens to an image before it is batched: named steps, in their order. ``size`` is for them to point to."""

    train: Mapping[str, Transform | None]
    val: Mapping[str, Transform | None]
    size: Count | None = None


@dataclass
class ResumeSection:
    """Going on with a run that was stopped: its folder, or ``auto`` for the newest unfinished one like this.

    ``allow``: keys that may have changed since, with all that stands below them.
    """

    path: str | None = None
    allow: Sequence[str] = ()


@dataclass
class TrainSchema:
    """``tools/train.py``."""

    model: Detector | ModelSection
    data: DataSection
    transform: TransformSection
    optim: OptimizerRecipe
    schedule: Schedule
    trainer: Callable[..., Any]
    evaluator: Callable[..., Any] | None = None
    callbacks: Mapping[str, Callback | None] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    deterministic: bool = False
    sync_bn: bool = False
    process_timeout: float = 600.0
    init_from: str | None = None
    resume: ResumeSection = field(default_factory=ResumeSection)
    run_root: str = "runs"


@dataclass(kw_only=True)
class InspectModelSchema(TrainSchema):
    """``tools/inspect_model.py``: every key of training, without data if need be, and its own."""

    data: DataSection | None = None
    split: Literal["train", "val"] = "train"
    input_size: tuple[int, int] | None = None
    num_inputs: int = 4
    classes: int = 80


@dataclass
class AuditSchema(TrainSchema):
    """``tools/audit.py``: a training's keys, and which of its images to look at, as that split is loaded."""

    split: Literal["train", "val"] = "train"
    num_images: int | None = None
    num_pictures: int = 12


@dataclass
class RecipeOptions:
    """``tools/recipe.py``: its own keys (``try`` apart, which Python keeps for itself), and the data."""

    data: DataSection
    minutes: float
    name: str | None = None
    output: str = "recipes"
    overwrite: bool = False
    speed: str | None = None
    pretrained: bool | None = None
    try_share: Share = 0.5
    try_seeds: Count = 2
    device: str = "auto"
    threads: int | None = None
    run_root: str = "runs"


@dataclass
class EvaluateOptions:
    """``tools/evaluate.py``: its own keys; everything else overrides the checkpoint's configuration."""

    checkpoint: str
    split: Literal["train", "val"] = "val"
    output: str | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    val_loss: bool = False
    tta: Callable[..., Any] | None = None


@dataclass
class ExplainOptions:
    """``tools/explain.py``: its own keys; everything else overrides the checkpoint's configuration."""

    checkpoint: str
    split: Literal["train", "val"] = "val"
    output: str | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    score_threshold: float | None = None
    num_pictures: int = 6
    tta: Callable[..., Any] | None = None


@dataclass
class CalibrationTarget:
    """What a threshold keeps: one of the three."""

    precision: float | None = None
    recall: float | None = None
    false_alarms: float | None = None


@dataclass
class CalibrateOptions:
    """``tools/calibrate.py``: its own keys; everything else overrides the checkpoint's configuration."""

    checkpoint: str
    target: CalibrationTarget = field(default_factory=CalibrationTarget)
    delta: float = 0.1
    scores: Literal["temperature", "isotonic"] | None = None
    unknown: float | None = None
    tta: Callable[..., Any] | None = None
    split: Literal["train", "val"] = "val"
    seed: int = 0
    output: str | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] | None = None


@dataclass
class LabelsOptions:
    """``tools/labels.py``: its own keys; everything else overrides the checkpoint's configuration."""

    checkpoint: str | None = None
    apply: str | None = None
    folds: int | None = None
    group: str | None = None
    seed: int = 0
    slots: int = 1
    split: Literal["train", "val"] | None = None
    least: float = 0.2
    mirror: bool | None = None
    enlarge: float | None = 1.5
    output: str | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    num_pictures: int = 24


@dataclass
class AddClassOptions:
    """``tools/add_class.py``: its own keys; everything else overrides the checkpoint's configuration."""

    checkpoint: str
    classes: Sequence[str] | None = None
    num_examples: Count | None = None
    reserve: Share = 0.2
    split: Literal["train", "val"] = "train"
    output: str | None = None
    device: str = "auto"


@dataclass
class ExportOptions:
    """``tools/export.py``: its own keys; everything else overrides the checkpoint's configuration."""

    checkpoint: str
    format: Literal["onnx", "torch_export"] = "onnx"
    output: str | None = None
    size: tuple[Count, Count] | None = None
    resize: bool = False
    layout: Literal["bchw", "bhwc"] = "bchw"
    deform_conv: Literal["op", "gather"] = "op"
    split: Literal["train", "val"] = "val"
    num_images: int = 8
    evaluate: bool = True


@dataclass
class PredictOptions:
    """``tools/predict.py``: its own keys; everything else overrides the checkpoint's configuration."""

    checkpoint: str
    input: str
    output: str | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    score_threshold: float = 0.3
    unknown: bool = False
    batch_size: int = 4
    format: Literal["coco", "csv", "yolo", "label_studio"] = "coco"
    image_prefix: str | None = None
    tta: Callable[..., Any] | None = None
