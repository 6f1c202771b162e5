"""Data sets in the format of COCO, YOLO or Pascal VOC: finding, checking, reading, transforming and batching them.

A drawn one to try is there too.
"""

from detectors.data.checks import SplitSummary, check_dataset
from detectors.data.coco import CocoDataset
from detectors.data.collate import collate
from detectors.data.layout import Split, locate_split
from detectors.data.problems import DatasetError
from detectors.data.toy import write_toy_dataset
from detectors.data.transforms import eval_transform, train_transform

__all__ = [
    "CocoDataset",
    "DatasetError",
    "Split",
    "SplitSummary",
    "check_dataset",
    "collate",
    "eval_transform",
    "locate_split",
    "train_transform",
    "write_toy_dataset",
]
