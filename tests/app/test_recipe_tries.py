"""What is tried for a recipe: the verdict, on stub runs, in the folders and under the names that real ones get."""

from __future__ import annotations

import json
import re

import pytest
from omegaconf import OmegaConf

from detkit.app.recipe import tries
from detkit.app.recipe.files import Place
from detkit.app.recipe.given import View
from detkit.app.recipe.made import Option
from detkit.app.recipe.tries import Trial
from detkit.app.sweep.folder import read_jobs
from detkit.app.sweep.process import JobError
from tests.app.test_compare import make_run

FIRST = Option("faster_rcnn_fpn", View(320))
OTHER = Option("centernet", View(320))
LARGER = Option("faster_rcnn_fpn", View(416))


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """Tries the options of ``lost``, which miss these shares of the objects, with ``seeds`` runs each at the end."""
    rounds = []

    def tried(lost, seeds=1, failing=(), data=("of train", "of val")):
        def run_jobs(jobs, slots):
            rounds.append([job.label for job in jobs])
            outcomes = {}
            for job in jobs:
                name, seed = job.label.split(" seed=")
                if name in failing:
                    outcomes[job.key] = JobError("failed")
                    continue
                share = next(share for option, share in lost.items() if option.name == name)
                run = job.folder if job.folder.exists() else make_run(job.folder, int(seed), name, share)
                (run / "manifest.json").write_text(json.dumps({"command": ["train.py", f"experiment={name}"]}))
                outcomes[job.key] = json.loads((run / "result.json").read_text())
            return outcomes

        def compose(place):
            return OmegaConf.create({"seed": 0, "model": place.name, "trainer": {"steps": 4}})

        monkeypatch.setattr(tries, "run_jobs", run_jobs)
        monkeypatch.setattr(Place, "compose", compose)
        monkeypatch.setattr(tries, "_SAMPLES", 100)
        run = Trial(tmp_path / "tries", lambda option, minutes, place: None, 6.0, seeds, data).run
        return run(list(lost)), rounds

    return tried


def test_of_two_the_second_is_written_where_it_is_shown_to_be_better(trial):
    made, rounds = trial({FIRST: 0.6, OTHER: 0.0}, seeds=2)
    assert rounds == [[f"{option.name} seed={seed}" for option in (FIRST, OTHER) for seed in range(2)]]
    assert made.best is OTHER
    assert made.words[-1].startswith("centernet_320 against faster_rcnn_fpn_320: AP +0.")
    assert made.words[-1].endswith("written: centernet_320")
    assert made.words[0].startswith("Tried for 1.5 minutes each: faster_rcnn_fpn_320 AP ")


def test_one_seed_does_not_overturn_the_rules(trial):
    """Its interval is of the images alone: of two equal systems the luckier training can be far above the other."""
    made, _ = trial({FIRST: 0.6, OTHER: 0.0}, seeds=1)
    assert made.best is FIRST
    assert re.search(r"AP \+0\.\d+ \[\+0\.\d+, \+0\.\d+\] \(images alone\); written: faster_", made.words[-1])
    assert made.words[-1].endswith(
        "written: faster_rcnn_fpn_320, since one seed does not tell a better system from a luckier training: "
        "try_seeds=2 can"
    )


@pytest.mark.parametrize("lost", [{FIRST: 0.02, OTHER: 0.0}, {FIRST: 0.0, OTHER: 0.6}], ids=["no difference", "worse"])
def test_of_two_the_first_is_written_where_the_second_is_not_shown_to_be_better(trial, lost):
    made, _ = trial(lost, seeds=2)
    assert made.best is FIRST
    assert made.words[-1].startswith("centernet_320 against faster_rcnn_fpn_320: AP ")
    assert made.words[-1].endswith("written: faster_rcnn_fpn_320")


def test_of_three_the_better_two_are_compared_in_the_order_of_the_rules(trial):
    made, rounds = trial({FIRST: 0.6, OTHER: 0.3, LARGER: 0.0}, seeds=2)
    assert len(rounds[0]) == 3
    assert {label.split(" seed=")[0] for label in rounds[1]} == {"centernet_320", "faster_rcnn_fpn_416"}
    assert len(rounds[1]) == 4
    assert made.best is LARGER
    assert made.words[-1].startswith("faster_rcnn_fpn_416 against centernet_320: AP +0.")
    assert [words[:27] for words in made.words[:2]] == ["Tried for 1.0 minutes each:", "Tried for 0.8 minutes each:"]


def test_what_failed_is_no_candidate(trial):
    made, rounds = trial({FIRST: 0.6, OTHER: 0.3, LARGER: 0.0}, seeds=2, failing=["centernet_320"])
    assert {label.split(" seed=")[0] for label in rounds[1]} == {"faster_rcnn_fpn_320", "faster_rcnn_fpn_416"}
    assert made.best is LARGER


def test_runs_on_other_data_are_others(trial, tmp_path):
    """A finished run is found by its folder: neither pictures to learn from nor such to measure by may have changed."""
    folders = []
    for data in (("a", "b"), ("a", "b"), ("other", "b"), ("a", "other")):
        trial({FIRST: 0.6, OTHER: 0.0}, data=data)
        folders.append(set(read_jobs(tmp_path / "tries" / "round1")))
    assert folders[0] == folders[1]
    assert len(set.union(*folders)) == 3 * len(folders[0])
