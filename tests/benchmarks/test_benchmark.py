"""The benchmark runs what it says, on both sides. Its times are not tested: see tools/benchmark.py."""

import pytest
import torch

from benchmarks import contests as benchmark_contests
from benchmarks import divergence as benchmark_divergence
from benchmarks import models as benchmark_models
from benchmarks import ops as benchmark_ops
from benchmarks import shown as benchmark_shown
from benchmarks import tool as benchmark
from benchmarks import training as benchmark_training

CPU = torch.device("cpu")


def test_roi_align_is_timed_on_both_sides():
    results = benchmark.benchmark_roi_align(CPU, repeats=1)
    assert len(results) == 4
    assert all(
        set(times) == {"torchvision", "detkit"} and all(len(v) == 1 for v in times.values())
        for times in results.values()
    )


def test_every_op_meets_its_peers_with_every_gradient():
    ops = set()
    for make in benchmark_contests.contests(CPU, torch.float32, [1, 2], shrink=16):
        contest = make()
        ops.add(contest.op)
        results = {}
        for name, op in contest.contestants.items():
            out = op(*contest.inputs)
            upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
            results[name] = [out, *torch.autograd.grad(out, contest.inputs, upstream)]
        assert set(results) == {"detkit", "pure torch"} | (
            {"torchvision"} if "RoI pooling" not in contest.op else set()
        )
        for peer in results.values():
            for ours, theirs in zip(results["detkit"], peer, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3, msg=lambda m, c=contest: f"{c.op}: {m}")
    assert len(ops) == 5


def test_ops_are_timed_against_the_hardware_bound():
    machine = benchmark_ops.Machine(bandwidth=1e9, rate=1e12)
    assert machine.times(2e9, 1e12) == (2.0, 1.0)
    contest = benchmark_contests.Contest(
        "op", "shape", {"detkit": torch.relu, "torchvision": _refuses, "pure torch": torch.relu},
        (torch.ones(3, requires_grad=True),), (1e6, 2e6), (5e9, 1e9),
    )  # fmt: skip
    first, second = benchmark_ops.rows(contest, machine, 1, CPU)
    assert (first[0], first[1], second[0], second[1]) == ("op", "forward", "shape", "both")
    assert first[3] == "none"
    assert first[4] == ""
    assert float(first[5]) > 0
    assert float(first[6]) > 0
    assert first[7:11] == ("1.0", "5.00", "1.000", "5.000")
    assert second[7:11] == ("2.0", "1.00", "2.000", "1.000")


def test_what_was_timed_before_an_interruption_is_shown(monkeypatch, capsys):
    def rows(contest, *rest):
        if "position" in contest.op:
            raise KeyboardInterrupt
        return [(contest.op, *"abcdefghijk")]

    monkeypatch.setattr(benchmark_ops, "rows", rows)
    monkeypatch.setattr(benchmark_ops, "measure", lambda *a: benchmark_ops.Machine(1e9, 1e12))
    with pytest.raises(KeyboardInterrupt):
        benchmark_ops.benchmark_ops(CPU, 1, [1], shrink=16)
    shown = capsys.readouterr().out
    assert "RoIAlign of four levels" in shown
    assert "copies at 1 GB/s" in shown
    assert f"torch {torch.__version__}" in shown


def _refuses(x):
    raise NotImplementedError


def test_training_compares_models_of_one_size():
    more = {
        "faster_rcnn": 4 * 1024 + 4,
        "retinanet": 0,
        "coco_r50": 4 * 1024 + 4,
    }  # torchvision alone regresses a box for background
    for name, expected in more.items():
        ours, theirs = benchmark_models.recipe_detector(name), benchmark_models.torchvision_peer(name)
        assert theirs is not None
        sizes = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
        assert sizes[1] - sizes[0] == expected, name
        learnt = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, theirs)]
        assert learnt[1] - learnt[0] == expected, name
    ours = benchmark_models.recipe_detector("faster_rcnn")
    images, targets = benchmark_training.made_batch(1, CPU)
    assert ours(images, targets).total.isfinite()


def test_ratios_are_against_the_first():
    table = benchmark_shown.timing_table({"peer": [0.2, 0.4, 0.3], "ours": [0.1, 0.1, 0.1]}, "title", 4)
    assert list(table.columns[4].cells) == ["13.33", "40.00"]
    assert list(table.columns[3].cells) == ["1.00", "3.00"]
    assert list(table.columns[1].cells) == ["300.0", "100.0"]


def test_the_watch_is_timed_in_a_training_that_goes_on(monkeypatch):
    """Both sides take real steps, and what is timed alone is what the trainer calls."""
    overrides = ["device=cpu", "data.train.num_train=8", "data.train.num_val=1", "data.train.image_size=64"]
    calls = []
    for name in ("begin", "check", "inspect", "guard"):
        original = getattr(benchmark_divergence.StepWatch, name)
        monkeypatch.setattr(
            benchmark_divergence.StepWatch, name, lambda *a, name=name, do=original: (calls.append(name), do(*a))[1]
        )
    cost = benchmark_divergence.benchmark_divergence(2, torch.get_num_threads(), overrides)
    assert [len(times) for times in cost] == [2, 2, 2]
    assert calls == ["begin", "inspect", "guard", "check"] * 5, "three with it, one to warm up, two alone"
    assert 0 < cost.share < 1
    assert f"{cost.share:.2%} of a step" in str(cost)
