from __future__ import annotations

from detectors.coco_names import COCO_CATEGORIES, COCO_IDS, COCO_NAMES


def test_the_classes_of_coco() -> None:
    """Counts and gaps of instances_val2017.json."""
    assert len(set(COCO_NAMES)) == len(COCO_IDS) == 80
    assert sorted(COCO_IDS) == list(COCO_IDS)
    assert set(range(1, 91)) - set(COCO_IDS) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert [COCO_CATEGORIES[i] for i in (1, 13, 44, 63, 90)] == ["person", "stop sign", "bottle", "couch", "toothbrush"]
    assert COCO_NAMES[79] == "toothbrush"
