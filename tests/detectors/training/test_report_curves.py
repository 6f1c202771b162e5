import re

import pytest
from support.page import Node, parse_page

from detectors.training.report_curves import Epochs, Line, chart, spark


def points(root: Node, name: str) -> list[tuple[float, float]]:
    (path,) = (node for node in root.all("path") if node.attributes.get("class") == name)
    numbers = re.findall(r"[ML]([\d.]+) ([\d.]+)", path.attributes["d"])
    return [(float(x), float(y)) for x, y in numbers]


def labels(root: Node) -> dict[str, tuple[float, float]]:
    return {t.text: (float(t.attributes["x"]), float(t.attributes["y"])) for t in root.all("text")
            if t.attributes.get("text-anchor") in ("end", "middle")}  # fmt: skip


def test_points_lie_where_the_axes_say() -> None:
    root = parse_page(chart("Loss", [Line("loss", {0: 0.0, 2: 5.0, 3: 10.0})], Epochs(4)))
    axis = labels(root)
    assert list(axis) == ["0", "2.5", "5", "7.5", "10", "1", "2", "3"]  # both axes have a 0; the lower one is kept
    columns = [axis[epoch][0] for epoch in ("0", "2", "3")]
    assert columns == pytest.approx([Epochs(4).x(epoch) for epoch in (0.5, 2.5, 3.5)], abs=0.06)
    (grid,) = {node.attributes["d"].split("H")[0] for node in root.all("path", "grid")} & {"M46 196.0"}
    rows = [float(grid.split()[1]), axis["5"][1] - 4, axis["10"][1] - 4]  # texts stand 4 below their line
    assert points(root, "line s0") == [pytest.approx(point, abs=0.11) for point in zip(columns, rows, strict=True)]


@pytest.mark.parametrize("values", [(0.61, 0.6104), (1e-5, 4e-4), (0.0, 0.0), (3.0, 3.0), (-2.0, 5.0), (7.0, 91234.0)])
@pytest.mark.parametrize("from_zero", [True, False])
def test_every_curve_stays_inside_its_axes(values: tuple[float, float], from_zero: bool) -> None:
    root = parse_page(chart("x", [Line("x", dict(enumerate(values)))], Epochs(2), from_zero=from_zero))
    grid = [float(node.attributes["d"].split()[1].split("H")[0]) for node in root.all("path", "grid")]
    assert 2 <= len(grid) <= 8
    for _, y in points(root, "line s0"):
        assert min(grid) - 0.05 <= y <= max(grid) + 0.05


def test_axes_say_round_numbers() -> None:
    root = parse_page(chart("x", [Line("x", {0: 0.13, 1: 0.87})], Epochs(2)))
    assert [text.text for text in root.all("text") if text.attributes.get("text-anchor") == "end"] == [
        "0", "0.25", "0.5", "0.75", "1",
    ]  # fmt: skip


def test_legend_has_the_latest_values_and_curves_without_values_are_left_out() -> None:
    lines = [Line("AP", {1: 0.25, 3: 0.59381}), Line("AP50", {}), Line("AP75", {1: 0.5})]
    root = parse_page(chart("Precision", lines, Epochs(4), unit=" %"))
    assert [node.text for node in root.all("li")] == ["AP 0.5938 %", "AP75 0.5 %"]
    assert [node.attributes["class"] for node in root.all("i")] == ["s0", "s1"]
    assert chart("Precision", [Line("AP", {})], Epochs(4)) == ""


def test_what_is_pointed_at_says_its_values() -> None:
    lines = [Line("AP", {1: 0.25, 3: 0.5}), Line("AP50", {3: 0.75})]
    root = parse_page(chart("x", lines, Epochs(4), unit=" %"))
    said = [[row.text for row in node.all("tspan")] for node in root.all("g", "at")]
    assert said == [["epoch 1", "AP 0.25 %"], ["epoch 3", "AP 0.5 %", "AP50 0.75 %"]]
    for box in (next(g.all("rect")) for g in root.all("g") if g.attributes.get("class") != "at"):
        assert float(box.attributes["x"]) >= 46
        assert float(box.attributes["x"]) + float(box.attributes["width"]) <= 400
    long = parse_page(chart("x", [Line("x", {epoch: 1.0 * epoch for epoch in range(1000)})], Epochs(1000)))
    assert 100 < len(list(long.all("g", "at"))) <= 160


def test_stages_resumptions_and_bad_steps_are_marked() -> None:
    epochs = Epochs(20, stages=[0, 4, 10, 18], resumed=[5, 50], bad=[7])
    root = parse_page(chart("x", [Line("x", {0: 1.0, 19: 2.0})], epochs))
    shaded = [*root.all("rect", "stage0"), *root.all("rect", "stage1")]
    starts = sorted(float(node.attributes["x"]) for node in shaded)
    assert starts == pytest.approx([epochs.x(stage) for stage in (0, 4, 10, 18)], abs=0.06)
    assert sum(float(node.attributes["width"]) for node in shaded) == pytest.approx(epochs.x(20) - epochs.x(0), abs=0.2)
    assert [node.text for node in root.all("text", "number")] == ["1", "2", "3", "4"]
    (resumed,), (bad,) = (list(root.all("path", kind)) for kind in ("resumed", "bad"))
    assert resumed.attributes["d"].startswith(f"M{epochs.x(5) - 4:.1f} ")
    assert bad.attributes["d"].startswith(f"M{epochs.x(7.5) - 4:.1f} ")


def test_a_window_and_a_mark() -> None:
    root = parse_page(
        chart("share", [Line("share", {0: 1.0})], Epochs(4), window={0: (9.0, 11.0)}, marks=[(3, "cosine")])
    )
    epochs, axis = Epochs(4), labels(root)
    unit = (axis["5"][1] - axis["10"][1]) / 5
    top, bottom = (axis["10"][1] - 4 + shift * unit for shift in (-1, 1))
    first, last = epochs.x(0), epochs.x(1)
    assert points(root, "window") == [
        pytest.approx(point, abs=0.11) for point in ((first, top), (last, top), (last, bottom), (first, bottom))
    ]
    (mark,) = root.all("path", "mark")
    assert mark.attributes["d"].startswith(f"M{epochs.x(3):.1f} ")
    assert "cosine" in [node.text for node in root.all("text")]
    assert "15" in labels(root)  # the axis reaches over the window


def test_short_curves_have_dots_and_long_ones_have_not() -> None:
    def dots(number: int) -> int:
        line = Line("x", dict.fromkeys(range(number), 1.0))
        return len(list(parse_page(chart("x", [line], Epochs(number))).all("circle")))

    assert dots(1) == 1
    assert dots(12) == 12
    assert dots(100) == 0


def test_a_spark_line() -> None:
    found = points(parse_page(spark({0: 0.0, 1: 1.0}, Epochs(2))), "line s0")
    assert found == [(25.0, 20.0), (75.0, 2.0)]
