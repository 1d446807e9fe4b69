"""``tools/audit.py`` of a cascade: what P-Net's windows can answer for, why not, and advice that does what it says."""

import json
import shlex

import pytest
import torch

from detkit.app.audit import tool as audit
from detkit.app.audit.advice import advise
from detkit.app.audit.found import Audit
from detkit.app.audit.plan import Planner
from detkit.models.mtcnn.pyramid import windows
from tests.app.test_audit import audited, batch_of, node_of
from tests.app.tools import call


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


def cascade(folder, *overrides):
    return node_of("mtcnn/shapes_tiny", folder, "data.train.num_train=12", *overrides)


def test_counts_by_scale_and_causes_by_hand(shapes):
    """On a window of scale 2, twice the same window, below min_size, and 4 : 1; an image of fewer scales beside them."""
    node = cascade(shapes, "model.min_size=16", "model.factor=0.5", "model.match_squares=false")
    detector, _, dataset, _ = audited(node)
    box = windows(torch.tensor([[3, 5]]), 0.375)[0]
    x1, y1, x2, y2 = box.tolist()
    batch = batch_of(
        box.tolist(), [x1 + 1, y1 + 1, x2 - 1, y2 - 1], [2.0, 2, 8, 8], [60.0, 90, 100, 100], size=(128, 128)
    )
    small = batch_of([9.0, 4, 24, 18], size=(20, 60))
    for one, truth in zip((batch, small), dataset.truths, strict=False):
        object.__setattr__(one.images.meta[0], "image_id", truth.image_id)
    planner = Planner(detector)
    found = Audit.of(planner, [batch, small], dataset)
    assert found.levels == (16, 32, 64, 128)
    assert (found.positives[0] > 0).tolist() == [False, True, False, False]
    assert found.fit[0] == 1
    assert found.positives[1:4].sum() == 0
    assert found.crowded_out.tolist() == [False, True, False, False, False]
    assert (found.positives[4] > 0).tolist() == [True, False, False, False], "the second image has one scale"
    assert [found.cause(i) for i in (1, 2, 3)] == [
        "another object has its reference",
        "smaller than the smallest windows (model.min_size, 16 px)",
        "too long for any square (model.match_squares)",
    ]
    assert found.rows()[0]["recall_ceiling"] == pytest.approx(2 / 5)
    assert found.why_none() == [
        "Without a reference: 1 another object has its reference; 1 smaller than the smallest windows (model.min_size, "
        "16 px); 1 too long for any square (model.match_squares)"
    ]
    report = found.to_dict([])
    assert [level["window"] for level in report["by_level"]] == [16, 32, 64, 128]
    assert [level["objects"] for level in report["by_level"]] == [1, 1, 0, 0]
    nearest, rival = planner.seen(batch, 0, 1)
    assert (nearest.tolist(), rival) == (box.tolist(), 0)
    squares = Planner(audited(cascade(shapes, "model.min_size=16", "model.factor=0.7", "model.match_squares=true"))[0])
    assert float(squares.assigned(batch.images, batch.targets)[0].fit[3]) > 0.65, "by its square"


def test_advice_for_a_cascade_does_what_it_promises(shapes):
    """Pasted into the command line, on the same boxes."""
    start = ("model.min_size=20", "model.match_squares=false")
    node = cascade(shapes, *start)
    detector, batches, dataset, found = audited(node)
    planner = Planner(detector)
    assert found.poor.mean() > 0.9
    assert (found.poor == (found.num_positive == 0)).all()
    sizes = {"train": {"flip": {}}, "val": {}}
    advice = advise(node, sizes, found, planner, batches, dataset.categories)
    keys = {word.split("=")[0] for a in advice for word in a.change.split()}
    assert {"model.min_size", "model.match_squares"} <= keys
    assert any("ResizeFit" in a.change for a in advice)
    *_, again = audited(cascade(shapes, *start, *shlex.split(advice[0].change)))
    assert again.poor.mean() == pytest.approx(advice[0].poor)
    assert again.poor.mean() < found.poor.mean() - 0.3
    assert f"{advice[0].poor:.1%} instead of {found.poor.mean():.1%} of the objects have no reference" in advice[0].text


def test_a_cascade_on_the_command_line(shapes, tmp_path, monkeypatch, capsys):
    options = [
        "experiment=mtcnn/shapes_tiny", f"data.root={shapes}", "data.train.num_train=9", "data.train.num_val=2",
        "num_images=6", "num_pictures=1", f"hydra.run.dir={tmp_path / 'out'}",
    ]  # fmt: skip
    output = call(audit.main, monkeypatch, capsys, *options, "model.min_size=12")
    report = json.loads((tmp_path / "out" / "audit.json").read_text())
    row = report["rows"][0]
    assert sum(report["without"].values()) == row["none"] > 0
    assert "smaller than the smallest windows (model.min_size, 12 px)" in report["without"]
    assert "Without a reference: " in output
    assert "references of P-Net for each object" in output
    html = (tmp_path / "out" / "audit.html").read_text()
    for words in ("answer for", "nearest window", "window 12", "A reference is a window of P-Net at test", "model.min"):
        assert words in html, words
    assert "anchor" not in html
    output = call(audit.main, monkeypatch, capsys, *options, "model.min_size=400")
    assert "Every window (from 400 px) is larger than the image of 128 px: model.min_size." in output
