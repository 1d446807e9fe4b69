"""Compiled networks are whole graphs, made once for all images of one padded size, and say what the others say."""

import copy
import functools

import pytest
import torch

from detkit.engine import load_checkpoint, trainer
from detkit.engine.bad_steps.diagnosis import run_again
from detkit.models.compiled import compile_networks
from detkit.structures import Categories
from detkit.utils.seed import seed_everything
from tests.engine import stubs
from tests.models.builders import build_awake, build_model, small
from tests.models.test_contracts import batch

CPU = torch.device("cpu")
CATEGORIES = Categories(("a", "b", "c"), (1, 4, 9))


def step(detector, number):
    """The total of a batch of images of two sizes, others each time, padded to 64 x 96 px, with its gradients."""
    images, targets = batch(sizes=((64, 96 - 2 * number), (40 + number, 96)), seed=number)
    detector.zero_grad(set_to_none=True)
    total = detector(images, targets).total
    total.backward()
    return total.detach(), {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}


def compare(name, num_batches, tolerance, for_gradients=None, **options):
    """Losses agree to ``tolerance``. Gradients do too, or to twice what noise in the weights makes of
    them: where a ReLU is flipped, or another region drawn, they jump."""
    plain = build_awake(name, CATEGORIES).train()
    compiled = copy.deepcopy(plain)
    noisy = [with_noise(plain, seed) for seed in range(3)]
    torch._dynamo.reset()
    compile_networks(compiled, CPU, fullgraph=True, **options)
    for number in range(1, num_batches + 1):
        with torch._dynamo.config.patch(error_on_recompile=number > 1):
            total, gradients = step(compiled, number)
        expected, wanted = step(plain, number)
        torch.testing.assert_close(total, expected, rtol=tolerance, atol=tolerance)
        assert gradients.keys() == wanted.keys()
        others = [step(each, number)[1] for each in noisy]
        for key, gradient in gradients.items():
            jump = max((other[key] - wanted[key]).abs().max().item() for other in others)
            bound = max((for_gradients or tolerance) * max(wanted[key].abs().max().item(), 1e-3), 2 * jump)
            torch.testing.assert_close(
                gradient, wanted[key], rtol=0, atol=bound, msg=lambda said, key=key: f"{key}: {said}"
            )


def with_noise(detector, seed):
    """A copy whose weights differ by 3e-7 of their own size, about as much as roundings do."""
    noisy, generator = copy.deepcopy(detector), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.mul_(1 + 3e-7 * torch.randn(parameter.shape, generator=generator))
    return noisy


def test_a_small_one_is_compiled_once_and_says_the_same():
    compare("yolov1", 2, 1e-6, backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["faster_rcnn_fpn", "rfcn", "tridentnet", "faster_rcnn_snip", "retinanet", "centernet"]
)
def test_ten_batches_are_one_graph_each_for_networks_and_head(name):
    compare(name, 10, 1e-6, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faster_rcnn_fpn", "retinanet", "centernet"])
def test_machine_code_says_the_same_within_rounding(name):
    compare(name, 3, 1e-5, for_gradients=0.1)  # its sums run in another order, and flip more


def test_a_watched_layer_of_a_compiled_detector_is_run_as_it_stands():
    detector = build_model("yolov1", CATEGORIES, small("yolov1"))
    compile_networks(detector, CPU, backend="eager")
    images, targets = batch()
    detector(images, targets)
    detector.head.predict_cells.register_forward_hook(lambda *_: torch.full((2, 13, 1, 2), torch.nan))
    seen = run_again(detector, type("Both", (), {"images": images, "targets": targets}), CPU, "fp32")
    assert seen.output == "head.predict_cells"


def test_a_detector_without_a_head_is_refused():
    with pytest.raises(ValueError, match=r"MTCNN is none: leave trainer\.compile=false"):
        compile_networks(build_model("mtcnn", CATEGORIES, small("mtcnn")), CPU)


def test_where_no_compiler_is_it_is_told_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (str(tmp_path / "no-such-g++"),))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    torch._dynamo.reset()
    with pytest.raises(
        ValueError, match=r"makes no code for cpu here, it needs a C\+\+ compiler .* leave trainer\.compile=false"
    ):
        compile_networks(build_model("yolov1", CATEGORIES, small("yolov1")), CPU)


@pytest.mark.slow
def test_a_run_with_evaluations_average_and_resume_is_a_plain_one(tmp_path, monkeypatch):
    """Traced and run by torch's own operators: the same bits in all files, under the same names."""
    monkeypatch.setattr(trainer, "compile_networks", functools.partial(compile_networks, backend="eager"))
    digests = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        folder.mkdir()
        for steps in (2, 4):
            seed_everything(0)
            detector = build_awake("yolov1", stubs.CATEGORIES)
            run = stubs.make_trainer(
                folder,
                steps=steps,
                detector=detector,
                compile=compiled,
                eval_every=2,
                evaluator=None,
                monitor="val_loss",
            )
            if steps == 4:
                run.restore(load_checkpoint(folder / "last.pt"))
            run.fit()
        digests.append(stubs.digest_of_run(folder))
    assert digests[0] == digests[1]
