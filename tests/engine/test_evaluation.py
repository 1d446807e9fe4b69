"""Evaluating, apart from any training."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from detkit.engine import evaluate
from detkit.engine.evaluation import NUM_EXAMPLES, EvaluationStopped
from detkit.structures import Batch, Detections, Images, Losses, Ratio, Target
from tests.engine.stubs import StubDetector, StubEvalLoader, StubEvaluator, digest


@pytest.fixture
def detector() -> StubDetector:
    torch.manual_seed(0)
    return StubDetector()


def test_losses_are_means_over_images_not_batches(detector: StubDetector) -> None:
    result = evaluate(detector, StubEvalLoader(5), None, device="cpu", val_loss=True)
    detector.eval()
    terms: dict[str, list[float]] = {"cls": [], "box": []}
    for batch in StubEvalLoader(5):
        for i in range(len(batch)):
            single = Images(batch.images.pixels[i : i + 1], batch.images.meta[i : i + 1])
            losses: Any = detector(single, batch.targets[i : i + 1])
            for name, values in terms.items():
                values.append(losses.terms[name].item())
    means = {f"val_loss/{name}": sum(values) / 5 for name, values in terms.items()}
    assert result.losses == pytest.approx({**means, "val_loss": sum(means.values())})
    assert result.num_images == 5
    assert result.evaluation is None
    told = [detector(b.images, b.targets).stats["num_objects"].item() * len(b) for b in StubEvalLoader(5)]  # pyright: ignore
    assert result.stats == pytest.approx({"stat/num_objects": sum(told) / 5})
    assert result.metrics == {**result.losses, **result.stats}


def test_the_evaluator_sees_every_image_once(detector: StubDetector) -> None:
    evaluator = StubEvaluator()
    evaluator.scores[7] = 1.0  # from before: it must be reset
    result = evaluate(detector, StubEvalLoader(5), evaluator, device="cpu")
    assert sorted(evaluator.scores) == [100, 101, 102, 103, 104]
    assert result.evaluation is not None
    assert result.metrics == {"AP": result.evaluation.metrics["AP"], "AP50": result.evaluation.metrics["AP50"]}
    assert result.losses == {}


def test_every_module_is_afterwards_in_the_mode_it_was_in(detector: StubDetector) -> None:
    detector.train()
    detector.backbone[1].eval()  # a frozen norm
    before = [m.training for m in detector.modules()]
    state = digest(detector.state_dict())
    random_state = digest(torch.get_rng_state())
    evaluate(detector, StubEvalLoader(), StubEvaluator(), device="cpu", val_loss=True)
    assert [m.training for m in detector.modules()] == before
    assert digest(detector.state_dict()) == state, "running statistics stay"
    assert digest(torch.get_rng_state()) == random_state
    assert all(p.grad is None for p in detector.parameters())


class Failing(StubDetector):
    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Any:
        assert not self.training
        raise RuntimeError("broken")


def test_the_mode_comes_back_after_an_error_too() -> None:
    detector = Failing().train()
    with pytest.raises(RuntimeError, match=r"^broken$"):
        evaluate(detector, StubEvalLoader(), None, device="cpu", val_loss=True)
    assert detector.training


def test_examples_are_the_images_as_the_detector_saw_them(detector: StubDetector) -> None:
    class Padded(StubEvalLoader):
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                pixels = nn.functional.pad(batch.images.pixels, (0, 3, 0, 5), value=9)
                yield Batch(Images(pixels, batch.images.meta), batch.targets)

    result = evaluate(detector, Padded(11), None, device="cpu")
    assert [e.meta.image_id for e in result.examples] == list(range(100, 100 + NUM_EXAMPLES))
    first = next(iter(StubEvalLoader(11)))
    assert np.array_equal(result.examples[1].image, first.images.pixels[1].permute(1, 2, 0).numpy())
    assert torch.equal(result.examples[1].target.boxes, first.targets[1].boxes)
    assert len(result.examples[1].detections) == 1


class Half(StubDetector):
    """Finds things in half precision."""

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Any:
        assert torch.is_autocast_enabled("cpu")
        assert self.head(torch.ones(1, 4)).dtype == torch.bfloat16
        found: Any = super().forward(images)
        return [Detections(d.boxes.bfloat16(), d.scores.bfloat16(), d.labels) for d in found]


def test_precision_is_used_and_detections_come_in_float32() -> None:
    evaluate(Half(), StubEvalLoader(), StubEvaluator(), device="cpu", precision="bf16")  # its evaluator checks the type


def test_fp16_is_for_cuda(detector: StubDetector) -> None:
    words = "precision 'fp16' needs a CUDA device; on 'cpu' it is one of 'fp32', 'bf16'"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        evaluate(detector, StubEvalLoader(), None, device="cpu", precision="fp16")


def test_it_stops_when_told(detector: StubDetector) -> None:
    asked = iter([False, True])
    evaluator = StubEvaluator()
    with pytest.raises(EvaluationStopped):
        evaluate(detector, StubEvalLoader(5), evaluator, device="cpu", should_stop=lambda: next(asked))
    assert len(evaluator.scores) == 2


def test_a_value_that_is_not_there_is_told(detector: StubDetector) -> None:
    result = evaluate(detector, StubEvalLoader(), StubEvaluator([-1.0]), device="cpu", val_loss=True)
    assert np.isnan(result.value("AP")), "-1 stands for undefined"
    assert result.value("val_loss") == result.losses["val_loss"]
    assert result.value("stat/num_objects") == result.stats["stat/num_objects"]
    names = "AP, AP50, val_loss/cls, val_loss/box, val_loss, stat/num_objects"
    with pytest.raises(ValueError, match=rf"^no metric 'ap'; there are {names}$"):
        result.value("ap")


class Counting(StubDetector):
    """Of the images 101 and 104 it finds one of three and two of two; of the others there is nothing to find."""

    right, there = {101: 1, 104: 2}, {101: 3, 104: 2}

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Any:
        out = super().forward(images, targets)
        if not isinstance(out, Losses):
            return out
        part, whole = (
            torch.tensor(sum(counts.get(meta.image_id, 0) for meta in images.meta))
            for counts in (self.right, self.there)
        )
        return Losses(out.terms, {"accuracy": Ratio(part, whole)})


def test_a_ratio_is_one_of_sums_and_left_out_where_there_is_nothing() -> None:
    found = evaluate(Counting(), StubEvalLoader(5), None, device="cpu", val_loss=True)
    assert found.stats == {"stat/accuracy": 3 / 5}
    assert evaluate(Counting(), StubEvalLoader(1), None, device="cpu", val_loss=True).stats == {}


def test_losses_and_stats_stand_beside_the_scores(detector: StubDetector) -> None:
    """In the table and the file."""
    result = evaluate(detector, StubEvalLoader(5), StubEvaluator(), device="cpu", val_loss=True)
    found = result.evaluation
    assert found is not None
    assert found.beside == {**result.losses, **result.stats}
    written = json.loads(found.to_json())["metrics"]
    assert written == result.metrics
    text = StringIO()
    Console(file=text, width=200).print(found.table())
    rows = dict(re.findall(r"│ (\S+) .* (-?[\d.]+) │$", text.getvalue(), re.MULTILINE))
    assert float(rows["stat/num_objects"]) == pytest.approx(result.stats["stat/num_objects"], abs=5e-5)
    assert float(rows["val_loss/cls"]) == pytest.approx(result.losses["val_loss/cls"], abs=5e-5)
