"""Settings for all tests."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # several at once: before torch, and whatever starts more, looks
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# No deadline: a busy machine is no fault. Derandomised: a failure seen once is seen again.
settings.register_profile("detkit", deadline=None, derandomize=True)
settings.load_profile("detkit")


def pytest_collection_modifyitems(items):
    """Tests marked ``cuda`` run where there is a GPU."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="there is no GPU here"))
