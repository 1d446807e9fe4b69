"""Where tools put what they found with a checkpoint: one folder for each thing that was asked."""

from pathlib import Path

import pytest

from detkit.app.run import beside


@pytest.fixture
def folder(monkeypatch):
    """The name of the folder that an evaluation with the given overrides gets."""

    def named(*overrides):
        typed = ["checkpoint=runs/a/best.pt", *overrides]
        left_out = lambda but: [word for word in typed if word.partition("=")[0] not in but]  # noqa: E731
        monkeypatch.setattr(beside, "said", left_out)
        path = beside.folder_beside("runs/a/best.pt", "evaluation", "val")
        assert path.parent == Path("runs/a")
        return path.name

    return named


def test_a_name_says_what_was_asked(folder):
    assert folder() == folder("device=cpu", "output=x", "data.loader.val.num_workers=2") == "evaluation_best_val"
    steps = "evaluation_best_val+model.head.steps-8"
    assert folder("model.head.steps=8") == folder("device=cpu", "model.head.steps=8") == steps
    assert folder("tta=flip", "model.head.steps=8") == folder("model.head.steps=8", "tta=flip") == f"{steps}+tta-flip"
    assert folder("tta/merge=WBF") == "evaluation_best_val+tta.merge-WBF"
    assert folder("val_loss=true", "precision=bf16") == "evaluation_best_val+precision-bf16+val_loss-true"
    assert folder("~evaluator") == "evaluation_best_val+evaluator-null"


def test_how_a_report_looks_is_not_in_its_name(folder):
    assert folder("num_pictures=3", "slots=2", "split=val") == "evaluation_best_val"


def test_what_a_tool_is_asked_for_is_in_its_name(folder):
    """Two aims of calibrate, folds and no folds of labels, two thresholds of explain: two answers, two folders."""
    assert folder("target.precision=0.9") == "evaluation_best_val+target.precision-0.9"
    assert folder("folds=5", "least=0.1") == "evaluation_best_val+folds-5+least-0.1"
    assert folder("score_threshold=0.5") == "evaluation_best_val+score_threshold-0.5"
    assert folder("num_examples=5") == "evaluation_best_val+num_examples-5"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["data.root=/a/b"], ["data.root=/a-b"]),
        (["data.root=/a/b"], ["data.root='/a/b c'"]),
        (["a.b=1"], ["a.b=-1"]),
        (["a.b=[1,2]"], ["a.b=[1]"]),
        (["data.root=" + "x" * 300], ["data.root=" + "x" * 301]),
        (["a=1+b-2"], ["a=1", "b=2"]),
        (["a=é"], ["a=è"]),
    ],
)
def test_two_questions_have_two_names_that_any_disk_takes(folder, one, other):
    names = folder(*one), folder(*other)
    assert names[0] != names[1]
    for name in names:
        assert len(name) < 200
        assert not set(name) & set("/\\ =\"'[]{},:*?<>|")
        assert name.isascii()
