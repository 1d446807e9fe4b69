"""Data sets: annotation files in, records out. The one door through which other box formats come into detkit."""

from detkit.data.datasets.base import DataReport, DetectionDataset, Finding
from detkit.data.datasets.coco import CocoDataset
from detkit.data.datasets.shapes import ShapesDataset
from detkit.data.datasets.table import TruthTable
from detkit.data.datasets.voc import VocDataset
from detkit.data.datasets.yolo import YoloDataset

__all__ = [
    "CocoDataset",
    "DataReport",
    "DetectionDataset",
    "Finding",
    "ShapesDataset",
    "TruthTable",
    "VocDataset",
    "YoloDataset",
]
