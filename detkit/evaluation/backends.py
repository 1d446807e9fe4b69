"""The libraries that can score detections: pycocotools, the reference, and two that are faster.

Each adapter hands the columns over in memory and returns the arrays. What was found out about them, on thousands of
random data sets (tests/evaluation/test_backends.py):

- hotcoco 1.3.0 gives pycocotools' arrays to the last bit, except where an annotation has id 0: pycocotools takes a
  match with it for no match, hotcoco does not.
- faster-coco-eval 1.8.0 follows pycocotools there, but leaves out the ``np.spacing(1)`` in pycocotools' denominator of
  the precision: where a curve's best stretch is a single hit, it has 1 and pycocotools 1 - 2**-52.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from detkit.evaluation.columns import DetectionColumns, TruthColumns, detection_columns, truth_columns
from detkit.evaluation.summary import COCO_SETTINGS, Curves, Settings
from detkit.evaluation.synthetic import synthetic_set
from detkit.utils.log import logger

Limits = tuple[int, int, int]
BackendName = Literal["pycocotools", "faster_coco_eval", "hotcoco"]

REFERENCE: BackendName = "pycocotools"


def run_pycocotools(
    truth: TruthColumns, found: DetectionColumns, max_detections: Limits, settings: Settings = COCO_SETTINGS
) -> Curves:
    """The reference, which alone takes other settings than COCO's."""
    evaluation = pycocotools_evaluation(truth, found, max_detections, settings)
    with _quiet():
        evaluation.accumulate()
    return _curves(evaluation.eval)


def pycocotools_evaluation(
    truth: TruthColumns, found: DetectionColumns, max_detections: Limits, settings: Settings = COCO_SETTINGS
) -> Any:
    """pycocotools' COCOeval after its matching: ``evalImgs`` has what was matched with what."""
    from pycocotools.cocoeval import COCOeval

    with _quiet():
        evaluation = COCOeval(_coco(truth, _truth_rows(truth)), _coco(truth, _detection_rows(found)), "bbox")
        evaluation.params.maxDets = list(max_detections)
        if settings != COCO_SETTINGS:
            _set(evaluation.params, settings)
        evaluation.evaluate()
    return evaluation


def pycocotools_similarity(
    truth: TruthColumns, found: DetectionColumns, points: np.ndarray, found_points: np.ndarray, sigmas: Sequence[float]
) -> Curves:
    """pycocotools' curves of object keypoint similarity in place of IoU, with its own settings (20 detections).

    Args:
        points: (G, L, 3) x, y px and mark of the annotated objects.
        found_points: (D, L, 2) px.
        sigmas: (L,).
    """
    from pycocotools.cocoeval import COCOeval

    rows, found_rows = _truth_rows(truth), _detection_rows(found)
    for row, of_row in zip(rows, points, strict=True):
        row |= {"keypoints": of_row.flatten().tolist(), "num_keypoints": int((of_row[:, 2] > 0).sum())}
    marked = np.concatenate([found_points, np.ones_like(found_points[..., :1])], axis=2)
    for row, of_row in zip(found_rows, marked, strict=True):
        row["keypoints"] = of_row.flatten().tolist()
    with _quiet():
        evaluation: Any = COCOeval(_coco(truth, rows), _coco(truth, found_rows), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
    return _curves(evaluation.eval)


def _coco(truth: TruthColumns, annotations: list[dict[str, Any]]) -> Any:
    """pycocotools' own form of a data set."""
    from pycocotools.coco import COCO

    coco: Any = COCO()
    coco.dataset = _frame(truth) | {"annotations": annotations}
    coco.createIndex()
    return coco


def _set(params: Any, settings: Settings) -> None:
    params.iouThrs, params.recThrs = np.array(settings.iou_thresholds), np.array(settings.recall_thresholds)
    params.areaRng = [[low, high] for _, low, high in settings.areas]
    params.areaRngLbl = [name for name, *_ in settings.areas]


def run_faster_coco_eval(truth: TruthColumns, found: DetectionColumns, max_detections: Limits) -> Curves:
    """pycocotools' numbers to 2**-52 (see above)."""
    from faster_coco_eval import COCO, COCOeval_faster

    def silent(*_: object) -> None:
        return None

    def dataset(annotations: list[dict[str, Any]]) -> COCO:
        coco = COCO(print_function=silent)
        coco.dataset = _frame(truth) | {"annotations": annotations}
        coco.createIndex()
        return coco

    with _quiet():
        sides = dataset(_truth_rows(truth)), dataset(_detection_rows(found))
        evaluation = COCOeval_faster(*sides, "bbox", print_function=silent)
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
    return _curves(evaluation.eval)


def run_hotcoco(truth: TruthColumns, found: DetectionColumns, max_detections: Limits) -> Curves:
    """pycocotools' numbers to the last bit, unless an annotation has id 0 (see above)."""
    from hotcoco import COCO, COCOeval

    with _quiet():
        coco = COCO.from_arrays(
            *_frame(truth).values(),
            image_ids=truth.images,
            category_ids=truth.categories,
            boxes=truth.boxes,
            ids=truth.ids,
            area=truth.areas,
            iscrowd=truth.crowd,
        )
        rows = np.column_stack([found.images, found.boxes, found.scores, found.categories])
        evaluation = COCOeval(coco, coco.load_res(rows), "bbox")
        evaluation.params.max_dets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
        return _curves(evaluation.eval)


@dataclass(frozen=True, slots=True)
class Backend:
    """A library, its adapter, and how far it goes with pycocotools: to the last bit? also with annotation id 0?"""

    module: str
    run: Callable[[TruthColumns, DetectionColumns, Limits], Curves]
    exact: bool
    follows_zero_id: bool


#: The fastest first.
BACKENDS: dict[BackendName, Backend] = {
    "hotcoco": Backend("hotcoco", run_hotcoco, exact=True, follows_zero_id=False),
    "faster_coco_eval": Backend("faster_coco_eval", run_faster_coco_eval, exact=False, follows_zero_id=True),
    "pycocotools": Backend("pycocotools", run_pycocotools, exact=True, follows_zero_id=True),
}


def installed_backends() -> tuple[BackendName, ...]:
    """The names of those that can be imported here, the fastest first."""
    return tuple(name for name, backend in BACKENDS.items() if importlib.util.find_spec(backend.module))


def choose_backend(
    name: BackendName | Literal["auto"], truth: TruthColumns, settings: Settings = COCO_SETTINGS
) -> BackendName:
    """The backend that ``name`` means for this ground truth.

    "auto" is the fastest that is installed, gives pycocotools' numbers to the last bit, and does so here and now:
    the installed version is compared with pycocotools on a small data set first.

    Raises:
        ValueError: no such backend, not installed, or it cannot follow pycocotools on this ground truth.
    """
    installed = installed_backends()
    if settings != COCO_SETTINGS and name in ("auto", REFERENCE):
        return REFERENCE
    if settings != COCO_SETTINGS:
        raise ValueError(f"backend {name!r} scores with COCO's own thresholds and areas; pycocotools takes others too")
    if name == "auto":
        return next(n for n in installed if BACKENDS[n].exact and _follows(n, truth) and agrees(n))
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is none of auto, {', '.join(BACKENDS)}")
    if name not in installed:
        raise ValueError(f"backend {name!r} is not installed; installed: {', '.join(installed)}")
    if not _follows(name, truth):
        raise ValueError(
            f"backend {name!r} scores the annotation with id 0 otherwise than pycocotools; number the annotations "
            "from 1 or take backend 'auto'"
        )
    return name


@functools.cache
def agrees(name: BackendName) -> bool:
    """Whether the installed version of this backend gives pycocotools' arrays on a few small data sets."""
    if name == REFERENCE:
        return True
    for seed in range(3):
        made = synthetic_set(
            num_images=6, num_categories=3, detections_per_image=30, crowd_share=0.15, size=160, seed=seed
        )
        truth = truth_columns(made.truths, made.categories)
        found = detection_columns(made.results, truth)
        reference = BACKENDS[REFERENCE].run(truth, found, (1, 10, 20))
        try:
            ours = BACKENDS[name].run(truth, found, (1, 10, 20))
        except Exception as error:  # of whatever kind: a version with another interface must not stop a training
            logger.warning(
                "the installed version of %s fails and is not used: %s: %s", name, type(error).__name__, error
            )
            return False
        if not all(np.array_equal(a, b) for a, b in zip(ours, reference, strict=True)):
            logger.warning("the installed version of %s differs from pycocotools and is not used", name)
            return False
    return True


def _follows(name: BackendName, truth: TruthColumns) -> bool:
    return BACKENDS[name].follows_zero_id or not truth.has_zero_id


def _frame(truth: TruthColumns) -> dict[str, list[dict[str, Any]]]:
    """The parts of a COCO file that name images and categories; the order of their numbers is all that matters."""
    return {
        "images": [{"id": i, "file_name": str(i)} for i in range(1, len(truth.image_ids) + 1)],
        "categories": [{"id": k, "name": str(k)} for k in range(1, len(truth.category_ids) + 1)],
    }


def _truth_rows(truth: TruthColumns) -> list[dict[str, Any]]:
    names = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    columns = (truth.ids, truth.images, truth.categories, truth.boxes, truth.areas, truth.crowd.astype(int))
    return [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]


def _detection_rows(found: DetectionColumns) -> list[dict[str, Any]]:
    """As pycocotools' ``loadRes`` makes them, which itself fails on a list without detections."""
    names = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "score")
    count = len(found.scores)
    areas = found.boxes[:, 2] * found.boxes[:, 3]
    no_crowd = np.zeros(count, int)
    columns = (np.arange(1, count + 1), found.images, found.categories, found.boxes, areas, no_crowd, found.scores)
    return [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]


def _curves(evaluated: Any) -> Curves:
    return Curves(evaluated["precision"], evaluated["recall"], evaluated["scores"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' progress off the terminal, and their warnings: those that matter are said by detkit."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
