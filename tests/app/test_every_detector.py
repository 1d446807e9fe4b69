"""What holds of a run holds for every detector: it goes on in the same bits, and two processes train what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detkit.engine.state.checkpoint import load_checkpoint
from tests.app.tools import gone_on, trainer_in

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

#: Recipes on shapes, and what makes their batch norm (of a whole batch, which two processes do not see) a constant.
RECIPES = {
    "quickstart": ["model.backbone.norm=frozen_bn"],
    "rfcn/shapes": ["model.backbone.norm=frozen_bn"],
    "tridentnet/shapes": ["model.backbone.norm=frozen_bn"],
    "scale/image_pyramid": ["model.backbone.norm=frozen_bn"],
    "scale/snip": ["model.backbone.norm=frozen_bn"],
    "retinanet/shapes": ["model.backbone.norm=frozen_bn"],
    "centernet/shapes": ["model.backbone.norm=frozen_bn", "model.neck.norm=gn"],
    "yolov1/shapes": ["model.backbone.norm=frozen_bn"],
    "flow/shapes": ["model.backbone.norm=frozen_bn"],
    "flow/shapes_diffusiondet": ["model.backbone.norm=frozen_bn"],
    "mtcnn/shapes_tiny": ["model.max_candidates=50", "model.samples_per_image=20"],
}


def settings(experiment: str, data: Path) -> list[str]:
    return [
        f"experiment={experiment}", *RECIPES[experiment], f"data.root={data}", "data.train.num_train=8",
        "data.train.num_val=2", "optim=SGD", "optim.lr=1e-3",
    ]  # fmt: skip


@pytest.mark.parametrize("experiment", RECIPES)
def test_a_run_goes_on_in_the_same_bits(experiment: str, tmp_path: Path) -> None:
    given = settings(experiment, tmp_path / "data")
    trainer_in(tmp_path / "run", *given).fit()
    half, one, two = gone_on(tmp_path / "run", trainer_in(tmp_path / "again", *given))
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    assert any(not torch.equal(one.weights[name], half.weights[name]) for name in one.weights)


#: MTCNN learns from the hardest of the crops that a process sees, so that two do not see the same.
@pytest.mark.parametrize("experiment", [name for name in RECIPES if not name.startswith("mtcnn")])
def test_two_processes_train_what_one_does(experiment: str, tmp_path: Path) -> None:
    end = [
        "device=cpu", "threads=1", "callbacks={}", "data.loader.train.batch_size=4", "data.loader.train.num_workers=0",
        "trainer.steps=3", "trainer.eval_every=null", "trainer.log_every=1",
        "schedule.warmup_steps=0",  # with it three steps move hardly a weight
    ]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    weights = []
    for launcher in ([sys.executable], torchrun):
        folder = tmp_path / str(len(weights))
        command = [*launcher, str(ROOT / "tools" / "train.py"), *settings(experiment, tmp_path / "data"), *end]
        done = subprocess.run(
            [*command, f"hydra.run.dir={folder}"], capture_output=True, text=True, cwd=tmp_path, timeout=600,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        weights.append(load_checkpoint(folder / "last.pt").weights)
    one, two = weights
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
