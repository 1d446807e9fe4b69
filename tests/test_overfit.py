"""A detector that cannot learn eight images by heart is broken somewhere between file and loss."""

import pytest

from detkit.app import train
from tests.app.test_configs import composed


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment",
    ["quickstart", "retinanet/shapes", "centernet/shapes", "yolov1/shapes", "rfcn/shapes", "tridentnet/shapes"],
)
def test_eight_images_are_learnt_by_heart(experiment, tmp_path):
    cfg = composed(f"experiment={experiment}", "debug=overfit", "device=cpu", f"data.root={tmp_path}", "callbacks={}")
    trainer, _ = train.build_trainer(cfg, tmp_path)
    trainer.fit()
    assert trainer.metrics["AP50"] >= 0.9
