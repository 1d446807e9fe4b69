"""Starting from weights: what is taken over, and what starts anew."""

import logging
import os
import re

import pytest
import torch
import torchvision
from torchvision.ops import FrozenBatchNorm2d

from detkit.app.assemble import init_from
from detkit.app.assemble import weights_origin as origin
from detkit.app.assemble.init_from import class_layers, initialize
from detkit.app.assemble.parts import warn_of_frozen_chance
from detkit.app.assemble.weights_origin import check_norms
from detkit.config import ConfigError
from detkit.engine.state.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from detkit.models import build_detector
from detkit.models.backbones import ResNet
from detkit.structures import Categories
from tests.app.test_configs import composed
from tests.app.tools import trainer_in
from tests.models.builders import compose_model
from tests.models.test_foreign_weights import RGB_MEAN, RGB_STD, stats

ONE, OTHER = Categories(("a", "b", "c"), (1, 2, 3)), Categories(("x", "y", "z"), (1, 2, 3))
LAYERS = [f"head.roi.network.{layer}.{kind}" for layer in ("cls_score", "bbox_pred") for kind in ("weight", "bias")]


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


def theirs(norm=None, **kind):
    torch.manual_seed(0)
    options = {"weights": None, "weights_backbone": None, "num_classes": 4, **kind}
    return torchvision.models.detection.fasterrcnn_resnet50_fpn(**options, **({"norm_layer": norm} if norm else {}))


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda s: s, "; it looks like torchvision's Faster R-CNN: init_from=torchvision:{}"),
        (lambda s: {"model": s, "epoch": 3}, "init_from=torchvision:{} (under 'model': save that alone first)"),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, "; it looks like torchvision's Faster R-CNN"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_a_torchvision_file_without_its_prefix_is_told_of(model, tmp_path, wrap, words, zipped):
    names = (
        "backbone.body.conv1.weight",
        "backbone.fpn.inner_blocks.0.0.weight",
        "roi_heads.box_predictor.bbox_pred.bias",
    )
    path = tmp_path / "theirs.pth"
    torch.save(wrap({n: torch.zeros(1) for n in names}), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConfigError) as caught:
        initialize(build_detector(model, ONE), str(path), ONE, model)
    assert words.format(path) in str(caught.value)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("backbone.bottom_up.res2.conv1.weight", "proposal_generator.a"), "; it looks like detectron2"),
        (("backbone.layer1.0.conv1.weight", "neck.a", "bbox_head.b"), "; it looks like mmdetection"),
        (("conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight", "fc.weight"),
         "; it looks like a classifier, a ResNet: model.backbone.weights={}"),
        (("backbone.body.conv1.weight", "head.a"), "; it looks like another detector of torchvision's"),
        (("backbone.body.conv1.weight", "head.classification_head.a", "head.regression_head.bbox_ctrness.weight"),
         "; it looks like torchvision's FCOS"),
        (("backbone.body.conv1.weight", "roi_heads.mask_head.a", "roi_heads.b"), "; it looks like torchvision's Mask R-CNN"),
        (("backbone.a", "neck.b", "head.c"), "; it looks like a detector of detkit's without its checkpoint"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "torchvision:"])
def test_weights_of_others_are_told_of(model, tmp_path, names, words, prefix):
    path = tmp_path / "foreign.pth"
    torch.save({n: torch.zeros(1) for n in names}, path)
    with pytest.raises(ConfigError) as caught:
        initialize(build_detector(model, ONE), f"{prefix}{path}", ONE, model)
    assert words.format(path) in str(caught.value)


def test_a_checkpoint_under_the_prefix_of_others(model, checkpoint):
    path, _ = checkpoint
    with pytest.raises(
        ConfigError, match=rf"is not a state dict .*; it looks like a checkpoint of detkit's: init_from={path}"
    ):
        initialize(build_detector(model, ONE), f"torchvision:{path}", ONE, model)


@pytest.mark.parametrize("names", [("a", "b"), ()])
def test_nothing_is_made_up(model, tmp_path, names):
    torch.save({n: torch.zeros(1) for n in names}, tmp_path / "other.pth")
    with pytest.raises(ConfigError) as caught:
        initialize(build_detector(model, ONE), str(tmp_path / "other.pth"), ONE, model)
    assert "looks like" not in str(caught.value)


class Norms(torch.nn.Module):
    """A detector with one batch norm."""

    def __init__(self, eps):
        super().__init__()
        self.norm = FrozenBatchNorm2d(2, eps=eps)


def norms(*variances, trained=False):
    counter = {"bn.num_batches_tracked": torch.tensor(5)} if trained else {}
    return {"bn.running_var": torch.tensor(variances), **counter}


@pytest.mark.parametrize(
    ("eps", "trained", "least"), [(1e-5, True, 1e-7), (0.0, False, 1.0), (0.0, True, 1.0), (1e-5, False, 1.0)]
)
def test_an_epsilon_that_is_right_or_does_not_matter_needs_no_word(tmp_path, eps, trained, least):
    (tmp_path / "w.pth").write_bytes(b"")
    assert check_norms(Norms(eps), norms(1.0, least, trained=trained), tmp_path / "w.pth") == ""


def test_an_epsilon_that_is_surely_another(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"have the epsilon 1e-05 \(they count their batches.* the model has 0; with the "
                       r"other a channel \(of variance 1e-07\) is scaled 10 times: set model\.backbone\.norm_eps=1e-05"):  # fmt: skip
        check_norms(Norms(0.0), norms(1.0, 1e-7, trained=True), path)
    monkeypatch.setattr(origin, "_PUBLISHED_SHA256", "e3b0c442")  # of the empty file
    assert check_norms(Norms(0.0), norms(1.0, 1e-7), path) == ""
    with pytest.raises(ValueError, match=r"the epsilon 0 \(these are the published weights\), the model has 1e-05"):
        check_norms(Norms(1e-5), norms(1.0, 1e-7), path)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_an_epsilon_that_nobody_can_know_is_asked_for(tmp_path, eps):
    (tmp_path / "w.pth").write_bytes(b"")
    doubt = check_norms(Norms(eps), norms(1.0, 1e-7), tmp_path / "w.pth")
    assert f"the model has {eps:g}, and with the other a channel (of variance 1e-07) is scaled 10" in doubt
    assert "scaled inf times" in check_norms(Norms(eps), norms(1.0, 0.0), tmp_path / "w.pth")


def test_a_detector_of_torchvisions_with_trained_batch_norms_is_not_taken_in_silence(tmp_path):
    state = theirs(torch.nn.BatchNorm2d).state_dict()
    state["backbone.body.layer2.0.bn1.running_var"][3] = 1e-8
    torch.save(state, tmp_path / "theirs.pth")
    source = f"torchvision:{tmp_path / 'theirs.pth'}"
    preset = compose_model("faster_rcnn_fpn_torchvision")
    with pytest.raises(
        ConfigError, match=r"init_from: .*theirs\.pth: its batch norms have the epsilon 1e-05 .* the model has 0;"
    ):
        initialize(build_detector(preset, ONE), source, ONE, preset)
    mended = compose_model("faster_rcnn_fpn_torchvision", ["model.backbone.norm_eps=1e-5"])
    initialize(build_detector(mended, ONE), source, ONE, mended)


def test_retinanet_without_its_prefix_is_told_of_and_names_are_fetched_once(model, tmp_path, monkeypatch):
    path = tmp_path / "theirs.pth"
    torch.save({n: torch.zeros(1) for n in ("backbone.body.conv1.weight", "head.classification_head.a")}, path)
    with pytest.raises(ConfigError, match=f"it looks like torchvision's RetinaNet: init_from=torchvision:{path}"):
        initialize(build_detector(model, ONE), str(path), ONE, model)

    def offline(*_, **__):
        raise OSError("no way to the network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    words = rf"init_from: cannot fetch https://\S+/retinanet_resnet50_fpn_coco-eeacb38b.pth: no way to the network\. " \
            rf"Without a network, put https://\S+ into {tmp_path}/checkpoints"  # fmt: skip
    with pytest.raises(ConfigError, match=words):
        initialize(build_detector(model, ONE), "torchvision:retinanet_resnet50_fpn", ONE, model)
    path.rename(tmp_path / "checkpoints" / "retinanet_resnet50_fpn_coco-eeacb38b.pth")
    with pytest.raises(ConfigError, match=r"head.classification_head.a \(no key of torchvision's RetinaNet\)"):
        initialize(build_detector(model, ONE), "torchvision:retinanet_resnet50_fpn", ONE, model)


def test_what_is_fetched_is_kept_and_a_wrong_file_is_not(model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    fetched = []

    def fetch(url, path, hash_prefix, progress):
        fetched.append((url.rpartition("/")[2], hash_prefix))
        if len(fetched) == 1:
            raise RuntimeError('invalid hash value (expected "eeacb38b", got "0")')  # as torch says it
        torch.save({"head.classification_head.a": torch.zeros(1)}, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    for words in ("cannot fetch .*: invalid hash value", "no key of torchvision's RetinaNet", "no key of"):
        with pytest.raises(ConfigError, match=words):
            initialize(build_detector(model, ONE), "torchvision:retinanet_resnet50_fpn", ONE, model)
    assert fetched == [("retinanet_resnet50_fpn_coco-eeacb38b.pth", "eeacb38b")] * 2


def test_a_checkpoint_that_does_not_fit_is_named(model, checkpoint, tmp_path):
    path, _ = checkpoint
    other = compose_model("faster_rcnn_fpn", ["model/backbone=resnet18_narrow", "model.neck.out_channels=24"])
    with pytest.raises(
        ConfigError, match=rf"init_from: {path}: the weights do not fit the model: \d+ of another shape"
    ):
        initialize(build_detector(other, ONE), str(path), ONE, other)
    (tmp_path / "model.onnx").write_bytes(b"a graph")
    with pytest.raises(ConfigError, match=r"model\.onnx: .*; it looks like an exported file, which is for use alone"):
        initialize(build_detector(model, ONE), str(tmp_path / "model.onnx"), ONE, model)


def test_weights_of_no_use_and_of_no_weights_type_are_not_begun_with(model, checkpoint, tmp_path):
    path, state = checkpoint
    state["backbone.conv1.weight"][0, 0, 0, 0] = float("nan")
    save_checkpoint(path, Checkpoint(step=7, detector=state, categories=ONE, config={}, metrics={}))
    with pytest.raises(ConfigError, match=rf"init_from: {path} is of no use: backbone.conv1.weight has 1 of"):
        initialize(build_detector(model, ONE), str(path), ONE, model)
    state["backbone.conv1.weight"] = torch.zeros(state["backbone.conv1.weight"].shape, dtype=torch.int8)
    save_checkpoint(path, Checkpoint(step=7, detector=state, categories=ONE, config={}, metrics={}))
    with pytest.raises(ConfigError, match=r"1 of another type .'backbone.conv1.weight int8'"):
        initialize(build_detector(model, ONE), str(path), ONE, model)


def test_a_tensor_that_published_networks_of_mtcnn_lack_is_named(tmp_path, caplog):
    preset = compose_model("mtcnn")
    for name, net in build_detector(preset, Categories(("face",), (1,))).named_children():
        state = net.state_dict()
        if name == "rnet":
            del state["dense4.bias"]
        torch.save(state, tmp_path / f"{name}.pt")
    for categories in (Categories(("face",), (1,)), ONE):
        caplog.clear()
        initialize(build_detector(preset, categories), f"mtcnn:{tmp_path}", categories, preset)
        assert f"{tmp_path}: 1 tensors keep their random values: rnet.dense4.bias" in caplog.text
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "pnet.pt")
    with pytest.raises(ConfigError, match=rf"{tmp_path}: .* of another shape \['pnet.conv1.weight \(3,\)"):
        initialize(build_detector(preset, ONE), f"mtcnn:{tmp_path}", ONE, preset)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


def test_a_state_dict_that_would_run_code_is_refused_and_every_fault_names_its_file(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, "theirs.pth")
    words = r"init_from: weights: theirs.pth: refused: it asks for posix.mkdir, which could run code$"
    with pytest.raises(ConfigError, match=words):
        initialize(build_detector(model, ONE), "torchvision:theirs.pth", ONE, model)
    assert not (tmp_path / "made_by_a_pickle").exists()
    torch.save({"roi_heads.b": torch.zeros(1)}, "theirs.pth")
    words = r"init_from: theirs.pth: .*roi_heads.b \(no key of torchvision's Faster"
    with pytest.raises(ConfigError, match=words):
        initialize(build_detector(model, ONE), "torchvision:theirs.pth", ONE, model)


def test_the_recipe_to_train_on_says_the_weights_that_it_trains_on():
    """Without them a random backbone would train with frozen norms and three frozen stages."""
    cfg = composed("experiment=faster_rcnn/finetune_mobilenetv3", "data.root=somewhere")
    assert cfg.init_from.removeprefix("torchvision:") in init_from._PUBLISHED
    assert cfg.model.backbone.frozen_stages == 3


def test_stages_frozen_at_random_values_are_warned_of(tmp_path, caplog):
    torch.save(ResNet(width=32, depth=18, weights=None).state_dict(), tmp_path / "weights.pth")
    words = r"model.backbone starts from random weights, and \d+ of its tensors are frozen at them, backbone.conv1.weight to"
    frozen = ["model.backbone.frozen_stages=2"]
    for overrides, warned in (
        (frozen, True),
        ([], False),
        ([*frozen, f"model.backbone.weights={tmp_path / 'weights.pth'}"], False),
    ):
        caplog.clear()
        node = compose_model("faster_rcnn_fpn", ["model/backbone=resnet18_narrow", *overrides])
        warn_of_frozen_chance(node, build_detector(node, ONE))
        assert bool(re.search(words, caplog.text)) == warned, overrides
    caplog.clear()
    shapes = [f"data.root={tmp_path}", "data.train.num_train=2", "data.train.num_val=1", "data.train.image_size=64"]
    trainer_in(tmp_path / "run", "experiment=quickstart", "debug=overfit", *shapes, *frozen)
    assert re.search(words, caplog.text), "a training says it"


LAST = ["cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias"]


@pytest.mark.parametrize("with_last", [True, False])
@pytest.mark.parametrize("library", ["torchvision", "detectron2"])
def test_one_file_with_every_fault_names_each_of_them(model, tmp_path, library, with_last):
    """Missing, extra and misshapen tensors of all, four of a kind at least, are told at once, last layers or none."""
    backbone = {"torchvision": "backbone.fpn.inner_blocks.0", "detectron2": "backbone.fpn_lateral2"}[library]
    state = {f"{backbone}.weight": torch.zeros(5, 1, 1, 1), **{f"mask.{i}": torch.zeros(1) for i in range(4)}}
    first = 4 if library == "torchvision" else 3  # background's row of boxes as well
    for name, rows in zip(LAST, (4, 4, 4 * first, 4 * first), strict=True):
        state |= {f"roi_heads.box_predictor.{name}": torch.zeros(rows, 32) if "weight" in name else torch.zeros(rows)}
    if not with_last:
        del state["roi_heads.box_predictor.bbox_pred.bias"]
    torch.save({"model": state} if library == "detectron2" else state, tmp_path / "theirs.pth")
    detector = build_detector(model, ONE)
    with pytest.raises(ConfigError) as caught:
        initialize(detector, f"{library}:{tmp_path / 'theirs.pth'}", ONE, model)
    said = str(caught.value)
    assert all(f"mask.{i} (no key of {library}'s Faster R-CNN" in said for i in range(4))
    shape = tuple(detector.state_dict()["neck.lateral.0.weight"].shape)
    assert f"1 of another shape ['neck.lateral.0.weight (5, 1, 1, 1) for {shape}']" in said
    lacking = [name for name in detector.state_dict() if name != "neck.lateral.0.weight" and name not in LAYERS]
    assert all(f"'{name}'" in said for name in lacking)
    assert ("must have all of its last layers; missing: head.roi.network.bbox_pred.bias; " in said) is not with_last


def test_what_a_checkpoint_of_detkits_lacks_is_named_and_what_starts_anew_is_told_once(model, checkpoint, caplog):
    path, _ = checkpoint
    lacking = ["neck.output.0.bias", "neck.output.0.weight", "head.roi.network.cls_score.bias"]
    stored = load_checkpoint(path)
    weights = {k: v for k, v in stored.detector.items() if k not in lacking}
    save_checkpoint(path, Checkpoint(step=7, detector=weights, categories=ONE, config={}, metrics={}))
    for categories, names in ((ONE, sorted(lacking)), (OTHER, lacking[:2])):
        caplog.clear()
        loaded(model, path, categories)
        said = [r.getMessage() for r in caplog.records if "keep their random values" in r.getMessage()]
        assert said == [f"{path}: {len(names)} tensors keep their random values: {', '.join(names)}"]


def test_weights_of_another_model_name_the_preset_that_takes_them(tmp_path):
    state = theirs(torch.nn.BatchNorm2d).state_dict()
    torch.save(state, tmp_path / "theirs.pth")
    other = compose_model("faster_rcnn_fpn_torchvision_v2")
    with pytest.raises(ConfigError, match=r"theirs.pth: the weights do not fit the model: .*; these are weights for "
                       r"model=faster_rcnn_fpn_torchvision$"):  # fmt: skip
        initialize(build_detector(other, ONE), f"torchvision:{tmp_path / 'theirs.pth'}", ONE, other)


def test_the_epsilon_of_mobilenetv3_is_known(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"")
    state = {**norms(1.0, 1e-7), origin._OF_MOBILENET: torch.zeros(1)}
    assert check_norms(Norms(1e-5), state, tmp_path / "w.pth") == ""
    with pytest.raises(ValueError, match=r"the epsilon 1e-05 \(torchvision's MobileNetV3 detectors all have it\)"):
        check_norms(Norms(1e-3), state, tmp_path / "w.pth")


def test_each_name_of_torchvisions_has_weights_and_others_are_told_which_there_are(model):
    for name in init_from._PUBLISHED:
        assert torchvision.models.get_model_weights(name)["COCO_V1"].url
    with pytest.raises(ConfigError, match=r"no file 'fasterrcnn'; allowed: .* one of fasterrcnn_resnet50_fpn, "):
        initialize(build_detector(model, ONE), "torchvision:fasterrcnn", ONE, model)


def test_weights_of_detectron2_and_mmdetection_ask_for_a_model_of_their_style(tmp_path):
    small = ["model.neck.out_channels=16", "model.head.roi.network.hidden=[32]"]
    preset = compose_model("faster_rcnn_fpn_detectron2", small)
    detector = build_detector(preset, ONE)
    path = tmp_path / "theirs.pth"
    names = {"backbone.bottom_up.stem.conv1.weight": torch.zeros(64, 3, 7, 7), **stats(RGB_MEAN, RGB_STD)}
    rows = (("cls_score", 6), ("bbox_pred", 20))  # of five classes
    last = {f"roi_heads.box_predictor.{n}.weight": torch.zeros(num, 32) for n, num in rows}
    last |= {f"roi_heads.box_predictor.{n}.bias": torch.zeros(num) for n, num in rows}
    torch.save({"model": {**names, **last}}, path)
    words = r"of the style pytorch, .*: set model.backbone.stride_in_1x1=false model.backbone.pixel_std=null$"
    with pytest.raises(ConfigError, match=words):
        initialize(detector, f"detectron2:{path}", ONE, preset)
    half = compose_model("faster_rcnn_fpn_detectron2", [*small, "model.backbone.pixel_std=null"])
    torch.save({"model": last}, path)
    words = r"model.backbone has stride_in_1x1=true, pixel_std=\[58.395, 57.12, 57.375\] and .*; weights of other"
    with pytest.raises(ConfigError, match=words):
        initialize(detector, f"detectron2:{path}", ONE, half)
    names |= stats([102.9801, 115.9465, 122.7717], [1.0] * 3)
    torch.save({"model": {**names, **last}}, path)
    words = r"has stride_in_1x1=true, .*: set .* model.backbone.pixel_mean=\[122.7717,115.9465,102.9801\]$"
    with pytest.raises(ConfigError, match=words):
        initialize(detector, f"detectron2:{path}", ONE, preset)
    caffes = compose_model(
        "faster_rcnn_fpn_detectron2", [*small, "model.backbone.pixel_mean=[122.7717,115.9465,102.9801]"]
    )
    assert init_from.from_foreign(build_detector(caffes, ONE), f"detectron2:{path}", OTHER, caffes)
    names |= stats(RGB_MEAN[::-1], [1.0] * 3)
    torch.save({"model": {**names, **last}}, path)
    before = detector.head.roi.network.cls_score.weight.clone()
    missing = init_from.from_foreign(detector, f"detectron2:{path}", OTHER, preset)
    assert "backbone.layer1.0.conv1.weight" in missing
    assert not {"backbone.conv1.weight", *LAYERS} & set(missing), "the layers of the classes start anew, as was said"
    assert torch.equal(detector.head.roi.network.cls_score.weight, before)
    names["backbone.bottom_up.stem.conv1.norm.running_var"] = torch.full((64,), 1e-8)
    torch.save({"model": {**names, **last}}, path)
    other_eps = compose_model("faster_rcnn_fpn_detectron2", [*small, "model.backbone.norm_eps=0.0"])
    with pytest.raises(
        ConfigError, match=r"its batch norms have the epsilon 1e-05 \(detectron2 has it\), the model has 0"
    ):
        initialize(build_detector(other_eps, ONE), f"detectron2:{path}", ONE, other_eps)
