import gc

import pytest

from detkit.data import CocoDataset
from tests.data.builders import coco_set
from tests.data.loaders import no_children_left


@pytest.fixture
def no_orphans():
    yield
    gc.collect()  # pytest keeps exceptions, and they their frames
    assert no_children_left()


@pytest.fixture
def data(tmp_path) -> CocoDataset:
    return CocoDataset(root=str(coco_set(tmp_path)))
