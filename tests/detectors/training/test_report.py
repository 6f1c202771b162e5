import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.page import Node, parse_page
from support.run_folder import epoch_line, facts, finished_run, open_report, timing_line, write_run

from detectors.training.report import main
from detectors.training.report_page import write_report
from detectors.training.run_file import begin_run, end_run
from vfmdistill.errors import InputError

CURVES = ["Average precision", "Loss, all parts together", "Losses by kind", "AP by size of objects", "Learning rate",
          "Images per second"]  # fmt: skip
OF_THE_TEACHER = ["Semantic loss, before λ", "λ, weight of the semantic loss", "Gradient share of the tap"]


def tiles(page: Node) -> dict[str, tuple[str, str]]:
    (row,) = page.all("div", "tiles")
    found = ([child.text for child in node.children if isinstance(child, Node)] for node in row.all("div"))
    return {name: (value, more) for name, value, more in found}


def latest(page: Node, title: str) -> list[str]:
    return [node.text for node in page.figure(title).all("li")]


def titles(page: Node) -> list[str]:
    return [node.text for node in page.all("h2")]


def test_the_main_figures(tmp_path: Path) -> None:
    end_run(finished_run(tmp_path), finished=True)
    page = open_report(tmp_path)
    assert next(page.all("h1")).text == "rtdetrv4_n finished"
    assert next(page.all("title")).text == "rtdetrv4_n – training run"
    assert tiles(page) == {
        "best AP": ("0.400", "epoch 7 · AP50 0.600"),
        "epochs": ("8 of 8", ""),
        "time": ("13 min 20 s", "50 images/s"),
        "peak memory": ("3.0 GiB", "of the first GPU"),
        "λ": ("11", "share 10.5 %"),
        "bad steps": ("0", "every gradient was finite"),
    }


def test_the_curves(tmp_path: Path) -> None:
    page = open_report(finished_run(tmp_path))
    assert {node.text for node in page.all("figcaption")} == {*CURVES, *OF_THE_TEACHER}
    assert latest(page, "Average precision") == ["AP 0.4", "AP50 0.6", "AP75 0.4"]
    assert latest(page, "Losses by kind") == ["mal 7.375", "bbox 2.5", "λ × semantic 2"]
    assert latest(page, "AP by size of objects") == ["medium 0.4", "large 0.4"]  # there are no small ones
    assert latest(page, "Gradient share of the tap") == ["share 10.5 %"]
    assert len(list(page.figure("Gradient share of the tap").all("path", "window"))) == 1  # ρ 11 ± 1
    assert len(list(page.figure("Loss, all parts together").all("circle"))) == 8
    assert len(list(page.figure("Average precision").all("circle"))) == 3 * 4
    columns, rows = ([cell.text for cell in next(page.all("thead")).all("th")], next(page.all("details")).rows())
    assert columns == ["epoch", "loss", "semantic", "λ", "share, %", "learning rate", "AP", "AP50", "AP75", "bad steps",
                       "time", "images/s", "λ was"]  # fmt: skip
    assert rows[0] == ["0", "40.5", "0.5", "4", "10.5", "0.0008", "–", "–", "–", "0", "1 min 40 s", "50", "raised"]
    assert rows[7][6:9] == ["0.4", "0.6", "0.4"]


def test_the_stages_of_the_recipe_stand_over_the_curves(tmp_path: Path) -> None:
    page = open_report(finished_run(tmp_path, final_learning_rate=0.5, multi_scale=4, augmented_from=1, dense_until=4,
                               flat_until=4))  # fmt: skip
    (stages,) = page.all("ol")
    assert [node.text for node in stages.all("li")] == [
        "epoch 0 flip and resize only, several sizes",
        "epochs 1–3 photometric distortion, zoom-out, crop, mosaic 50%, mixup 50%, several sizes",
        "epochs 4–5 photometric distortion, zoom-out, crop, several sizes",
        "epochs 6–7 flip and resize only, one size, from the best epoch so far, λ at its default",
    ]
    for figure in page.all("figure"):
        assert [node.text for node in figure.all("text", "number")] == ["1", "2", "3", "4"]
    assert "cosine" in [node.text for node in page.figure("Learning rate").all("text")]


def test_precision_by_class_and_size(tmp_path: Path) -> None:
    page = open_report(finished_run(tmp_path)).section("Precision")
    classes, sizes = page.rows()[:3], page.rows()[3:]
    assert [row[:3] for row in classes] == [["dog", "", "0.400"], ["leash", "", "0.200"],
                                            ["unicorn", "no objects", "–"]]  # fmt: skip
    widths = [next(bar.all("span")).attributes["style"] for bar in page.all("span", "bar")]
    assert widths == ["width:40.0%", "width:20.0%"]
    assert len(list(page.all("svg", "spark"))) == 2
    assert [row[1:] for row in sizes] == [["0.400", "0.750"], ["–", "–"], ["0.400", "0.500"], ["0.400", "0.250"]]
    assert "after epoch 7" in page.text


def test_precision_is_that_of_the_best_epoch(tmp_path: Path) -> None:
    lines = [epoch_line(0), epoch_line(1, AP=0.9, AP_per_class={"dog": 0.9}), epoch_line(2)]
    page = open_report(write_run(tmp_path, lines))
    assert page.section("Precision").rows()[0][:3] == ["dog", "", "0.900"]
    assert tiles(page)["best AP"][0] == "0.900"


def test_many_classes_stand_in_two_tables(tmp_path: Path) -> None:
    names = {f"class {n:02}": n / 20 for n in range(15)}
    page = open_report(write_run(tmp_path, [epoch_line(0, AP_per_class=names)])).section("Precision")
    assert [len(table.rows()) for table in page.all("div", "classes")] == [8, 7]
    assert [row[0] for row in page.rows()[:15]] == sorted(names, reverse=True)


def test_names_from_data_stay_text(tmp_path: Path) -> None:
    evil = """</td><script>alert(1)</script><img src="https://example.com/x" onerror='x'>&amp;"""
    given = facts(data=evil, output=evil)
    given |= {"command": evil, "teachers": [{"name": evil, "license": evil}], "parameter_groups": [{"name": evil}],
              "data": [{evil: evil, "class_names": [evil]}], "environment": {"versions": {evil: evil},
              "hardware": {"cpu": evil, "gpus": [{"name": evil, "memory": 1}]}, "platform": evil}}  # fmt: skip
    begin_run(tmp_path, given)
    write_run(tmp_path, [epoch_line(0, AP_per_class={evil: 0.5}, modulation=evil, **{f"loss_{evil}": 1.0})])
    content = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in content
    page = parse_page(content)
    assert not list(page.all("img"))
    assert next(row[0] for row in page.section("Precision").rows()) == evil
    assert [node.text for node in page.section("Cost").all("pre")] == [evil]
    assert page.section("Versions").pairs() == {evil: evil}
    assert all(not name.startswith("on") for node in page.all() for name in node.attributes)


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(finished_run(tmp_path) / "predictions.png")
    page = open_report(tmp_path)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {node.name for node in page.all()}
    loaded = [node.attributes[key] for node in page.all() for key in ("src", "href", "srcset", "xlink:href", "data")
              if key in node.attributes]  # fmt: skip
    assert len(loaded) == 1
    assert loaded[0].startswith("data:image/png;base64,")
    assert page.figure("predictions").name == "figure"


def test_a_picture_that_is_too_large_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4), "red").save(finished_run(tmp_path) / "predictions.png")
    monkeypatch.setattr("detectors.training.report_page._LARGEST_PICTURE", 10)
    assert "Pictures" not in titles(open_report(tmp_path))


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    begin_run(tmp_path, facts(epochs=100, plain_epochs=10))
    page = open_report(tmp_path)
    assert next(page.all("h1")).text == "rtdetrv4_n not finished: 0 of 100 epochs"
    assert "No epoch is done yet" in page.section("Curves").text
    assert tiles(page) == {"epochs": ("0 of 100", "")}
    write_run(tmp_path, [epoch_line(epoch, evaluated=False) for epoch in range(3)])
    page = open_report(tmp_path)
    assert next(page.all("h1")).text == "rtdetrv4_n not finished: 3 of 100 epochs"
    assert tiles(page)["epochs"] == ("3 of 100", "about 2 h 41 min left")
    assert "best AP" not in tiles(page)
    assert "Precision" not in titles(page)
    numbers = [node.text for node in page.figure("Learning rate").all("text")
               if node.attributes.get("text-anchor") == "middle"]  # fmt: skip
    assert numbers == ["0", "1", "2", "3", "4", "5"]  # as many epochs again as are done


def test_a_run_that_was_resumed(tmp_path: Path) -> None:
    begin_run(tmp_path, facts())
    end_run(tmp_path, finished=False)
    begin_run(tmp_path, {**facts(), "command": "python train.py --epochs 8 --resume"}, epoch=2, step=50)
    timing = [timing_line(0), timing_line(1), timing_line(2, seconds=40.0), timing_line(2, speed=75.0)]
    write_run(tmp_path, [epoch_line(epoch) for epoch in range(3)], timing)
    page = open_report(tmp_path)
    assert tiles(page)["time"] == ("5 min 40 s", "57.4 images/s")  # (240 · 50 + 100 · 75) / 340
    assert latest(page, "Images per second") == ["training 75"]
    assert next(page.all("details")).rows()[2][10] == "2 min 20 s"
    assert len(list(page.figure("Average precision").all("path", "resumed"))) == 1
    assert "resumed (1 ×)" in page.section("Curves").text
    cost = page.section("Cost")
    assert [(ended != "–", epoch, step) for _, ended, epoch, step in cost.rows()] == [
        (True, "0", "0"), (False, "2", "50"),
    ]  # fmt: skip
    assert [node.text for node in cost.all("pre")] == [
        "python train.py --epochs 8", "python train.py --epochs 8 --resume",
    ]  # fmt: skip


def test_a_run_without_a_teacher(tmp_path: Path) -> None:
    page = open_report(finished_run(tmp_path, teacher="none"))
    assert {node.text for node in page.all("figcaption")} == set(CURVES)
    assert "Teacher" not in titles(page)
    assert "λ" not in tiles(page)
    assert "without a teacher" in next(page.all("header")).text
    assert "λ" not in next(page.all("ol")).text


def test_the_window_follows_what_was_calibrated(tmp_path: Path) -> None:
    def window(page: Node) -> list[Node]:
        return list(page.figure("Gradient share of the tap").all("path", "window"))

    assert not window(open_report(finished_run(tmp_path / "a", rho="auto")))
    begin_run(tmp_path / "b", facts(rho="auto"))
    write_run(tmp_path / "b", [epoch_line(0), epoch_line(1, rho=2.5, delta=0.25)])
    page = open_report(tmp_path / "b")
    (path,) = window(page)
    rows = {float(y) for y in re.findall(r" ([\d.]+)", path.attributes["d"])}
    axis = {node.text: float(node.attributes["y"]) for node in page.figure("Gradient share of the tap").all("text")}
    percent = (axis["5"] - axis["10"]) / 5
    assert sorted(rows) == pytest.approx([axis["5"] - 4 + shift * percent for shift in (2.25, 2.75)], abs=0.11)


def test_figures_that_are_missing_are_left_out(tmp_path: Path) -> None:
    lines = [epoch_line(0, loss=None, share=None), epoch_line(1, evaluated=False), {"epoch": 2, "loss": 3.0}]
    page = open_report(write_run(tmp_path, lines, []))
    assert latest(page, "Loss, all parts together") == ["loss 3"]
    rows = next(page.all("details")).rows()
    assert rows[0][1] == rows[0][4] == rows[1][6] == rows[2][2] == "–"
    assert "nan" not in page.section("Curves").text
    assert "None" not in page.text


def test_metrics_alone_make_a_open_report(tmp_path: Path) -> None:
    write_run(tmp_path / "old run", [epoch_line(0), epoch_line(1)])
    (tmp_path / "old run" / "timing.jsonl").unlink()
    page = open_report(tmp_path / "old run")
    assert next(page.all("h1")).text == "old run finished"
    assert titles(page) == ["Curves", "Precision"]


def test_it_is_the_same_page_from_the_same_files(tmp_path: Path) -> None:
    finished_run(tmp_path)
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run: there is neither run\.json nor metrics\.jsonl"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="holds no run"):
        write_report(tmp_path / "nowhere")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(finished_run(tmp_path / "run"))]) == tmp_path / "run" / "report.html"
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'report.html'}\n"
    words = [sys.executable, "-m", "detectors.training.report", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {tmp_path} holds no run")
