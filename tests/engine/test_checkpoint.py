"""What a checkpoint refuses, in which words, and what it falls back to."""

from __future__ import annotations

import errno
import logging
import os
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.engine.state import checkpoint as module
from detkit.engine.state.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    Checkpoint,
    CheckpointError,
    DamagedCheckpointError,
    check_categories,
    load_checkpoint,
    load_config,
    load_latest,
    load_weights,
    save_checkpoint,
)
from detkit.structures import Categories
from tests.engine.stubs import CATEGORIES, StubDetector, digest, digest_of_run, make_trainer


def small(step: int = 5, **changes: Any) -> Checkpoint:
    arguments: dict[str, Any] = {
        "step": step,
        "detector": {"weight": torch.arange(300.0), "bias": torch.ones(3)},
        "categories": CATEGORIES,
        "config": {"lr": 0.1, "steps": [1, 2]},
        "metrics": {"AP": 0.5},
    }
    return Checkpoint(**{**arguments, **changes})


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run folder with two saves."""
    for step in (4, 8):
        save_checkpoint(tmp_path / LAST, small(step), keep=tmp_path / PREVIOUS)
    return tmp_path


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    saved = small(average={"num_updates": 2, "detector": {"weight": torch.zeros(2)}}, training={"a": [1, None, (2, 3)]})
    save_checkpoint(tmp_path / LAST, saved)
    loaded = load_checkpoint(tmp_path / LAST)
    assert loaded.source == str(tmp_path / LAST)
    assert loaded.categories == CATEGORIES
    for name in ("step", "detector", "average", "config", "metrics", "training", "versions"):
        assert digest(getattr(loaded, name)) == digest(getattr(saved, name)), name
    assert loaded.versions["torch"] == torch.__version__
    assert [p.name for p in tmp_path.iterdir()] == [LAST]


def test_weights_are_the_averaged_ones_where_there_are_any() -> None:
    average = {"num_updates": 1, "detector": {"weight": torch.zeros(2)}}
    assert small(average=average).weights is average["detector"]
    assert set(small().weights) == {"weight", "bias"}


def test_a_file_cut_off_anywhere_is_refused_and_previous_stands_in(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = (run_dir / LAST).read_bytes()
    for tenth in range(10):
        (run_dir / LAST).write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(
            DamagedCheckpointError, match=r"last\.pt: cut off, damaged or no checkpoint at all: File is not"
        ):
            load_checkpoint(run_dir / LAST)
        with caplog.at_level(logging.WARNING, "detkit"):
            assert load_latest(run_dir).step == 4
    assert f"File is not a zip file; going back to {run_dir / PREVIOUS} of step 4" in caplog.text


def test_a_flipped_byte_is_found_and_its_record_named(run_dir: Path) -> None:
    path = run_dir / LAST
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        record = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    value = torch.arange(300.0).numpy().tobytes()
    place = bytes(whole).index(value) + 401
    whole[place] ^= 1
    path.write_bytes(whole)
    words = f"{path}: damaged: the record {record.filename} does not match its checksum"
    with pytest.raises(DamagedCheckpointError, match=f"^{re.escape(words)}$"):
        load_checkpoint(path)
    torch.load(path, weights_only=True)  # which alone does not notice
    assert load_latest(run_dir).step == 4


def test_a_record_marked_as_a_folder_is_found(run_dir: Path) -> None:
    """torch would leave its tensor uninitialised, and no checksum covers the mark."""
    path = run_dir / LAST
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        name = next(info.filename for info in archive.infolist() if info.filename.endswith("data/0"))
    entry = whole.rindex(name.encode()) - 46  # where its entry in the table of contents begins
    whole[entry + 38] ^= 0x10
    path.write_bytes(whole)
    with pytest.raises(DamagedCheckpointError, match=f"damaged: the record {name} does not match its checksum"):
        load_checkpoint(path)


def test_no_flipped_byte_gives_other_contents(run_dir: Path) -> None:
    path = run_dir / LAST
    whole = path.read_bytes()
    expected = digest(_contents(load_checkpoint(path)))
    refused = 0
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            assert digest(_contents(load_checkpoint(path))) == expected, place
        except CheckpointError:
            refused += 1
    assert refused > len(whole) / 7 / 2


def _contents(checkpoint: Checkpoint) -> list[Any]:
    return [
        checkpoint.step,
        checkpoint.detector,
        checkpoint.config,
        checkpoint.metrics,
        checkpoint.categories.to_dict(),
    ]


def test_previous_stands_in_for_a_missing_last_and_both_missing_is_said(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run_dir / LAST).unlink()
    assert load_latest(run_dir).step == 4
    assert f"{run_dir / LAST} is missing; going back to" in caplog.text
    (run_dir / PREVIOUS).unlink()
    words = f"{run_dir}: no checkpoint there: neither last.pt nor previous.pt"
    with pytest.raises(CheckpointError, match=f"^{re.escape(words)}$"):
        load_latest(run_dir)


def test_a_damaged_last_without_previous_is_an_error(run_dir: Path) -> None:
    (run_dir / PREVIOUS).unlink()
    (run_dir / LAST).write_bytes(b"PK\x03\x04 not much")
    with pytest.raises(DamagedCheckpointError):
        load_latest(run_dir)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(run_dir: Path) -> None:
    (run_dir / LAST).chmod(0)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(run_dir / LAST))} cannot be read: Permission denied$"):
        load_checkpoint(run_dir / LAST)


def test_a_folder_is_told_with_the_best_weights_in_it(tmp_path: Path) -> None:
    words = "a file is wanted, as best.pt or last.pt of a run"
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'{tmp_path}: is a folder; {words}')}$"):
        load_checkpoint(tmp_path)
    (tmp_path / "best.pt").touch()
    told = f"{tmp_path}: is a folder, which has {tmp_path / 'best.pt'}; {words}"
    with pytest.raises(CheckpointError, match=f"^{re.escape(told)}$"):
        load_checkpoint(tmp_path)


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: there is no such file$"):
        load_checkpoint(path)
    torch.save({"conv.weight": torch.ones(1), "conv.bias": torch.ones(1)}, path)
    words = f"{path}: not a checkpoint of detkit: it holds a dictionary of conv.weight, conv.bias"
    with pytest.raises(CheckpointError, match=f"^{re.escape(words)}$"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"it holds a list$"):
        load_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/letter.txt", "dear")
    with pytest.raises(DamagedCheckpointError, match="damaged or no checkpoint"):
        load_checkpoint(path)


def test_a_program_of_torchs_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(2),)), path)
    words = r"a\.pt2: torch's exported program, .* for evaluate, explain and predict a \.onnx file$"
    for read in (load_checkpoint, load_config):
        with pytest.raises(CheckpointError, match=words) as caught:
            read(path)
        assert caught.type is CheckpointError


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({name: None}, f"it has no entry '{name}'") for name in (
            "step", "categories", "config", "metrics", "versions", "average", "training")),
        ({"detector": 5}, "its entry 'detector' must be a mapping, not 5"),
        ({"detector": {"a": 5}}, "its entry 'detector' must be a mapping of tensors"),
        ({"detector": {"a": torch.ones(2).to_sparse()}}, "the tensor detector.a is sparse_coo, not dense"),
        ({"detector": {"a": torch.ones(2, device="meta")}}, "the tensor detector.a is a shape without values, not dense"),
        ({"average": {}}, "its entry 'average.detector' must be a mapping of tensors"),
        ({"average": 5}, "its entry 'average' must be a mapping or None"),
        ({"step": "abc"}, "its entry 'step' must be a whole number, not 'abc'"),
        ({"metrics": {"AP": "x"}}, "its entry 'metrics.AP' must be a number, not 'x'"),
        ({"versions": {"detkit": 5}}, "its entry 'versions.detkit' must be a text, not 5"),
        ({"categories": {}}, "its entry 'categories' cannot be read: KeyError('names')"),
        ({"calibration": 5}, "its entry 'calibration' must be a mapping, not 5"),
        ({"format": "2"}, "format '2', written by detkit"),
    ],
)  # fmt: skip
def test_an_entry_that_is_missing_or_of_another_type_is_named(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / LAST, small())
    state = torch.load(tmp_path / LAST, weights_only=True)
    for form in (1, 2) if "format" not in changes else (2,):
        new = {**state, "format": form, **changes}
        torch.save({k: v for k, v in new.items() if v is not None or k not in changes}, tmp_path / BEST)
        with pytest.raises(CheckpointError, match=f"^{re.escape(f'{tmp_path / BEST}: {words}')}"):
            load_checkpoint(tmp_path / BEST)


def test_weights_of_another_type_are_described() -> None:
    detector = StubDetector()
    for kind, word in ((torch.int8, "int8"), (torch.complex64, "complex64")):
        weights = {**detector.state_dict(), "head.weight": torch.ones(5, 4, dtype=kind)}
        with pytest.raises(CheckpointError, match=rf"\n  1 of another type: head\.weight {word}$"):
            load_weights(detector, weights, "best.pt")
    load_weights(detector, {k: v.double() for k, v in detector.state_dict().items()}, "best.pt")


def test_another_format_is_named_with_its_version(run_dir: Path) -> None:
    state = torch.load(run_dir / LAST, weights_only=True)
    state["format"], state["versions"] = 99, {"detkit": "9.1.0"}
    torch.save(state, run_dir / LAST)
    words = r"last\.pt: format 99, written by detkit 9\.1\.0; this is detkit \S+, which reads formats 1 to 2$"
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(run_dir / LAST)


class _Trap:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def test_a_checkpoint_cannot_run_code(run_dir: Path) -> None:
    canary = run_dir / "canary"
    state = torch.load(run_dir / LAST, weights_only=True)
    torch.save({**state, "config": _Trap(canary)}, run_dir / LAST)
    words = f"{run_dir / LAST}: refused: it asks for {os.system.__module__}.system, which could run code"
    with pytest.raises(CheckpointError, match=f"^{re.escape(words)}$"):
        load_checkpoint(run_dir / LAST)
    with pytest.raises(CheckpointError, match="could run code"):
        load_latest(run_dir)  # refused, not replaced by previous.pt: it is no accident
    assert not canary.exists()


def test_what_could_not_be_read_again_is_not_saved(run_dir: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^a checkpoint with pathlib\.\w+ in it could not be read again$"):
        save_checkpoint(run_dir / LAST, small(config={"root": run_dir}), keep=run_dir / PREVIOUS)
    assert load_latest(run_dir).step == 8
    assert sorted(p.name for p in run_dir.iterdir()) == [LAST, PREVIOUS]


class _FullDisk:
    """A file whose disk is full after ``room`` bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> _FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.mark.parametrize("room", [0, 1000, 3000])
def test_a_full_disk_leaves_the_old_checkpoints(run_dir: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    before = digest(_contents(load_checkpoint(run_dir / LAST)))
    monkeypatch.setattr(module, "open", lambda path, mode: _FullDisk(Path(path).open(mode), room), raising=False)  # noqa: SIM115
    path = run_dir / LAST
    words = f"{path} cannot be written at step 12: No space left on device; {path} is still the one from before"
    with pytest.raises(CheckpointError, match=f"^{re.escape(words)}$"):
        save_checkpoint(path, small(12), keep=run_dir / PREVIOUS)
    assert digest(_contents(load_checkpoint(path))) == before
    assert load_checkpoint(run_dir / PREVIOUS).step == 4
    assert sorted(p.name for p in run_dir.iterdir()) == [LAST, PREVIOUS]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_run_on_a_disk_that_fills_up_stops_and_goes_on_elsewhere(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        run = disk / "run"
        run.mkdir()
        options: dict[str, Any] = {"eval_every": None, "val_loader": None, "evaluator": None, "steps": 12}
        make_trainer(run, **{**options, "steps": 6}).fit()
        trainer = make_trainer(run, **options)
        trainer.restore(load_latest(run))
        (disk / "filler").write_bytes(bytes(_room(disk) - 8192))
        with pytest.raises(
            CheckpointError, match=r"last\.pt cannot be written at step 9: No space left on device; .*before$"
        ):
            trainer.fit()
        assert sorted(p.name for p in run.iterdir()) == [LAST, PREVIOUS]
        assert load_latest(run).step == 6
        (disk / "filler").unlink()
        trainer = make_trainer(run, **options)
        trainer.restore(load_latest(run))
        trainer.fit()
        straight = tmp_path / "straight"
        straight.mkdir()
        make_trainer(straight, **options).fit()
        assert digest_of_run(run) == digest_of_run(straight)
    finally:
        subprocess.run(["umount", disk], check=True)


def _room(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone" / LAST
    with pytest.raises(
        CheckpointError, match=f"^{re.escape(str(path))} cannot be written at step 5: No such file or dir"
    ):
        save_checkpoint(path, small())


def test_weights_of_another_model_are_described() -> None:
    detector = StubDetector()
    weights = dict(detector.state_dict())
    weights["head.weight"] = torch.ones(7, 4)
    del weights["head.bias"], weights["backbone.0.bias"]
    weights["neck.weight"] = torch.ones(1)
    before = digest(detector.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_weights(detector, weights, "best.pt")
    assert str(caught.value) == (
        f"best.pt holds another model ({len(detector.state_dict())} tensors here, {len(weights)} there):\n"
        "  2 missing: backbone.0.bias, head.bias\n"
        "  1 unknown: neck.weight\n"
        "  1 of another shape: head.weight (7, 4) instead of (5, 4)"
    )
    assert digest(detector.state_dict()) == before, "nothing is loaded by halves"
    with pytest.raises(CheckpointError, match=r"\n  11 missing: backbone\.0\.weight, .* and 6 more$"):
        load_weights(detector, {}, "best.pt")


def test_other_classes_are_described() -> None:
    with pytest.raises(CheckpointError) as caught:
        check_categories(small(source="best.pt"), Categories(("circle", "star"), (3, 9)))
    words = "best.pt was trained for other classes than the data set has: missing ['square']; not known ['star']"
    assert str(caught.value) == words
    check_categories(small(), CATEGORIES)


def test_a_run_leaves_three_files_and_best_holds_the_averaged_weights(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    result = trainer.fit()
    assert sorted(p.name for p in tmp_path.iterdir()) == [BEST, LAST, PREVIOUS]
    best = load_checkpoint(tmp_path / BEST)
    assert best.step == result.best_step
    assert best.metrics["AP"] == result.best
    assert best.training is None
    last = load_checkpoint(tmp_path / LAST)
    assert (last.step, load_checkpoint(tmp_path / PREVIOUS).step) == (12, 9)
    if best.step == last.step:
        assert digest(best.detector) == digest(last.average["detector"])  # pyright: ignore[reportOptionalSubscript]
    assert digest(last.weights) != digest(last.detector)
    assert best.config == last.config == {"model": {"depth": 2}}
