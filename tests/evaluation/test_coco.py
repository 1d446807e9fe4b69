from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
import rich.console
import torch

from detkit.config import EVALUATORS, ConfigError, build, validate
from detkit.config.registry import default_node
from detkit.evaluation import CocoEvaluator, Evaluation, EvaluatorState, Results
from detkit.structures import Affine, Categories, Detections, GroundTruth, ImageMeta
from tests.evaluation.cases import pycocotools_says, random_case, result_rows

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
IDENTITY = Affine()
CATEGORIES = Categories(("cat", "dog"), (7, 3))  # ids neither ascending nor from 1


def truth(image_id: int, boxes: list[list[float]], labels: list[int], crowd: tuple[int, ...] = ()) -> GroundTruth:
    """A record with boxes x y w h of an image of 200 x 300 px."""
    array = np.array(boxes, np.float64).reshape(-1, 4)
    return GroundTruth(
        image_id=image_id,
        file=f"images/{image_id}.jpg",
        size=(200, 300),
        boxes=array,
        labels=np.array(labels, np.int64),
        area=array[:, 2] * array[:, 3],
        crowd=np.isin(np.arange(len(array)), crowd),
        annotation_ids=1000 * image_id + 1 + np.arange(len(array)),
    )


def meta(image_id: int, affine: Affine = IDENTITY) -> ImageMeta:
    return ImageMeta(image_id, f"images/{image_id}.jpg", (200, 300), (200, 300), affine)


def detections(boxes: list[list[float]], labels: list[int], scores: list[float] | None = None) -> Detections:
    """Boxes x1 y1 x2 y2."""
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores if scores is not None else [0.9] * len(boxes), dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
    )


def perfect(record: GroundTruth) -> Detections:
    corners = np.concatenate([record.boxes[:, :2], record.boxes[:, :2] + record.boxes[:, 2:]], axis=1)
    return detections(corners.tolist(), record.labels.tolist())


TRUTHS = [
    truth(4, [[10, 10, 20, 20], [50, 50, 100, 100]], [0, 1]),
    truth(9, [[100, 20, 120, 110], [5, 5, 30, 40]], [0, 1]),
    truth(0, [], []),
]


def evaluator(truths: list[GroundTruth] | None = None, **options: object) -> CocoEvaluator:
    return CocoEvaluator(categories=CATEGORIES, truths=TRUTHS if truths is None else truths, **options)  # type: ignore


def evaluate(found: dict[int, Detections], truths: list[GroundTruth] | None = None, **options: object) -> Evaluation:
    scorer = evaluator(truths, **options)
    for image_id in [t.image_id for t in (truths or TRUTHS)]:
        scorer.update([found.get(image_id, detections([], []))], [meta(image_id)])
    return scorer.compute()


# The numbers


def test_perfect_detections_score_exactly_one() -> None:
    found = evaluate({t.image_id: perfect(t) for t in TRUTHS})
    assert list(found.metrics) == NAMES
    assert list(CocoEvaluator(categories=CATEGORIES, truths=TRUTHS).metric_names) == NAMES
    assert (found.metrics["AP"], found.metrics["AP50"], found.metrics["AR100"]) == (1.0, 1.0, 1.0)


def test_a_lone_hit_has_the_precision_that_pycocotools_gives_it() -> None:
    record = truth(4, [[10, 10, 100, 100]], [0])
    assert evaluate({4: perfect(record)}, [record]).metrics["AP"] == 1 - 2**-52


def test_shuffled_classes_score_nothing() -> None:
    wrong = {t.image_id: Detections(perfect(t).boxes, perfect(t).scores, 1 - perfect(t).labels) for t in TRUTHS}
    assert evaluate(wrong).metrics["AP"] == 0


def test_classes_drawn_at_random_score_near_nothing() -> None:
    rng = np.random.default_rng(0)
    names = tuple(f"class {k}" for k in range(20))
    records = [truth(i, (rng.random((5, 4)) * 90 + 1).tolist(), rng.integers(0, 20, 5).tolist()) for i in range(60)]
    scorer = CocoEvaluator(categories=Categories(names, tuple(range(20))), truths=records)
    for record in records:
        drawn = torch.from_numpy(rng.integers(0, 20, len(record)))
        scorer.update([Detections(perfect(record).boxes, torch.rand(5), drawn)], [meta(record.image_id)])
    assert 0 < scorer.compute().metrics["AP"] < 0.03


def test_no_detections_score_zero() -> None:
    found = evaluate({})
    assert (found.metrics["AP"], found.metrics["AR100"], found.num_detections) == (0.0, 0.0, 0)


@pytest.mark.parametrize("boxes", [[], [[10.0, 10.0, 20.0, 20.0]]])
def test_without_objects_the_metrics_are_minus_one_and_their_value_is_never_the_best(boxes: list[list[float]]) -> None:
    record = truth(4, boxes, [0] * len(boxes), crowd=(0,))  # a crowd is no object to find
    found = evaluate({4: detections([[0, 0, 9, 9]], [0])}, [record])
    assert set(found.metrics.values()) == {-1.0}
    assert math.isnan(found.value("AP"))
    assert not found.value("AP") > -math.inf
    assert found.per_class[0].num_gt == 0


def test_value_of_a_metric() -> None:
    found = evaluate({t.image_id: perfect(t) for t in TRUTHS})
    assert found.value("AP75") == 1.0
    with pytest.raises(ValueError, match="no metric 'mAP'; there are AP, AP50"):
        found.value("mAP")


def test_rows_of_the_classes_are_in_label_order_whatever_their_ids() -> None:
    found = evaluate({4: detections([[10, 10, 30, 30]], [0]), 9: detections([[0, 0, 5, 5], [1, 1, 4, 4]], [1, 1])})
    cat, dog = found.per_class
    assert (cat.name, cat.num_gt, cat.num_det, dog.name, dog.num_gt, dog.num_det) == ("cat", 2, 1, "dog", 2, 2)
    assert pytest.approx(51 / 101) == cat.AP50  # one of two objects found: the recalls 0, 0.01 ... 0.5
    assert (cat.AR, dog.AP, dog.AR) == (0.5, 0, 0)
    assert found.category_ids == (3, 7)
    assert found.precision.shape == found.scores.shape == (10, 101, 2, 4, 3)
    assert found.recall[0, :, 0, 2].tolist() == [0, 0.5]  # ascending ids: dog, cat


def test_objects_of_a_class_are_counted_without_crowds() -> None:
    record = truth(4, [[10, 10, 20, 20], [50, 50, 100, 100]], [0, 0], crowd=(1,))
    assert evaluate({}, [record]).per_class[0].num_gt == 1


def test_more_than_100_detections_of_an_image() -> None:
    boxes = [[10.0 * (n % 20), 10.0 * (n // 20), 8.0, 8.0] for n in range(150)]
    record = truth(4, boxes, [0] * 150)
    found = evaluate({4: perfect(record)}, [record], max_detections=(1, 10, 300))
    assert list(found.metrics)[6:9] == ["AR1", "AR10", "AR300"]
    assert found.metrics["AP"] == found.metrics["AR300"] == 1.0
    assert found.metrics["AR10"] == pytest.approx(10 / 150)
    usual = evaluate({4: perfect(record)}, [record])
    assert usual.metrics["AR100"] == pytest.approx(100 / 150)
    assert usual.metrics["AP"] < 0.7


@pytest.mark.parametrize("limits", [(10, 1, 100), (0, 10, 100), (1, 10, 10), (1, 10)])
def test_limits_that_make_no_sense(limits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="three ascending numbers from 1"):
        evaluator(max_detections=limits)


def test_detections_come_back_from_the_network_input_to_the_original_image() -> None:
    affine = Affine(-0.5, 2.0, 150.0, 7.0)  # a flip, another scale on each axis, a shift
    scorer = evaluator()
    for record in TRUTHS:
        found = perfect(record)
        there = Detections(affine.apply(found.boxes), found.scores, found.labels)
        scorer.update([there], [meta(record.image_id, affine)])
    assert scorer.compute().metrics["AP"] == 1.0


# What comes in


def test_an_image_that_never_came() -> None:
    scorer = evaluator()
    scorer.update([perfect(TRUTHS[0])], [meta(4)])
    with pytest.raises(
        ValueError, match=r"2 of 3 images were never evaluated, the first is images/9.jpg \(image id 9\)"
    ):
        scorer.compute()
    found = scorer.compute(allow_missing=True)
    assert found.metrics["AR100"] == 0.5
    assert found.num_images == 3


def test_an_image_that_came_twice() -> None:
    scorer = evaluator()
    scorer.update([perfect(TRUTHS[0])], [meta(4)])
    with pytest.raises(ValueError, match=r"images/4.jpg \(image id 4\) was evaluated twice"):
        scorer.update([detections([], [])], [meta(4)])


def test_reset_forgets() -> None:
    scorer = evaluator()
    for _ in range(2):
        scorer.reset()
        scorer.update([perfect(t) for t in TRUTHS], [meta(t.image_id) for t in TRUTHS])
    assert scorer.compute().num_detections == 4
    scorer.reset()
    assert len(scorer.results()) == 0


def test_an_image_that_the_ground_truth_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"images/5.jpg \(image id 5\) is not in the ground truth"):
        evaluator().update([detections([], [])], [meta(5)])


def test_as_many_metas_as_detections() -> None:
    with pytest.raises(ValueError, match="detections of 1 images, but 2 metas"):
        evaluator().update([detections([], [])], [meta(4), meta(9)])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_detections_that_are_not_finite_are_refused_with_the_image(bad: float) -> None:
    with pytest.raises(
        ValueError, match=r"images/4.jpg \(image id 4\): 1 of 2 detections have a score that is not finite"
    ):
        evaluator().update([detections([[0, 0, 5, 5]] * 2, [0, 0], [0.5, bad])], [meta(4)])
    with pytest.raises(ValueError, match=r"images/9.jpg .* a box that is not finite; the first is number 0"):
        evaluator().update([detections([[0, 0, bad, 5]], [0])], [meta(9)])


# The ground truth


def test_a_data_set_without_images() -> None:
    with pytest.raises(ValueError, match="no images to evaluate on"):
        evaluator([])


def test_two_images_with_one_id() -> None:
    with pytest.raises(ValueError, match="image id 4 belongs to two images"):
        evaluator([TRUTHS[0], TRUTHS[0]])


def test_annotations_that_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match=r"images/4.jpg: annotation 4001 has a box or area that is not finite"):
        evaluator([truth(4, [[0, 0, math.nan, 5]], [0])])
    with pytest.raises(ValueError, match=r"images/4.jpg: annotation 4001 has a label not in 0..1"):
        evaluator([truth(4, [[0, 0, 5, 5]], [2])])


def test_annotation_zero_gets_a_warning_and_pycocotools_number(caplog: pytest.LogCaptureFixture) -> None:
    case = next(c for c in map(random_case, range(50)) if any(a["id"] == 0 for a in c.file["annotations"]))
    with caplog.at_level("WARNING", logger="detkit"):
        CocoEvaluator(categories=case.categories, truths=case.truths)
    image = next(a["image_id"] for a in case.file["annotations"] if a["id"] == 0)
    assert f"{image}.png: an annotation has id 0, which pycocotools takes for 'no match'" in caplog.text


def test_annotations_with_the_same_id_are_scored_as_different_ones(caplog: pytest.LogCaptureFixture) -> None:
    same = [GroundTruth(*(getattr(t, f) for f in ARRAYS), np.arange(len(t))) for t in TRUTHS]
    with caplog.at_level("WARNING", logger="detkit"):
        assert evaluate({t.image_id: perfect(t) for t in same}, same).metrics["AP"] == 1.0
    assert "annotation ids occur more than once" in caplog.text


ARRAYS = ("image_id", "file", "size", "boxes", "labels", "area", "crowd")


# Several processes


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
def test_shards_give_the_bits_of_one_process_whatever_the_sharding(num_shards: int) -> None:
    rng = np.random.default_rng(num_shards)
    for seed in range(30):
        case = random_case(seed)
        whole = scorer_of(case)
        whole.merge([case.state])
        shards = []
        shard_of = rng.integers(0, num_shards, len(case.file["images"]))  # uneven, some empty
        for shard in range(num_shards):
            mine = case.state.image_ids[shard_of == shard]
            one = scorer_of(case)
            one.merge([EvaluatorState(mine, case.results.select(np.isin(case.results.image_ids, mine)))])
            shards.append(pickle.loads(pickle.dumps(one.state())))
        gathered = scorer_of(case)
        gathered.merge([shards[i] for i in rng.permutation(num_shards)])
        assert_same_evaluation(gathered.compute(), whole.compute())


def scorer_of(case) -> CocoEvaluator:
    return CocoEvaluator(categories=case.categories, truths=case.truths, max_detections=case.max_detections)


def assert_same_evaluation(one: Evaluation, other: Evaluation) -> None:
    assert one.to_dict() == other.to_dict()
    for a, b in zip(one.curves, other.curves, strict=True):
        assert np.array_equal(a, b)


def test_the_order_of_the_batches_does_not_matter() -> None:
    forth, back = evaluator(), evaluator()
    for record in TRUTHS:
        forth.update([perfect(record)], [meta(record.image_id)])
    for record in reversed(TRUTHS):
        back.update([perfect(record)], [meta(record.image_id)])
    assert_same_evaluation(forth.compute(), back.compute())
    for a, b in zip(forth.state(), back.state(), strict=True):
        assert pickle.dumps(a) == pickle.dumps(b)


def test_the_order_of_the_records_does_not_matter() -> None:
    for seed in range(20):
        case = random_case(seed)
        scorers = [
            CocoEvaluator(categories=case.categories, truths=truths, max_detections=case.max_detections)
            for truths in (case.truths, case.truths[::-1])
        ]
        for scorer in scorers:
            scorer.merge([case.state])
        assert_same_evaluation(*(scorer.compute() for scorer in scorers))


def test_merging_replaces_what_came_before() -> None:
    scorer = evaluator()
    scorer.update([perfect(TRUTHS[0])], [meta(4)])
    scorer.merge([EvaluatorState(np.array([9]), Results.empty())])
    assert scorer.state().image_ids.tolist() == [9]
    assert len(scorer.results()) == 0


def test_merging_what_does_not_fit_changes_nothing() -> None:
    scorer = evaluator()
    scorer.update([perfect(t) for t in TRUTHS], [meta(t.image_id) for t in TRUTHS])
    state = scorer.state()
    with pytest.raises(ValueError, match=r"images/0.jpg \(image id 0\) was evaluated twice"):
        scorer.merge([state, state])
    with pytest.raises(ValueError, match="image id 4, which is not among the images of their state"):
        scorer.merge([EvaluatorState(np.array([9]), state.results)])
    with pytest.raises(ValueError, match="image id 77"):
        scorer.merge([EvaluatorState(np.array([77]), Results.empty())])
    assert scorer.compute().metrics["AP"] == 1.0


def test_detections_of_an_unknown_category() -> None:
    scorer = evaluator()
    strange = Results(np.array([4]), np.array([5]), np.ones((1, 4)), np.ones(1))
    scorer.merge([EvaluatorState(np.array([0, 4, 9]), strange)])
    with pytest.raises(ValueError, match="category id 5, which the ground truth does not have"):
        scorer.compute()


# The report


def test_the_json_file_has_the_numbers_to_the_last_bit(tmp_path) -> None:
    case = random_case(7)
    scorer = scorer_of(case)
    scorer.merge([case.state])
    found = scorer.compute()
    assert found.num_detections > 0
    path = tmp_path / "new folder" / "evaluation.json"
    found.save(path)
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read["metrics"] == found.metrics
    assert list(read["metrics"]) == list(found.metrics)
    _, stats = pycocotools_says(case.file, result_rows(case.results), case.max_detections)
    assert list(read["metrics"].values())[1:] == stats.tolist()[1:]
    assert [row["name"] for row in read["per_class"]] == list(case.categories.names)
    assert read["per_class"][0]["AP50"] == found.per_class[0].AP50
    assert (read["num_images"], read["num_detections"]) == (len(case.truths), len(case.results))
    assert read["backend"] == scorer.backend
    assert [p.name for p in path.parent.iterdir()] == ["evaluation.json"]


def shown(renderable: object) -> list[str]:
    console = rich.console.Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return [" ".join(line.replace("│", " ").split()) for line in capture.get().splitlines()]


def test_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate({4: perfect(TRUTHS[0])}, [TRUTHS[0]], max_detections=(1, 10, 200))
    tables = found.table(), found.per_class_table()
    assert capsys.readouterr().out == ""  # renderable, not printed
    lines = shown(tables[0])
    assert "COCO metrics: 1 images, 2 detections" in lines
    assert "AP 0.50:0.95 all 200 1.000" in lines
    assert "AP75 0.75 all 200 1.000" in lines
    assert "AR10 0.50:0.95 all 10 1.000" in lines
    assert "APm 0.50:0.95 medium 200 -" in lines  # nothing of that size
    lines = shown(tables[1])
    assert "by class: area all, at most 200 detections" in lines
    assert "cat 1.000 1.000 1.000 1.000 1 1" in lines


# The configuration


def test_the_configuration_builds_it_when_the_data_set_is_known() -> None:
    assert "CocoEvaluator" in EVALUATORS
    node = default_node(CocoEvaluator)
    assert node == {
        "_target_": "CocoEvaluator", "_partial_": True, "backend": "auto", "max_detections": [1, 10, 100],
        "iou_thresholds": None, "recall_thresholds": None, "areas": None, "class_agnostic": False,
        "frequency_bounds": None, "landmark_distance": None, "landmark_sigmas": None,
    }  # fmt: skip
    node |= {"max_detections": [1, 10, 300], "backend": "pycocotools"}
    validate(node)
    scorer = build(node)(categories=CATEGORIES, truths=TRUTHS)
    assert (scorer.backend, scorer.max_detections) == ("pycocotools", (1, 10, 300))
    with pytest.raises(ConfigError, match=r"backend: must be one of 'auto', 'pycocotools'.*, not 'hotcocoa'"):
        validate(node | {"backend": "hotcocoa"})
