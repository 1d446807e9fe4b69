"""``tools/publish.py``: what is given away is whole, says nothing of its maker's folders, and cannot run code."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import detkit
from detkit.app.publish import tool as publish
from detkit.app.publish.tool import without_folders
from detkit.app.use import evaluate, predict
from detkit.engine import load_checkpoint
from detkit.engine.state.checkpoint import CheckpointError, DamagedCheckpointError
from detkit.engine.state.published import Published, digest_of, write_published
from detkit.utils.download import checksum, local_copy
from tests.app.test_explain import checkpoint  # noqa: F401 - a fixture: a small run on shapes
from tests.app.tools import call, largest_file


@pytest.fixture
def given(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    """The published file."""
    output = tmp_path / "shapes.safetensors"
    said = call(publish.main, monkeypatch, capsys, f"checkpoint={checkpoint}", "licence=Apache-2.0", f"output={output}")
    assert "published:" in said
    return output


def test_it_finds_what_the_checkpoint_finds_and_is_smaller(given, checkpoint):  # noqa: F811
    image = next(checkpoint.parent.rglob("train_*.jpg"))
    root = f"data.root={next(checkpoint.parent.glob('shapes'))}"
    here, there = (detkit.load(path, root, device="cpu").predict(image) for path in (checkpoint, given))
    assert len(here)
    np.testing.assert_array_equal(here.boxes, there.boxes)
    np.testing.assert_array_equal(here.scores, there.scores)
    assert given.stat().st_size < checkpoint.stat().st_size
    one, two = load_checkpoint(checkpoint), load_checkpoint(given)
    assert two.training is None
    assert (one.categories, one.step, dict(one.metrics)) == (two.categories, two.step, dict(two.metrics))


def test_the_file_says_all_but_folders_and_the_card_all_in_words(given):
    with safe_open(str(given), framework="pt") as file:
        text = file.metadata()["detkit"]
    assert json.loads(text)["licence"] == "Apache-2.0"
    assert str(given.parent.parent) not in text
    card = given.with_suffix(".md").read_text()
    assert "licence of the weights: Apache-2.0" in card
    assert checksum(given) in card
    assert all(name in card for name in load_checkpoint(given).categories.names)
    assert without_folders({"a": ["/home/me/cells", "runs"], "b": {"c": "~/x"}, "n": 3}) == {
        "a": ["cells", "runs"],
        "b": {"c": "x"},
        "n": 3,
    }


def test_tools_read_it_from_a_path_and_from_a_url(given, checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    image = next(checkpoint.parent.rglob("train_*.jpg"))
    root = next(checkpoint.parent.glob("shapes"))
    call(
        evaluate.main,
        monkeypatch,
        capsys,
        f"checkpoint={given}",
        f"data.root={root}",
        "device=cpu",
        f"output={tmp_path / 'e'}",
    )
    call(evaluate.main, monkeypatch, capsys, f"checkpoint={checkpoint}", "device=cpu", f"output={tmp_path / 'f'}")
    assert (tmp_path / "e" / "detections.json").read_text() == (tmp_path / "f" / "detections.json").read_text()

    url = f"{given.as_uri()}#sha256={checksum(given)}"
    start = (predict.main, monkeypatch, capsys)
    call(*start, f"checkpoint='{url}'", f"input={image}", f"data.root={root}", "device=cpu", f"output={tmp_path / 'p'}")
    assert json.loads((tmp_path / "p" / "detections.json").read_text())
    given.unlink()
    call(*start, f"checkpoint='{url}'", f"input={image}", f"data.root={root}", "device=cpu", f"output={tmp_path / 'q'}")
    wrong = call(*start, f"checkpoint='{url[:-1]}{'0' if url[-1] != '0' else '1'}'", f"input={image}", code=2)
    assert "checkpoint: file://" in wrong


def test_a_url_must_tell_its_checksum(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"weights")
    with pytest.raises(ValueError, match="must end in its file's checksum"):
        local_copy(file.as_uri(), tmp_path / "cache")
    with pytest.raises(ValueError, match=r"its checksum is .*, not 0{64}: it is not used"):
        local_copy(f"{file.as_uri()}#sha256={'0' * 64}", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir()), "what is not used is not kept"
    assert local_copy(f"{file.as_uri()}#sha256={checksum(file)}", tmp_path / "cache").read_bytes() == b"weights"


def test_a_file_that_was_changed_or_is_a_strangers_is_refused(given, tmp_path, monkeypatch, capsys):
    held = bytearray(given.read_bytes())
    held[-5] ^= 1
    given.write_bytes(held)
    with pytest.raises(DamagedCheckpointError, match="damaged: its weights are not those that were published"):
        load_checkpoint(given)
    stranger = tmp_path / "stranger.safetensors"
    save_file({"a": torch.zeros(2)}, str(stranger))
    with pytest.raises(CheckpointError, match="not published by detkit: it has no entry 'detkit'"):
        load_checkpoint(stranger)
    stranger.write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        load_checkpoint(stranger)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"calibration": 5}, "'calibration' must be a mapping, not 5"),
        ({"config": [1]}, r"'config' must be a mapping, not \[1\]"),
        ({"metrics": {"AP": "x"}}, "'metrics.AP' must be a number, not 'x'"),
        ({"step": "1"}, "'step' must be a whole number, not '1'"),
        ({"digest": None}, "'digest' must be a text, not None"),
        ({"categories": None}, "'categories' must be a mapping, not None"),
        ({"format": "1"}, "format '1'; this detkit reads format 1"),
    ],
)
def test_an_entry_of_another_type_is_named(changes, words, tmp_path):
    weights = {"a": torch.zeros(2)}
    held = {"step": 0, "calibration": None, "licence": "MIT", "digest": digest_of(weights), "config": {}, "metrics": {}}
    held |= {"versions": {}, "categories": {"names": ["a"], "ids": [1]}}
    path = tmp_path / "A.SAFETENSORS"  # endings are read whatever their case
    write_published(path, weights, Published(**held))
    assert load_checkpoint(path).step == 0
    write_published(path, weights, Published(**held | changes))
    with pytest.raises(CheckpointError, match=f"A.SAFETENSORS: .*{words}"):
        load_checkpoint(path)


def test_a_licence_is_asked_for(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    start = (publish.main, monkeypatch, capsys, f"checkpoint={checkpoint}")
    assert "licence" in call(*start, code=2)
    assert "say what others may do" in call(*start, "licence=' '", code=2)
    assert "the file ends in .safetensors, not x.pt" in call(*start, "licence=MIT", "output=x.pt", code=2)


def test_nothing_is_written_over_and_no_half_is_left(given, checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    start = (publish.main, monkeypatch, capsys, f"checkpoint={checkpoint}", "licence=MIT")
    before = given.read_bytes(), given.with_suffix(".md").read_text()
    said = call(*start, f"output={given}", code=2)
    assert "shapes.safetensors and " in said
    assert "shapes.md are there; nothing is written over: choose another name" in said
    (tmp_path / "new.md").write_text("mine")
    assert "new.md is there; nothing is written over" in call(*start, f"output={tmp_path / 'new.safetensors'}", code=2)
    assert (given.read_bytes(), given.with_suffix(".md").read_text()) == before

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(publish, "atomic_write", full)
    said = call(*start, f"output={tmp_path / 'a' / 'b' / 'own.safetensors'}", code=1)
    assert "own.md: No space left on device" in said
    assert not (tmp_path / "a").exists()
    assert f"{given}/sub: Not a directory" in call(*start, f"output={given / 'sub' / 'x.safetensors'}", code=1)


def test_a_file_that_does_not_fit_on_the_disk_is_told_and_all_may_read_one_that_does(tmp_path):
    weights, beside = {"a": torch.zeros(20_000)}, {"categories": {}, "config": {}, "metrics": {}, "versions": {}}
    held = Published(step=0, calibration=None, licence="MIT", digest=digest_of(weights), **beside)
    path, plain = tmp_path / "own.safetensors", tmp_path / "plain"
    with largest_file(10_000), pytest.raises(OSError, match=r"File too large: .*own.safetensors"):
        write_published(path, weights, held)
    assert not list(tmp_path.iterdir())
    write_published(path, weights, held)
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_weights_that_are_of_no_use_are_not_given_away(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    state = torch.load(checkpoint, weights_only=True)
    state["detector"]["backbone.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "lost.pt")
    said = call(publish.main, monkeypatch, capsys, f"checkpoint={tmp_path / 'lost.pt'}", "licence=MIT", code=1)
    assert "lost.pt is of no use: backbone.conv1.weight has 1 of" in said
    said = call(publish.main, monkeypatch, capsys, "checkpoint=a.onnx", "licence=MIT", code=2)
    assert "checkpoint: a.onnx is an exported file: publish the checkpoint that it was made from" in said
    assert [p.name for p in tmp_path.iterdir()] == ["lost.pt"]


def test_what_is_given_away_is_used_where_its_data_are_not(given, checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    """As the card says, on another computer: the pictures that it was trained on are of no use to it there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    image = next(checkpoint.parent.rglob("train_*.jpg"))
    assert len(detkit.load("shapes.safetensors", device="cpu").predict(image))
    url = f"checkpoint='{given.as_uri()}#sha256={checksum(given)}'"
    assert "output: say where the file goes" in call(publish.main, monkeypatch, capsys, url, "licence=MIT", code=2)
    call(publish.main, monkeypatch, capsys, url, "licence=MIT", "output=on.safetensors")
    one, two = load_checkpoint("shapes.safetensors"), load_checkpoint("on.safetensors")
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    said = call(evaluate.main, monkeypatch, capsys, "checkpoint=on.safetensors", "device=cpu", code=2)
    assert "no pictures are made because a checkpoint says so" in said
