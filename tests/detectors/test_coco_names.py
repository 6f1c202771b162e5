from __future__ import annotations

from detectors.coco_names import COCO_CATEGORIES, COCO_IDS, COCO_NAMES, SPELLINGS, in_coco_spelling


def test_the_classes_of_coco() -> None:
    """Counts and gaps of instances_val2017.json."""
    assert len(set(COCO_NAMES)) == len(COCO_IDS) == 80
    assert sorted(COCO_IDS) == list(COCO_IDS)
    assert set(range(1, 91)) - set(COCO_IDS) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert [COCO_CATEGORIES[i] for i in (1, 13, 44, 63, 90)] == ["person", "stop sign", "bottle", "couch", "toothbrush"]
    assert COCO_NAMES[79] == "toothbrush"


def test_other_spellings_of_all_classes_in_order() -> None:
    """As transformers' documentation prints the classes of its published RT-DETR: a sofa, not a couch."""
    others = {ours: theirs for theirs, ours in SPELLINGS.items()}
    assert set(others) <= set(COCO_NAMES)
    spelled = [others.get(name, name) for name in COCO_NAMES]
    assert spelled != list(COCO_NAMES)
    assert in_coco_spelling(spelled) == COCO_NAMES
    assert in_coco_spelling(["sofa", "dog"]) == ["sofa", "dog"]  # not COCO's classes
    assert in_coco_spelling(spelled[::-1]) == spelled[::-1]
