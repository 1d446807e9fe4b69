"""What a step costs against the number of classes: that the parts are timed which the table names."""

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from benchmarks import models as benchmark_models
from benchmarks import processes as benchmark_processes
from benchmarks import tool as benchmark
from benchmarks import training as benchmark_training
from benchmarks import vocabulary as benchmark_vocabulary
from benchmarks.vocabulary import HEADS, StepCost, class_layer_alone, measure

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(benchmark_training, "SIZE", (96, 128))


def test_a_step_and_its_class_layer_are_timed(small, monkeypatch):
    ran = {}
    timed = benchmark_vocabulary.time_alternately

    def spied(contestants, *rest):
        ran.update(dict.fromkeys(contestants, 0))
        return timed({name: lambda n=name, run=run: (ran.update({n: ran[n] + 1}), run()) for name, run in contestants.items()}, *rest)  # fmt: skip

    monkeypatch.setattr(benchmark_vocabulary, "time_alternately", spied)
    cost = measure("cosine, a tenth drawn", 40, 1, 2, torch.get_num_threads(), "cpu")
    assert ran == {"step": 3, "class layer": 3}
    assert 0 < cost.class_layer < cost.step
    assert cost.memory > 2**26


@pytest.mark.parametrize("head", ["softmax", "cosine", "cosine, a tenth drawn"])
def test_the_class_layer_alone_learns_what_the_head_would_let_it(small, head):
    roi = benchmark_models.recipe_detector("faster_rcnn", 400, HEADS[head]).head.roi
    assert roi.network.bbox_pred.out_features == 4
    before = roi.network.cls_score.weight.detach().clone()
    features = torch.randn(64, 1024)
    class_layer_alone(roi, features)()
    moved = int((roi.network.cls_score.weight != before).any(1).sum())
    assert moved == (40 if "drawn" in head else len(before))
    assert features.grad.abs().sum() > 0, "what is below gets its gradient too"


def test_every_case_is_a_row_and_one_that_is_killed_says_so(monkeypatch, capsys):
    cases = []

    class Pool:
        def __init__(self, *given, **named): ...
        def __enter__(self):
            return self

        def __exit__(self, *error): ...

        def submit(self, measured, *case):
            assert measured is measure
            cases.append(case)
            future = Future()
            if case[1] == 9000:
                future.set_exception(BrokenProcessPool())
            else:
                future.set_result(StepCost(1.5, 0.25, 7 * 2**20))
            return future

    monkeypatch.setattr(benchmark_processes, "ProcessPoolExecutor", Pool)
    benchmark.run(["vocabulary", "--classes", "8", "9000", "--batch", "3"])
    assert cases == [(head, count, 3, 3, 1, "cpu") for head in HEADS for count in (8, 9000)]
    rows = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [row[2:7] for row in rows if row[2] == "8"] == [["8", "1500", "250", "1250", "7"]] * 4
    assert sum(row[3] == "killed: not enough memory?" for row in rows if row[2] == "9,000") == 4


def test_what_was_timed_before_an_interruption_is_shown(monkeypatch, capsys):
    found = iter([StepCost(1.0, 0.5, 2**20)])

    def next_one(*case):
        if (cost := next(found, None)) is None:
            raise KeyboardInterrupt
        return cost

    monkeypatch.setattr(benchmark_vocabulary, "in_a_process_of_its_own", lambda _, *case: next_one(*case))
    with pytest.raises(KeyboardInterrupt):
        benchmark_vocabulary.main([])
    assert "softmax" in (shown := capsys.readouterr().out)
    assert "cosine" not in shown


def test_numbers_that_cannot_be_meant_are_refused():
    for option in ("batch", "repeats", "threads", "classes"):
        with pytest.raises(ValueError, match=f"--{option}: must be 1 or more, not 0"):
            benchmark_vocabulary.main([f"--{option}", "0"])
