"""Every preset composes, validates and builds; every experiment runs; command-line edits reach where they should."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from torch import nn

from detkit.app import train
from detkit.app.assemble.schema import EvaluateOptions, PredictOptions, TrainSchema
from detkit.app.assemble.stored import Stored
from detkit.app.cli.composer import Composer
from detkit.app.cli.overrides import normalize_overrides
from detkit.app.cli.paths import config_dir
from detkit.config import ConfigError, Registry, build, validate
from detkit.data import ShapesDataset
from detkit.engine import update
from detkit.engine.state.checkpoint import Checkpoint
from detkit.structures import Categories

COMPOSER = Composer(keep=True)
EXPERIMENTS = sorted(
    str(p.relative_to(config_dir() / "experiment").with_suffix(""))
    for p in (config_dir() / "experiment").rglob("*.yaml")
)
LARGE = {  # the parts of each are run in another experiment or pair
    *(f"faster_rcnn/coco_r50_{kind}fpn_1x" for kind in ("", "dcnv1_", "dcnv2_", "dpool_", "mdpool_")),
    *(f"rfcn/{name}" for name in ("coco_r101", "voc_r50")),
    *(f"tridentnet/{name}" for name in ("coco_r101_2x", "coco_r50_1x", "voc_r50")),
}
SECTIONS = ["data", "transform", "optim", "schedule", "trainer", "evaluator", "callbacks", "model"]


def composed(*overrides):
    return settled(*overrides)[0]


def settled(*overrides):
    """The configuration as a tool gets it, and what was left out of its slots."""
    return COMPOSER(*overrides)[:2]


def presets(group):
    return sorted(p.stem for p in (config_dir() / group).glob("*.yaml"))


@pytest.fixture(scope="module")
def coco_layout(tmp_path_factory):
    """A few generated images in COCO's layout, and the overrides that lead any experiment there."""
    folder = ShapesDataset(root=str(tmp_path_factory.mktemp("data")), num_train=4, num_val=2, image_size=96).folder
    return [
        f"data.root={folder}",
        *(f"data.{split}.annotations={split}.json" for split in ("train", "val")),
        *(f"data.{split}.images=images" for split in ("train", "val")),
    ]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_validates_and_says_how_to_run_it(experiment):
    validate(composed(f"experiment={experiment}", "data.root=somewhere"), TrainSchema)
    header = (config_dir() / "experiment" / f"{experiment}.yaml").read_text()
    assert f"python tools/train.py experiment={experiment}" in header


@pytest.mark.parametrize(
    "experiment", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in EXPERIMENTS]
)
def test_every_experiment_runs_two_steps(experiment, coco_layout, tmp_path, monkeypatch):
    overrides = [
        f"experiment={experiment}",
        "debug=fast",
        "device=cpu",
        "trainer.precision=fp32",
        "init_from=null",
    ]
    plain = composed(f"experiment={experiment}")
    backbone, head = plain.model.get("backbone"), plain.model.get("head", {})  # a detector of its own has neither
    if backbone is not None:
        overrides.append("model.backbone.weights=null")
    if plain.data.train._target_ == "ShapesDataset":
        overrides += [f"data.root={tmp_path}", "data.train.num_train=4", "data.train.num_val=2"]
        overrides += [
            f"data.train.image_size={min(1024, plain.data.train.image_size)}"
        ]  # larger ones take half a minute
    else:
        overrides += coco_layout
    if (
        backbone is not None and backbone.get("depth") == 101
    ):  # random weights blow up over a hundred layers of frozen norms
        overrides += ["model.backbone.norm=bn"]
    resize = plain.transform.train.get("resize", {})
    if head.get("grid_size"):  # made for one size, and wide
        overrides += ["model.backbone.width=4", "model.head.hidden=16"]
    elif plain.transform.get("size"):
        overrides += ["transform.size=96"]
    elif "short" in resize:
        overrides += [f"transform.{s}.resize.short=[96]" for s in ("train", "val")]
    elif "size" in resize:
        overrides += ["transform.train.resize.size=96"]
    cfg = composed(*overrides)
    validate(cfg, TrainSchema)
    trainer, val_set = train.build_trainer(cfg, tmp_path)
    unread = []
    monkeypatch.setattr(update, "tell_unread", unread.extend)
    result = trainer.fit()
    assert result.step == 2
    assert unread == [], "parameters that no loss reads"
    assert len(val_set) == 2
    assert 0 <= trainer.metrics["AP"] <= 1


@pytest.mark.parametrize(("group", "name"), [(g, n) for g in SECTIONS for n in presets(g)])
def test_every_preset_validates(group, name):
    validate(composed(f"{group}={name}", "data.root=somewhere", "optim.lr=0.1", "trainer.steps=1"), TrainSchema)


@pytest.mark.parametrize("tool", [EvaluateOptions, PredictOptions])
@pytest.mark.parametrize("name", presets("tta"))
def test_every_tta_preset_validates_and_builds(tool, name):
    overrides = normalize_overrides(["checkpoint=x.pt", f"tta={name}", "tta/merge=WBF"])
    if tool is PredictOptions:
        overrides.append("input=y.png")
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("predict" if tool is PredictOptions else "evaluate", overrides=overrides)
    validate(cfg, tool)
    detector = build(cfg.tta)(detector=nn.Identity())
    assert name == "tiles" or len(detector.views) > 1, "how many tiles there are, the image says"
    assert type(detector.merge).__name__ == "WBF"


ROI = "model.head.roi"
PEERS_OPTIONS = [
    (f"{ROI}.cls_loss", {"class_weights": (1, 2, 1, 1, 1, 0.5), "background_weight": 0.3}, []),
    (f"{ROI}.cls_loss", {"class_weights": (1, 2, 1, 1, 1, 0.5)}, [f"loss@{ROI}.cls_loss=BCE"]),
    (f"{ROI}.cls_loss", {"alpha": 0.4, "gamma": 1.5}, [f"loss@{ROI}.cls_loss=SoftmaxFocal"]),
    (f"{ROI}.selector", {"class_agnostic": True}, []),
    ("tta.merge", {"least_score": 0.01}, ["tta=flip", "tta/merge=SoftNMS"]),
    (
        "tta.merge",
        {"weights": (2, 1), "confidence": "absent_model_aware_avg", "least_score": 0.1},
        ["tta=flip", "tta/merge=WBF"],
    ),
]


@pytest.mark.parametrize(("key", "options", "choice"), PEERS_OPTIONS)
def test_what_peers_let_one_choose_is_chosen_by_a_key(key, options, choice):
    said = [*choice, *(f"{key}.{name}={list(v) if isinstance(v, tuple) else v}" for name, v in options.items())]
    if key.startswith("tta"):
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = compose("evaluate", overrides=["checkpoint=none.pt", *said])
        validate(cfg, EvaluateOptions)
    else:
        cfg = composed("experiment=quickstart", *said)
        validate(cfg, TrainSchema)
    made = build(OmegaConf.select(cfg, key))
    assert {name: getattr(made, name) for name in options} == options


def test_an_evaluator_scores_what_its_keys_say(tmp_path):
    said = ["iou_thresholds=[0.4,0.9]", "recall_thresholds=[0,0.5,1]", "areas={tiny:[0,99],rest:[99,null]}"]
    cfg = composed("experiment=quickstart", *(f"evaluator.{words}" for words in [*said, "class_agnostic=true"]))
    validate(cfg, TrainSchema)
    data = ShapesDataset(root=str(tmp_path), num_train=1, num_val=1, image_size=64)
    evaluator = build(cfg.evaluator)(categories=data.categories, truths=data.truths)
    assert evaluator.class_agnostic
    assert {"AP_tiny", "AP_rest"} <= set(evaluator.metric_names)
    evaluator.update([], [])
    found = evaluator.compute(allow_missing=True)
    assert len(found.curves.precision) == 2, "IoU thresholds"
    assert found.curves.precision.shape[1] == 3, "points of recall"


@pytest.mark.parametrize("group", ["tta", "tta/merge", "data", "evaluator"])
def test_evaluate_tells_a_misspelt_choice(group):
    with initialize_config_dir(str(config_dir()), version_base="1.3"), pytest.raises(MissingConfigException) as caught:
        compose("evaluate", overrides=[f"{group}=nonsense"])
    assert f"Could not find '{group}/nonsense'" in str(caught.value)


def test_a_trained_detector_on_several_views():
    """Padding is the loader's; what does not fit together is told with its key."""
    config = {"data": {"loader": {"val": {"size_divisor": 16}}}}
    checkpoint = Checkpoint(step=0, detector={}, categories=Categories(("a",), (1,)), config={}, metrics={})
    stored = Stored(checkpoint, config, nn.Identity(), torch.device("cpu"))
    tta = {"_target_": "MultiView", "_partial_": True, "scales": [1, 2]}
    assert stored.augmented(None) is stored.detector
    augmented = stored.augmented(tta)
    assert augmented.detector is stored.detector
    assert augmented.size_divisor == 16
    assert not augmented.training
    with pytest.raises(
        ConfigError, match=r"^tta: valid_ranges must have a \[from, to\] for each of the 2 scales, not 1$"
    ):
        stored.augmented({**tta, "valid_ranges": [[0, 9]]})
    with pytest.raises(ConfigError, match=r"^tta.merge: WBF: iou_threshold must be in \[0, 1\], not 2.0$"):
        stored.augmented({**tta, "merge": {"_target_": "WBF", "iou_threshold": 2}})


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k, r in Registry.kinds().items() for n in r if r[n].__module__.startswith("detkit.")]
)
def test_every_class_is_an_option_whose_defaults_validate(kind, name):
    registry = Registry.kinds()[kind]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        node = compose(overrides=[f"+{registry.group}@part={name}"]).part
    errors: tuple[str, ...] = ()
    try:
        validate(node)
    except ConfigError as error:
        errors = error.errors
    assert all("needs a value" in line for line in errors), "only what must be chosen may be missing"


def test_one_loss_is_swapped_on_the_command_line():
    cfg = composed("experiment=quickstart", "loss@model.head.roi.cls_loss=Focal", "model.head.roi.cls_loss.gamma=1.5")
    loss = build(cfg.model.head.roi.cls_loss)
    assert type(loss).__name__ == "Focal"
    assert loss.gamma == 1.5
    assert cfg.model.head.rpn.cls_loss._target_ == "BCE"


def test_how_often_images_come_is_chosen_on_the_command_line():
    cfg = composed(
        "experiment=quickstart",
        "sampling@data.loader.train.sampling=RepeatFactor",
        "data.loader.train.sampling.threshold=0.3",
    )
    validate(cfg, TrainSchema)
    assert build(cfg.data.loader.train.sampling).threshold == 0.3


def test_neck_and_backbone_are_swapped_on_the_command_line():
    cfg = composed("experiment=quickstart", "model/neck=single_level", "model/backbone=mobilenetv2")
    assert cfg.model.neck._target_ == "SingleLevel"
    assert cfg.model.backbone._target_ == "MobileNetV2"


def test_an_albumentations_step_is_added_and_its_arguments_are_checked():
    step = "transform.train.color={_target_: Albumentations, transforms: [{_target_: albumentations.HueSaturationValue, %s: 3}]}"
    validate(composed("experiment=quickstart", step % "hue_shift_limit"), TrainSchema)
    with pytest.raises(ConfigError) as caught:
        validate(composed("experiment=quickstart", step % "hue_shift"), TrainSchema)
    assert caught.value.errors == (
        "transform.train.color.transforms[0].hue_shift: no argument 'hue_shift'; did you mean 'hue_shift_limit'?",
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "optim.lrr: no argument 'lrr'; did you mean 'lr'?"),
        ("trainer.steps=many", "trainer.steps: must be int, not 'many'"),
        ("trainer.precision=fp8", "trainer.precision: must be one of 'fp32', 'bf16', 'fp16', not 'fp8'"),
        ("modle.neck=3", "modle: no key 'modle'; did you mean 'model'?"),
        ("model.head.num_classes=3", "model.head.num_classes: arrives at run time from the data and the other parts, never from YAML"),
        ("model.head.roi.num_classes=3", "model.head.roi.num_classes: arrives at run time from the data and the other parts, never from YAML"),
        ("data.rot=x", "data.rot: no key 'rot'; did you mean 'root'?"),
        ("optim.lr=null", "optim.lr: must be float, not None"),
        ("model.backbone.depth=19", "model.backbone.depth: must be one of 18, 34, 50, 101, not 19"),
        ("data.train._target_=CocoDatset", "data.train._target_: no component is called 'CocoDatset' (a class of your own is found by DETKIT_PLUGINS=module); did you mean 'CocoDataset'?"),
        ("callbacks.csv=yes", "callbacks.csv: must be a Callback or null, not 'yes'"),
        ("schedule={_target_: FPN}", "schedule: FPN does not fit here; it must be a Schedule"),
    ],
)  # fmt: skip
def test_typos_are_told_with_the_nearest_name(override, message):
    with pytest.raises(ConfigError) as caught:
        validate(composed("experiment=quickstart", override), TrainSchema)
    assert any(line.startswith(message) for line in caught.value.errors), caught.value.errors


def test_overrides_are_normalised():
    given = [
        "optim.lr=0.1",
        "model=x",
        "model/neck=fpn",
        "loss@a.b=L1",
        "+a=1",
        "~b",
        "--cfg",
        "job",
        "hydra.run.dir=x",
        "resume=auto",
        "seed=3",
    ]
    assert normalize_overrides(given) == [
        "++optim.lr=0.1", "model=x", "model/neck=fpn", "loss@a.b=L1", "+a=1", "~b", "--cfg", "job", "hydra.run.dir=x",
        "++resume.path=auto", "++seed=3",
    ]  # fmt: skip


def test_no_shapes_stand_in_yaml():
    for path in config_dir().rglob("*.yaml"):
        text = OmegaConf.to_yaml(OmegaConf.load(path))
        assert "in_channels" not in text, path
        assert "num_classes" not in text, path


def test_no_evaluation_and_no_callbacks_are_a_choice():
    cfg = composed("experiment=quickstart", "evaluator=null", "callbacks=null")
    validate(cfg, TrainSchema)
    assert "evaluator" not in cfg
    assert "callbacks" not in cfg
