from __future__ import annotations

import re

import pytest
from support.page import Node, parse_page

from detectors.ablation.comparison import compare
from detectors.ablation.report_forest import forest

from .conftest import Ablation

OFF = [40.0, 44.0, 42.0, 41.0, 43.0]
GAIN = [1.0, 3.0, 2.0, 2.5, 1.5]


def scale(root: Node) -> tuple[float, float]:
    """Return where 0 lies, and how long an AP point is."""
    axis = {node.text: float(node.attributes["x"]) for node in root.all("text") if node.attributes.get("text-anchor")}
    (one,) = (name for name in axis if name.startswith("+") and float(name) == max(float(n.strip("+")) for n in axis))
    return axis["0"], (axis[one] - axis["0"]) / float(one)


def line(row: Node, name: str) -> tuple[float, float]:
    (path,) = row.all("path", name)
    left, right = re.findall(r"[MH]([\d.]+)", path.attributes["d"])
    return float(left), float(right)


def test_means_seeds_and_intervals_lie_where_the_axis_says(ablation: Ablation) -> None:
    record = ablation({"off": OFF, "vit+gam": [off + gain for off, gain in zip(OFF, GAIN, strict=True)]})
    (contrast,) = compare(record).contrasts
    difference = contrast.differences["AP"]
    root = parse_page(forest("Difference", [contrast], {"vit+gam": "method"}))
    zero, point = scale(root)
    (row,) = root.all("g", "row")
    (square,) = row.all("rect")
    assert float(square.attributes["x"]) + 4.5 == pytest.approx(zero + 2.0 * point, abs=0.2)
    assert sorted((float(dot.attributes["cx"]) - zero) / point for dot in row.all("circle")) == pytest.approx(
        sorted(GAIN), abs=0.01
    )
    assert difference.t is not None
    assert difference.bootstrap is not None
    for name, interval in (("t", difference.t), ("bootstrap", difference.bootstrap)):
        assert line(row, name) == pytest.approx([zero + bound * point for bound in interval], abs=0.3)


def test_a_single_seed_has_no_interval(ablation: Ablation) -> None:
    record = ablation({"off": {0: 40.0}, "vit+gam": {0: 41.0}})
    root = parse_page(forest("Difference", compare(record).contrasts, {}))
    assert not list(root.all("path", "t"))
    assert len(list(root.all("circle"))) == 1


def test_controls_are_grey_and_said_to_be(ablation: Ablation) -> None:
    points = {name: [off + 1 for off in OFF] for name in ("vit+gam", "shuffled:vit+gam")}
    record = ablation({"off": OFF, **points})
    kinds = {arm.name: arm.kind for arm in record.arms}
    root = parse_page(forest("Difference", compare(record).contrasts, kinds))
    assert [row.attributes["class"] for row in root.all("g", "row")] == ["row method", "row control"]
    assert "Grey: controls." in root.text
    assert "Grey" not in parse_page(forest("Difference", compare(record).controls, {})).text


def test_nothing_without_a_difference() -> None:
    assert forest("Difference", [], {}) == ""
