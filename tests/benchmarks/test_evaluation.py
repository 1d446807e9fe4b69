from __future__ import annotations

import pytest

from benchmarks.evaluation import BackendTiming, benchmark_evaluation, main, timing_table
from detkit.evaluation.backends import installed_backends


def test_every_installed_backend_is_timed_and_compared() -> None:
    timings = benchmark_evaluation(num_images=5, num_categories=3, detections_per_image=20, repeats=2)
    assert [t.backend for t in timings] == list(installed_backends())
    assert all(len(t.seconds) == 2 and min(t.seconds) > 0 for t in timings)
    difference = {t.backend: t.difference for t in timings}
    assert difference["pycocotools"] == difference.get("hotcoco", 0) == 0
    assert difference.get("faster_coco_eval", 0) <= 2**-52


def test_ratios_are_against_the_reference() -> None:
    timings = [BackendTiming("hotcoco", (1.0, 2.0, 9.0), 0.0), BackendTiming("pycocotools", (50.0,), 0.0)]
    columns = {str(c.header): list(c.cells) for c in timing_table(timings).columns}
    assert columns["times as fast"] == ["25.0", "1.0"]
    assert columns["median s"] == ["2.000", "50.000"]
    assert columns["range s"] == ["1.000-9.000", "50.000-50.000"]
    assert columns["difference"] == ["same bits", "same bits"]


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--images", "3", "--classes", "2", "--detections", "5", "--repeats", "1"])
    printed = capsys.readouterr().out
    assert all(backend in printed for backend in installed_backends())
    with pytest.raises(SystemExit):
        main(["--images", "0"])
    assert "--images must be at least 1, not 0" in capsys.readouterr().err
