"""Each library against pycocotools, to the last bit, on 1000 random data sets; on 200 of them in the default tier."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator, Evaluation
from detkit.evaluation import backends as backends_module
from detkit.evaluation.backends import BACKENDS, Backend, agrees, choose_backend, installed_backends
from detkit.evaluation.columns import truth_columns
from detkit.evaluation.summary import Curves
from tests.evaluation.cases import LIMITS, Case, pycocotools_says, random_case, result_rows

BLOCK = 100
#: 1000 cases in all; the default tier has the first 200, since all of them take half a minute of one core.
BLOCKS = [pytest.param(block, marks=[pytest.mark.slow] if block >= 2 else []) for block in range(10)]


@functools.lru_cache(maxsize=2)  # the arrays of a block take 80 MB
def cases(block: int) -> list[tuple[Case, Curves, np.ndarray]]:
    made = [random_case(seed) for seed in range(block * BLOCK, (block + 1) * BLOCK)]
    return [(c, *pycocotools_says(c.file, result_rows(c.results), c.max_detections)) for c in made]


def has_zero_id(case: Case) -> bool:
    return any(a["id"] == 0 for a in case.file["annotations"])


def evaluate(case: Case, backend: str) -> Evaluation:
    evaluator = CocoEvaluator(
        categories=case.categories, truths=case.truths, backend=backend, max_detections=case.max_detections
    )
    evaluator.merge([case.state])
    return evaluator.compute()


def assert_same(found: Evaluation, curves: Curves, stats: np.ndarray) -> None:
    for name, ours, reference in zip(Curves._fields, found.curves, curves, strict=True):
        assert ours.dtype == np.float64
        assert np.array_equal(ours, reference), name
    numbers = np.array(list(found.metrics.values()))
    if found.max_detections[2] == 100:
        assert np.array_equal(numbers, stats)
    else:  # pycocotools has its first number at 100 detections whatever is asked for
        assert np.array_equal(numbers[1:], stats[1:])
        best = curves.precision[:, :, :, 0, 2]
        assert numbers[0] == (np.mean(best[best > -1]) if (best > -1).any() else -1)


@pytest.mark.parametrize("backend", ["pycocotools", "hotcoco", "auto"])
@pytest.mark.parametrize("block", BLOCKS)
def test_equal_to_pycocotools_to_the_last_bit(block: int, backend: str) -> None:
    if backend not in ("auto", *installed_backends()):
        pytest.skip(f"{backend} is not installed")
    for number, (case, curves, stats) in enumerate(cases(block)):
        if backend == "hotcoco" and has_zero_id(case):
            continue
        try:
            assert_same(evaluate(case, backend), curves, stats)
        except AssertionError as error:
            raise AssertionError(f"random_case({block * BLOCK + number}) with {backend}: {error}") from error


@pytest.mark.parametrize("block", BLOCKS)
def test_faster_coco_eval_lacks_the_smallest_bit_of_a_lone_hit_and_nothing_else(block: int) -> None:
    if "faster_coco_eval" not in installed_backends():
        pytest.skip("faster_coco_eval is not installed")
    num_different = 0
    for case, curves, _ in cases(block):
        found = evaluate(case, "faster_coco_eval").curves
        assert np.array_equal(found.recall, curves.recall)
        assert np.array_equal(found.scores, curves.scores)
        different = found.precision != curves.precision
        assert (found.precision[different] == 1).all()
        assert (curves.precision[different] == 1 - 2**-52).all()
        num_different += different.any()
    assert num_different > 0  # else it may be called exact


def test_the_random_cases_have_what_they_are_for() -> None:
    made = [case for block in range(2) for case, *_ in cases(block)]
    annotations = [a for case in made for a in case.file["annotations"]]
    assert sum(a["iscrowd"] for a in annotations) > 100
    assert sum(a["area"] > a["bbox"][2] * a["bbox"][3] > 0 for a in annotations) > 100
    assert sum(a["bbox"][2] * a["bbox"][3] == 0 for a in annotations) > 100
    assert sum(min(a["bbox"][2:]) < 0 for a in annotations) > 20
    for what in ("images", "categories"):
        assert sum(any(x["id"] == 0 for x in case.file[what]) for case in made) > 10
        ids = [[x["id"] for x in case.file[what]] for case in made]
        assert sum(i != sorted(i) for i in ids) > 10
        assert sum(max(i) - min(i) >= len(i) for i in ids) > 10
    assert sum(has_zero_id(case) for case in made) > 10
    assert sum(not case.file["annotations"] for case in made) > 10
    assert sum(not len(case.results) for case in made) > 10
    assert sum(len(np.unique(case.results.scores)) < len(case.results) for case in made) > 50
    assert {case.max_detections for case in made} == set(LIMITS)


def test_auto_takes_the_fastest_that_is_proved() -> None:
    case = next(c for c, *_ in cases(0) if not has_zero_id(c))
    truth = truth_columns(case.truths, case.categories)
    assert choose_backend("auto", truth) == ("hotcoco" if "hotcoco" in installed_backends() else "pycocotools")


def test_auto_passes_over_a_library_that_does_not_count_annotation_zero_as_pycocotools_does() -> None:
    case = next(c for c, *_ in cases(0) if has_zero_id(c))
    truth = truth_columns(case.truths, case.categories)
    assert choose_backend("auto", truth) == "pycocotools"
    if "hotcoco" in installed_backends():
        with pytest.raises(ValueError, match="scores the annotation with id 0 otherwise"):
            choose_backend("hotcoco", truth)


def one_bit_off(*arguments: Any) -> Curves:
    curves = BACKENDS["pycocotools"].run(*arguments)
    return curves._replace(precision=np.nextafter(curves.precision, 2))


def another_interface(*arguments: Any) -> Curves:
    raise AttributeError("no attribute 'from_arrays'")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (one_bit_off, "hotcoco differs from pycocotools and is not used"),
        (another_interface, "hotcoco fails and is not used: AttributeError: no attribute 'from_arrays'"),
    ],
)
def test_auto_passes_over_a_version_that_is_not_what_was_proved(
    run: Callable[..., Curves], words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(BACKENDS, "hotcoco", Backend("pycocotools", run, exact=True, follows_zero_id=False))
    agrees.cache_clear()
    case = next(c for c, *_ in cases(0) if not has_zero_id(c))
    try:
        with caplog.at_level("WARNING", logger="detkit"):
            assert choose_backend("auto", truth_columns(case.truths, case.categories)) == "pycocotools"
    finally:
        agrees.cache_clear()
    assert words in caplog.text


def test_auto_takes_no_library_that_was_seen_to_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends_module, "installed_backends", lambda: ("faster_coco_eval", "pycocotools"))
    monkeypatch.setattr(backends_module, "agrees", lambda _: True)  # the small comparison may be lucky
    case = cases(0)[0][0]
    assert choose_backend("auto", truth_columns(case.truths, case.categories)) == "pycocotools"


def test_the_comparison_before_use_is_sharp() -> None:
    if "faster_coco_eval" not in installed_backends():
        pytest.skip("faster_coco_eval is not installed")
    assert not agrees("faster_coco_eval")


def test_a_backend_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases(0)[0][0]
    truth = truth_columns(case.truths, case.categories)
    with pytest.raises(ValueError, match="'cocoeval' is none of auto, hotcoco, faster_coco_eval, pycocotools"):
        choose_backend("cocoeval", truth)  # type: ignore[arg-type]
    monkeypatch.setattr(backends_module, "installed_backends", lambda: ("pycocotools",))
    with pytest.raises(ValueError, match="'hotcoco' is not installed; installed: pycocotools"):
        choose_backend("hotcoco", truth)
    assert choose_backend("auto", truth) == "pycocotools"


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_libraries_are_silent(backend: str, capfd: pytest.CaptureFixture[str]) -> None:
    if backend not in installed_backends():
        pytest.skip(f"{backend} is not installed")
    evaluate(next(c for c, *_ in cases(0) if not has_zero_id(c) and len(c.results)), backend)
    assert capfd.readouterr() == ("", "")
