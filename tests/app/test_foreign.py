"""Files of a stranger, whatever their kind: their configuration reads no environment, writes nothing, runs nothing, and
starts no more than ours."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from detkit.app.assemble.exported import ENTRY, Contract
from detkit.app.assemble.foreign import inert, restrain
from detkit.app.explain import tool as explain
from detkit.app.inspect import config as show_config
from detkit.app.inspect import replay
from detkit.app.use import evaluate, predict
from detkit.config import ConfigError
from detkit.config.validate import plain
from detkit.data import ShapesDataset
from detkit.data.datasets.shapes import folder_of
from detkit.engine.state.checkpoint import Checkpoint, save_checkpoint
from detkit.engine.state.published import Published, digest_of, write_published
from detkit.models import build_detector
from detkit.models.backbones import resnet
from tests.app.test_configs import composed
from tests.app.tools import call

SECRET = "the-word-that-none-may-see"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A configuration as a checkpoint keeps it, with its pictures, and the detector's weights."""
    folder = tmp_path_factory.mktemp("stored")
    cfg = composed(
        "experiment=quickstart", f"data.root={folder / 'shapes'}", "data.train.num_train=2", "data.train.num_val=1",
        "data.train.image_size=64", "device=cpu",
    )  # fmt: skip
    config = OmegaConf.to_container(cfg, resolve=False)
    categories = ShapesDataset(**{k: v for k, v in plain(cfg)["data"]["train"].items() if k != "_target_"}).categories
    return config, build_detector(plain(cfg)["model"], categories), categories


def write_onnx(path, entry):
    """A file of ONNX that finds nothing in any image, and says ``entry`` of itself."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    found = {
        "boxes": np.zeros((1, 1, 4), np.float32),
        "scores": np.zeros((1, 1), np.float32),
        "labels": -np.ones((1, 1), np.int64),
    }
    nodes = [
        onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value))
        for name, value in found.items()
    ]
    images = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["batch", 3, "height", "width"])
    outputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in found.items()
    ]
    graph = onnx.helper.make_graph(nodes, "nothing", [images], outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.helper.set_model_props(model, {ENTRY: entry})
    onnx.save(model, path)


def write(path, detector, categories, config):
    """A file of the kind that ``path`` names, made as ours are, with ``config`` as it stands."""
    if path.suffix == ".pt":
        state = detector.state_dict()
        save_checkpoint(path, Checkpoint(step=1, detector=state, categories=categories, config=config, metrics={}))
        return
    beside = {"categories": categories.to_dict(), "config": config, "metrics": {}}
    if path.suffix == ".safetensors":
        more = {
            "step": 1,
            "versions": {},
            "calibration": None,
            "licence": "none",
            "digest": digest_of(detector.state_dict()),
        }
        write_published(path, detector.state_dict(), Published(**beside, **more))
        return
    nothing = {"input": "", "layout": "bchw", "size": None, "score_threshold": 0.0, "thresholds": None}
    write_onnx(path, json.dumps(asdict(Contract(**beside, **nothing, checkpoint="", sha256=""))))


KINDS = [".pt", ".safetensors", ".onnx"]


@pytest.fixture(params=KINDS)
def crafted(request, stored, tmp_path, monkeypatch):
    """A checkpoint of each kind whose configuration says what is given: dotted keys and values."""
    monkeypatch.setenv("DETKIT_SECRET", SECRET)
    config, detector, categories = stored

    def craft(**changes):
        cfg = OmegaConf.create(config)
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value, force_add=True)
        path = tmp_path / f"best{request.param}"
        write(path, detector, categories, OmegaConf.to_container(cfg, resolve=False))
        return f"checkpoint={path}"

    return craft


HOSTILE = [
    "${oc.env:DETKIT_SECRET}", "${ oc.env : DETKIT_SECRET}", "a/${oc.env:DETKIT_SECRET}/b", "${data.root}${oc.env:DETKIT_SECRET}",
    "${oc.env:${model.x}}", "${oc.decode:'${oc.env:DETKIT_SECRET}'}", "${oc.create:{a: '${oc.env:DETKIT_SECRET}'}}", "${now:%Y}",
    "${oc.select:x,${oc.env:DETKIT_SECRET}}", *(n * "\\" + "${oc.env:DETKIT_SECRET}" for n in range(1, 6)), "${hydra:runtime.cwd}",
    "${oc.env:DETKIT_SECRET", "\\${data.root}${oc.env:DETKIT_SECRET}",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_no_resolver_runs(text, monkeypatch):
    monkeypatch.setenv("DETKIT_SECRET", SECRET)
    config = {"data": {"root": "here"}, "model": {"x": "DETKIT_SECRET", "list": [text, {"y": text}]}, "text": text}
    seen = plain(inert(config, "file"))
    assert SECRET not in str(seen)
    assert seen["text"].replace("\\", "") == text.replace("\\", "")


def test_keys_are_looked_up_as_before():
    config = {"a": {"b": 3, "c": "${.b}", "d": ["${a.b}", "\\${a.b}"]}, "e": "x/${a.d[0]}", "f": "${a}"}
    assert plain(inert(config, "file")) == plain(OmegaConf.create(config))


@pytest.mark.parametrize("config", ["text", [1, 2], {"a": torch.zeros(2)}, {(1, 2): 3}])
def test_what_is_no_configuration_is_refused_in_one_line(config):
    with pytest.raises(ConfigError, match=r"^file: its configuration (is no mapping|cannot be read)"):
        inert(config, "file")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "config", ["${oc.env:DETKIT_SECRET}", ["${oc.env:DETKIT_SECRET}"], {"model": "${oc.env:DETKIT_SECRET}"}]
)
def test_a_file_without_a_configuration_is_refused_in_one_line(kind, config, stored, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETKIT_SECRET", SECRET)
    write(tmp_path / f"best{kind}", *stored[1:], config)
    is_entry = kind != ".onnx" and not isinstance(config, dict)  # which reading the checkpoint refuses
    code = 1 if is_entry else 2
    output = call(evaluate.main, monkeypatch, capsys, f"checkpoint={tmp_path / f'best{kind}'}", code=code)
    assert (
        "its entry 'config' must be a mapping" in output
        if is_entry
        else "is no mapping" in output or "'${oc.env:DETKIT_SECRET}'" in output
    )
    assert SECRET not in output
    assert "Traceback" not in output


@pytest.mark.parametrize("kind", KINDS[1:])
def test_an_entry_too_deep_to_read_is_refused_in_one_line(kind, tmp_path, monkeypatch, capsys):
    path, deep = tmp_path / f"best{kind}", "[" * 100_000
    save_file({"a": torch.zeros(1)}, path, metadata={ENTRY: deep}) if kind == ".safetensors" else write_onnx(path, deep)
    output = call(evaluate.main, monkeypatch, capsys, f"checkpoint={path}", code=2 if kind == ".onnx" else 1)
    assert "its entry 'detkit' cannot be read" in output


@pytest.mark.parametrize("place", ["model.backbone", "data.val", "evaluator", "transform.val.resize", "callbacks.x"])
def test_nothing_is_called_that_is_none_of_ours(crafted, place, tmp_path, monkeypatch, capsys):
    made = tmp_path / "made_by_a_stranger"
    node = {"_target_": "os.mkdir", "path": str(made)}
    output = call(evaluate.main, monkeypatch, capsys, crafted(**{place: node}), code=2)
    assert "os.mkdir" in output
    assert not made.exists()


@pytest.mark.parametrize("tool", [evaluate, explain, predict])
def test_the_environment_stays_out_of_error_texts(crafted, tool, tmp_path, monkeypatch, capsys):
    given = [crafted(**{"model.neck.out_channels": "${oc.env:DETKIT_SECRET}", "init_from": "${oc.env:DETKIT_SECRET}"})]
    given += ["input=nowhere.png", f"hydra.run.dir={tmp_path / 'run'}"] if tool is predict else []
    output = call(tool.main, monkeypatch, capsys, *given, code=2)
    assert "model.neck.out_channels: must be int of 1 or more, not '${oc.env:DETKIT_SECRET}'" in output
    assert SECRET not in output


def test_the_users_own_command_line_may_read_it(crafted, monkeypatch, capsys):
    output = call(
        evaluate.main, monkeypatch, capsys, crafted(), "model.neck.out_channels=${oc.env:DETKIT_SECRET}", code=2
    )
    assert f"model.neck.out_channels: must be int of 1 or more, not '{SECRET}'" in output


EVIL = {"_target_": "ShapesDataset", "num_train": 3, "num_val": 2, "image_size": 64}


@pytest.mark.parametrize("key", ["data.val", "data.train", "transform.val.x.transforms"])
def test_no_picture_is_written_because_a_checkpoint_says_so(crafted, key, tmp_path, monkeypatch, capsys):
    """Not as a data set, and not hidden among the arguments of a class whose own take anything."""
    node = EVIL | {"root": str(tmp_path / "evil")}
    changes = {key: node}
    if "transform" in key:
        hidden = {"_target_": "albumentations.Compose", "transforms": [node]}
        changes = {"transform.val.x": {"_target_": "Albumentations", "transforms": [hidden]}}
    output = call(evaluate.main, monkeypatch, capsys, crafted(**changes), code=2)
    assert "evil" in output
    assert "no pictures are made because a checkpoint says so" in output
    assert not (tmp_path / "evil").exists()


def test_pictures_are_made_where_the_user_says_so(crafted, tmp_path, monkeypatch, capsys):
    checkpoint = crafted(**{"data.train": EVIL | {"root": str(tmp_path / "evil")}})
    own = [
        f"data.root={tmp_path / 'own'}",
        "data.train.num_train=1",
        "data.train.num_val=1",
        "data.train.image_size=64",
    ]
    call(evaluate.main, monkeypatch, capsys, checkpoint, "data=shapes", *own, f"output={tmp_path / 'out'}")
    assert len(list((tmp_path / "own").glob("*/images/*"))) == 2
    assert not (tmp_path / "evil").exists()


def test_a_place_is_known_before_anything_is_made(tmp_path):
    for arguments in (
        {"num_train": 2, "num_val": 1, "image_size": 64},
        {"num_train": 2, "num_val": 1, "size_range": [0.1, 1]},
    ):
        arguments["root"] = str(tmp_path)
        expected = folder_of({"_target_": "ShapesDataset", **arguments})
        assert not expected.exists()
        ranges = {"size_range": tuple(map(float, arguments["size_range"]))} if "size_range" in arguments else {}
        assert ShapesDataset(**arguments | ranges).folder == expected


def test_no_more_processes_than_ours(crafted, monkeypatch, capsys):
    def stop(self, source, collate, num_workers, timeout, pin_memory):
        raise ValueError(f"{num_workers} processes")

    monkeypatch.setattr("detkit.data.workers.Workers.__init__", stop)
    monkeypatch.setattr("detkit.data.loader.evaluation_batches", lambda *_: [[0]] * 99)
    checkpoint = crafted(**{"data.loader.val.num_workers": 64})
    assert "EvalLoader: 2 processes" in call(evaluate.main, monkeypatch, capsys, checkpoint, code=2)
    more = "data.loader.val.num_workers=5"
    assert "EvalLoader: 5 processes" in call(evaluate.main, monkeypatch, capsys, checkpoint, more, code=2)


def test_restrain_is_for_what_the_checkpoint_says_alone():
    def node():
        return {"loader": {"_target_": "EvalLoader", "_partial_": True, "num_workers": 64}}

    restrain(held := node())
    assert held["loader"]["num_workers"] == 2
    restrain(asked := node(), OmegaConf.create({"loader": {"num_workers": 64}}))
    assert asked["loader"]["num_workers"] == 64
    restrain(fewer := {"loader": node()["loader"] | {"num_workers": 1}})
    assert fewer["loader"]["num_workers"] == 1


@pytest.mark.parametrize("place", ["backbone", "hidden"])
def test_no_weights_are_fetched(place, monkeypatch):
    """A backbone takes published weights by default: leaving the argument out is no way round."""
    node = {"_target_": "ResNet", "depth": 18}
    config = (
        {"backbone": node}
        if place == "backbone"
        else {"x": {"_target_": "torch.nn.modules.container.Sequential", "args": [node]}}
    )
    restrain(config)
    assert node["weights"] is None
    monkeypatch.setattr(
        resnet, "load_backbone_weights", lambda module, source, imagenet: pytest.fail(source) if source else None
    )
    resnet.ResNet(**{k: v for k, v in node.items() if k != "_target_"})


def test_a_bundle_is_no_other_than_a_checkpoint(stored, monkeypatch):
    monkeypatch.setenv("DETKIT_SECRET", SECRET)
    config, _, categories = stored
    assert replay.detector_of(SimpleNamespace(config=config, categories=categories, class_counts=None))
    model = config["model"] | {"neck": config["model"]["neck"] | {"out_channels": "${oc.env:DETKIT_SECRET}"}}
    with pytest.raises(
        ConfigError, match=re.escape("model.neck.out_channels: must be int of 1 or more, not '${oc.env:DETKIT_SECRET}'")
    ):
        replay.detector_of(SimpleNamespace(config=config | {"model": model}, categories=categories, class_counts=None))


def test_two_checkpoints_are_compared_without_the_environment(crafted, capsys):
    best = Path(crafted(run_root="${oc.env:DETKIT_SECRET}").partition("=")[2])
    one = best.rename(best.with_stem("one"))
    crafted()
    show_config.main([str(one), str(best)])
    output = capsys.readouterr().out
    assert "${oc.env:DETKIT_SECRET}" in output
    assert SECRET not in output


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("transform.val.resiz=null", "transform.val.resiz: there is no 'resiz' to leave out"),
        ("transfrm=null", "transfrm: no key 'transfrm'; did you mean 'transform'?"),
        ("data.rot=null", "data.rot: no key 'rot'; did you mean 'root'?"),
    ],
)
def test_a_misspelt_null_is_told(crafted, argument, message, monkeypatch, capsys):
    assert message in call(evaluate.main, monkeypatch, capsys, crafted(), argument, code=2)
