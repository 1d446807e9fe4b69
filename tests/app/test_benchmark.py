"""The benchmark runs what it says, on both sides. Its times are not tested: see tools/benchmark.py."""

import torch

from detkit.app import benchmark, benchmark_divergence, benchmark_ops

CPU = torch.device("cpu")


def test_roi_align_is_timed_on_both_sides():
    results = benchmark.benchmark_roi_align(CPU, repeats=1)
    assert len(results) == 4
    assert all(
        set(times) == {"torchvision", "detkit"} and all(len(v) == 1 for v in times.values())
        for times in results.values()
    )


def test_every_op_meets_its_peer_and_its_bound():
    machine = benchmark_ops.Machine(bandwidth=1e9, rate=1e12)
    assert machine.bound(2e9, 1e12) == 2.0
    assert machine.bound(1e9, 3e12) == 3.0
    made = benchmark_ops.contests(CPU, torch.float32, [1], shrink=16)
    for contest in made:
        ours, theirs = contest.ours(*contest.inputs), contest.theirs(*contest.inputs)
        assert ours.shape == theirs.shape
        if "deformable RoI" not in contest.title:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    rows = benchmark_ops.rows(made[0], machine, 1, CPU)
    assert [row[1] for row in rows] == ["forward", "and backward"]


def test_training_compares_models_of_one_size():
    ours, theirs = benchmark._detkit_model(), benchmark._torchvision_model()
    sizes = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert sizes[1] - sizes[0] == 4 * 1024 + 4, "torchvision alone regresses a box for background"
    images, targets = benchmark.made_batch(1, CPU)
    assert ours(images, targets).total.isfinite()


def test_ratios_are_against_the_first():
    table = benchmark.timing_table({"peer": [0.2, 0.4, 0.3], "ours": [0.1, 0.1, 0.1]}, "title")
    assert list(table.columns[3].cells) == ["1.00", "3.00"]
    assert list(table.columns[1].cells) == ["300.0", "100.0"]


def test_the_watch_is_timed_in_a_training_that_goes_on(monkeypatch):
    """Both sides take real steps, and what is timed alone is what the trainer calls."""
    overrides = ["device=cpu", "data.train.num_train=8", "data.train.num_val=1", "data.train.image_size=64"]
    calls = []
    for name in ("begin", "check", "guard"):
        original = getattr(benchmark_divergence.StepWatch, name)
        monkeypatch.setattr(
            benchmark_divergence.StepWatch, name, lambda *a, name=name, do=original: (calls.append(name), do(*a))[1]
        )
    cost = benchmark_divergence.benchmark_divergence(2, torch.get_num_threads(), overrides)
    assert [len(times) for times in cost] == [2, 2, 2]
    assert calls == ["begin", "guard", "check"] * 5, "three steps with it, one of them to warm up, and two by itself"
    assert 0 < cost.share < 1
    assert f"{cost.share:.2%} of a step" in str(cost)
