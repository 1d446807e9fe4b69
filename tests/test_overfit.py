"""A detector that cannot learn eight images by heart is broken somewhere between file and loss."""

import pytest

from detkit.app import train
from tests.app.test_configs import composed


@pytest.mark.slow
def test_faster_rcnn_learns_eight_images(tmp_path):
    cfg = composed("experiment=quickstart", "debug=overfit", "device=cpu", f"data.root={tmp_path}", "callbacks={}")
    trainer, _ = train.build_trainer(cfg, tmp_path)
    trainer.fit()
    assert trainer.metrics["AP50"] >= 0.9
