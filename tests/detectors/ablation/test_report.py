from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from support.page import parse_page

from detectors.ablation import report
from detectors.ablation.comparison import SCOPE, compare
from detectors.ablation.pictures import Picture
from detectors.ablation.record import AblationRecord, EpochRecord
from detectors.ablation.report import LINES, MARKDOWN, PAGE, read_record, write_report
from vfmdistill.errors import InputError

from .conftest import Ablation

VERSIONS = {"versions": {"torch": "2.11.0"}, "hardware": {"cpu": "A CPU", "cores": 2, "memory": 2**34}, "platform": "P"}


@pytest.fixture(scope="module")
def record(ablation: Ablation) -> AblationRecord:
    off = [40.0, 44.0, 42.0, 41.0, 43.0]
    gains = [1.2, 0.9, 1.3, 0.8, 1.1]
    points = {
        "off": off,
        "vit+gam": [ap + gain for ap, gain in zip(off, gains, strict=True)],
        "shuffled:vit+gam": [ap + gain + 0.1 for ap, gain in zip(off, gains, strict=True)],
    }
    made = ablation(points, missing=[("vit+gam", 5)])
    epochs = [EpochRecord(epoch=epoch, AP=epoch / 10, weight=20.0, share=3.0) for epoch in range(3)]
    runs = [
        run.model_copy(
            update={"epochs": epochs, "environment": VERSIONS, "command": f"again {run.arm} {run.seed}",
                    "teachers": [{"name": "vit", "license": "a <licence>"}]}
        )
        for run in made.records
    ]  # fmt: skip
    changed = {"records": runs, "command": "python examples/ablate_teachers.py --seeds 5", "notes": ["Why so short."],
               "recipe": {"model": "deim_n", "data": "cards", "epochs": 3}, "name": "A <study>"}  # fmt: skip
    return made.model_copy(update=changed)


@pytest.fixture(scope="module")
def folder(record: AblationRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    pictures = [Picture("Features", "How to read them.", (("", b"one"),)),
                Picture("Found: ace", "", (("off", b"two"), ("vit+gam", b"three")))]  # fmt: skip
    assert write_report(record, compare(record), folder, pictures=pictures) == folder / PAGE
    return folder


def test_the_first_line_is_the_headline_and_controls_come_first_in_it(record: AblationRecord, folder: Path) -> None:
    headline = compare(record).headline
    assert headline.startswith("The control shuffled:vit+gam does as well as its teacher")
    root = parse_page((folder / PAGE).read_text(encoding="utf-8"))
    assert [node.text for node in root.all("p", "verdict")] == [headline]
    markdown = (folder / MARKDOWN).read_text(encoding="utf-8").splitlines()
    assert markdown[0] == "# A &lt;study&gt;"
    assert markdown[2] == f"**{headline}**"


def test_the_page_has_all_sections_in_order(folder: Path) -> None:
    root = parse_page((folder / PAGE).read_text(encoding="utf-8"))
    assert [next(node.all("h2")).text for node in root.all("section")] == [
        "Does it help?", "Arms", "Methods against their controls", "Classes", "AP over the epochs", "λ and share",
        "Pictures", "Every run", "Missing runs", "Cost of training", "Teachers", "Settings", "Hardware and versions",
        "Do it again",
    ]  # fmt: skip
    assert SCOPE in root.section("Does it help?").text
    assert len(list(root.section("Does it help?").all("li"))) == 3
    assert "Why so short." in root.section("Settings").text
    assert root.section("Hardware and versions").pairs() == {
        "hardware": "2 cores of A CPU, 16.0 GiB", "platform": "P", "torch": "2.11.0",
    }  # fmt: skip
    assert next(node.text for node in root.section("Do it again").all("pre")).endswith("ablate_teachers.py --seeds 5")
    assert "again vit+gam 4" in root.section("Do it again").text
    assert root.section("Teachers").rows() == [["vit", "a <licence>", "–", "–"]]


def test_pictures_are_part_of_the_page(folder: Path) -> None:
    section = parse_page((folder / PAGE).read_text(encoding="utf-8")).section("Pictures")
    sources = [node.attributes["src"].partition("base64,")[2] for node in section.all("img")]
    assert [base64.b64decode(source) for source in sources] == [b"one", b"two", b"three"]
    assert [node.text for node in section.all("h3")] == ["Features", "Found: ace"]
    assert [node.text for node in section.all("figcaption")] == ["off", "vit+gam"]


def test_the_page_loads_nothing_and_runs_nothing(folder: Path) -> None:
    text = (folder / PAGE).read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_markdown_has_the_same_tables(folder: Path) -> None:
    text = (folder / MARKDOWN).read_text(encoding="utf-8")
    root = parse_page((folder / PAGE).read_text(encoding="utf-8"))
    for title in ("Arms", "Classes", "Every run", "Missing runs", "Cost of training", "Teachers"):
        _, _, after = text.partition(f"\n## {title}\n")
        rows = [line for line in after.partition("\n## ")[0].splitlines() if line.startswith("| ")]
        assert [row.strip("| ").split(" | ") for row in rows[1:]] == [
            [cell.strip() for cell in row] for row in root.section(title).rows()
        ]
    assert "    python examples/ablate_teachers.py --seeds 5\n" in text


def test_records_come_back_as_they_were(record: AblationRecord, folder: Path) -> None:
    assert read_record(folder / LINES) == record
    assert len((folder / LINES).read_text(encoding="utf-8").splitlines()) == 1 + len(record.records)


def test_lines_may_hold_what_python_takes_for_line_ends(record: AblationRecord, tmp_path: Path) -> None:
    odd = record.model_copy(update={"notes": ["one\u2028two\x85three"]})
    write_report(odd, compare(odd), tmp_path)
    assert read_record(tmp_path / LINES) == odd


def test_a_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read .* expected the records.jsonl of an ablation"):
        read_record(tmp_path / LINES)
    for content in ("", "{}\n", "no JSON", '{"name": "x", "arms": [], "recipe": {}}\n{"arm": 1}\n'):
        (tmp_path / LINES).write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=r"is no records\.jsonl of an ablation of this version"):
            read_record(tmp_path / LINES)


def test_a_report_is_written_anew_from_its_lines(
    record: AblationRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(record, compare(record), tmp_path)
    (tmp_path / PAGE).unlink()
    assert report.main([str(tmp_path), "--title", "Cards", "--note", "Another note."]) == tmp_path / PAGE
    root = parse_page((tmp_path / PAGE).read_text(encoding="utf-8"))
    assert next(root.all("h1")).text.startswith("Cards ")
    assert "Another note." in root.section("Settings").text
    assert "Why so short." not in root.text
    assert "no pictures" in capsys.readouterr().out
    assert read_record(tmp_path / LINES).name == "Cards"


def test_an_ablation_without_a_teacher_has_a_report_too(ablation: Ablation, tmp_path: Path) -> None:
    record = ablation({"off": [40.0]})
    write_report(record, compare(record), tmp_path)
    root = parse_page((tmp_path / PAGE).read_text(encoding="utf-8"))
    assert "No method was compared." in root.text
    assert [next(node.all("h2")).text for node in root.all("section")] == [
        "Arms", "Classes", "Every run", "Cost of training", "Settings",
    ]  # fmt: skip
