"""``tools/replay.py``: a run that fails, and its last step shown again."""

import cv2
import pytest
import torch

from detkit.app import train
from detkit.app.inspect import replay
from detkit.engine import NonFiniteError
from detkit.engine.bad_steps.divergence import load_bundle
from tests.app.test_configs import composed


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    cfg = composed(
        "experiment=quickstart", "device=cpu", f"data.root={folder / 'shapes'}", "data.train.num_train=2",
        "data.train.num_val=1", "data.train.image_size=64", "data.loader.train.batch_size=2", "callbacks={}",
    )  # fmt: skip
    trainer, _ = train.build_trainer(cfg, folder)
    with torch.no_grad():
        trainer.detector.head.roi.network.cls_score.weight[3, 5] = torch.inf
    with pytest.raises(NonFiniteError):
        trainer.fit()
    return folder / "divergence_step1.pt"


def test_the_step_is_shown_again(bundle, capsys):
    replay.main([str(bundle)])
    output = capsys.readouterr().out
    assert "likeliest cause: head.roi.network.cls_score.weight has 1 of" in output
    assert "train_00000.jpg" in output
    assert "loss terms: rpn_cls" in output
    assert "again: the first layer whose output is not finite: head.roi.network.cls_score; rpn_cls" in output
    assert "(as in the run)" in output
    picture = cv2.imread(str(bundle.with_suffix(".png")))
    assert picture.shape[1] > 1.5 * picture.shape[0], "two images beside each other"


def test_another_outcome_is_said(bundle, tmp_path, capsys):
    state = torch.load(bundle, weights_only=True)
    state["weights"]["head.roi.network.cls_score.weight"][3, 5] = 0
    torch.save(state, tmp_path / "mended.pt")
    replay.main([str(tmp_path / "mended.pt")])
    output = capsys.readouterr().out
    assert "again: everything is finite; rpn_cls" in output
    assert "(NOT as in the run)" in output


@pytest.fixture(scope="module")
def of_counts(tmp_path_factory):
    """The report of a loss that knows how often each class comes, in a step whose boxes fail."""
    folder = tmp_path_factory.mktemp("counts")
    cfg = composed(
        "experiment=quickstart", "device=cpu", f"data.root={folder / 'shapes'}", "data.train.num_train=2",
        "data.train.num_val=1", "data.train.image_size=64", "data.loader.train.batch_size=2", "callbacks={}",
        "loss@model.head.roi.cls_loss=Seesaw", "model.head.roi.cls_loss.q=0",
    )  # fmt: skip
    trainer, _ = train.build_trainer(cfg, folder)
    assert len(set(trainer.detector.head.roi.cls_loss.class_counts)) > 1
    with torch.no_grad():
        trainer.detector.head.roi.network.bbox_pred.weight[0, 5] = torch.inf
    with pytest.raises(NonFiniteError):
        trainer.fit()
    return folder / "divergence_step1.pt"


def test_what_a_loss_knows_of_the_data_is_there_again_to_the_bit(of_counts, tmp_path):
    bundle = load_bundle(of_counts)
    seen = replay.show(of_counts)
    assert seen.terms["roi_cls"] == bundle.terms[0]["roi_cls"]
    assert replay.in_words(seen, bundle).endswith("(as in the run)")
    state = torch.load(of_counts, weights_only=True)
    older = {name: value for name, value in state.items() if name != "class_counts"} | {"format": 2}
    torch.save(older, tmp_path / "older.pt")
    without = replay.show(tmp_path / "older.pt")
    assert without.terms["roi_cls"] != seen.terms["roi_cls"], "a report of format 2 does not know them"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"format": 7}, "format 7, written by detkit"), ({"kind": "?"}, "not a divergence report"),
     ({"config": {}}, "the bundle has no configuration"), ({"weights": None}, "the bundle has no weights")],
)  # fmt: skip
def test_mistakes_get_one_clear_line(bundle, tmp_path, capsys, change, words):
    torch.save(torch.load(bundle, weights_only=True) | change, tmp_path / "other.pt")
    with pytest.raises(SystemExit):
        replay.main([str(tmp_path / "other.pt")])
    assert f"error: {'' if 'bundle' in words else tmp_path / 'other.pt'}" in (error := capsys.readouterr().err)
    assert words in error
    with pytest.raises(SystemExit):
        replay.main([str(tmp_path / "nowhere.pt")])
    assert "nowhere.pt: there is no such file" in capsys.readouterr().err
