"""Settings for all tests."""

import pytest
import torch
from hypothesis import settings

# No deadline: a busy machine is no fault. Derandomised: a failure seen once is seen again.
settings.register_profile("detkit", deadline=None, derandomize=True)
settings.load_profile("detkit")


def pytest_collection_modifyitems(items):
    """What needs a GPU is skipped, with this reason, where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
