"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vfmdistill.cli import main
from vfmdistill.errors import WeightsError
from vfmdistill.teachers import catalog
from vfmdistill.teachers.catalog import CATALOG, TeacherSpec, list_teachers, register_teacher
from vfmdistill.version import __version__


def load_tiny(spec: TeacherSpec, pretrained: bool, weights: Path | None) -> nn.Module:
    if weights is not None and not weights.is_file():
        raise WeightsError(f"no file {weights}; give it by weights=PATH.")
    return nn.Conv2d(3, spec.embed_dim, spec.patch_size, spec.patch_size)


@pytest.fixture(autouse=True)
def _tiny_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_registered", {})
    for name in ("tiny_a", "tiny_b"):
        spec = TeacherSpec(
            name=name,
            family="tiny",
            backend="module",
            model_id=name,
            patch_size=4,
            embed_dim=8,
            params=1_234_567,
            license="nobody-may-1.0",
            gated=name == "tiny_b",
        )
        register_teacher(spec, load_tiny)


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


def sheet_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        return sheet.size


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["paint"],
        ["features", "a.png"],
        ["teachers", "--yaml"],
        ["features", "a.png", "--teacher", "tiny_a", "--random", "--weights", "w.pth"],
        ["inspect"],
        ["inspect", "timm:resnet18", "deim_n"],
    ],
)
def test_words_that_are_no_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "usage: vfmdistill" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--version", "--help"):
        with pytest.raises(SystemExit) as stopped:
            main([word])
        assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert f"vfmdistill {__version__}" in printed
    assert "teachers" in printed
    assert "features" in printed
    assert "inspect" in printed


def test_the_table_of_teachers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers", "tiny"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["name", "width", "patch", "parameters", "licence", "gated", "on", "this", "machine"] in lines
    assert ["tiny_a", "8", "4", "1.2", "M", "nobody-may-1.0"] in lines
    assert ["tiny_b", "8", "4", "1.2", "M", "nobody-may-1.0", "gated"] in lines


def test_no_name_and_no_licence_is_cut_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers"]) == 0
    words = set(capsys.readouterr().out.split())
    assert set(list_teachers()) <= words
    assert {spec.license for spec in CATALOG.values()} <= words


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("tiny_a", ["tiny_a"]), ("iny_", ["tiny_a", "tiny_b"]), ("tiny_?", ["tiny_a", "tiny_b"]), ("ti*_b", ["tiny_b"])],
)
def test_a_filter_is_a_part_or_a_pattern(pattern: str, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers", pattern, "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == names


def test_a_filter_without_a_match(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers", "dino_v2"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "vfmdistill teachers: unknown teacher 'dino_v2'; nearest: dinov" in printed.err


def test_json_is_the_spec_and_where_the_weights_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list_teachers()
    for row in rows:
        weights = row.pop("weights")
        assert weights is None or Path(weights).is_file()
        if row["name"] in CATALOG:
            assert TeacherSpec.model_validate(row) == CATALOG[row["name"]]


def test_the_catalogue_builds_nothing_and_imports_no_backend() -> None:
    code = (
        "import sys; from vfmdistill.cli import main; status = main(['teachers', '--json']); "
        "heavy = {'timm', 'open_clip', 'transformers', 'torchvision', 'detectors'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == len(CATALOG)


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = [sys.executable, "-m", "vfmdistill", "teachers", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


def test_features_of_several_teachers_side_by_side(
    photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "sheet.png"
    words = ["features", str(photograph), str(photograph), "--teacher", "tiny_a", "--teacher", "tiny_b"]
    assert main([*words, "--grid", "8", "--output", str(output), "--device", "cpu"]) == 0
    assert sheet_size(output) == (3 * 320 + 4 * 8, 20 + 2 * 240 + 3 * 8)
    assert capsys.readouterr().out == f"{output}: 2 image(s) × tiny_a, tiny_b\n"


def test_the_sheet_has_a_name_of_its_own(photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["features", str(photograph), "--teacher", "tiny_a", "--teacher", "tiny_a"]) == 0
    assert sheet_size(tmp_path / "features.png")[0] == 2 * 320 + 3 * 8  # a teacher that is named twice is drawn once


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What the command asks of `Teacher`, which is not built."""
    calls: list[dict[str, object]] = []

    class Noted(nn.Module):
        device = None

        def __init__(self, name: str, **options: object) -> None:
            super().__init__()
            calls.append({"name": name, **options})

        def forward(self, images: torch.Tensor, grid: tuple[int, int], input_range: str) -> object:
            calls[-1] |= {"grid": grid, "input_range": input_range}
            return type("Features", (), {"map": torch.rand(1, 4, *grid)})

    monkeypatch.setattr("vfmdistill.teacher.Teacher", Noted)
    return calls


def test_options_reach_the_teacher(photograph: Path, tmp_path: Path, given: list[dict[str, object]]) -> None:
    words = ["features", str(photograph), "--output", str(tmp_path / "s.png"), "--teacher", "tiny_a"]
    assert main(words) == 0
    plain = {"name": "tiny_a", "pretrained": True, "weights": None}  # the rest is left to the teacher
    assert given == [{**plain, "grid": (24, 32), "input_range": "uint8"}]
    given.clear()
    assert main([*words, "--weights", "w=1.pth", "--blocks", "9, 12", "--merge", "mean", "--grid", "5x7"]) == 0
    assert given[0]["weights"] == Path("w=1.pth")
    assert given[0]["blocks"] == [9, 12]
    assert given[0]["merge"] == "mean"
    assert given[0]["grid"] == (5, 7)
    given.clear()
    assert main([*words, "--teacher", "tiny_b", "--weights", "tiny_b=b=.pth", "--dense", "value"]) == 0
    assert [call["weights"] for call in given] == [None, Path("b=.pth")]
    assert [call["dense"] for call in given] == ["value", "value"]
    given.clear()
    assert main([*words, "--random"]) == 0
    assert given[0]["pretrained"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher", "tiny_c"], "unknown teacher 'tiny_c'; nearest: tiny_"),
        (["--teacher", "tiny_a", "--output", "sheet.jpg"], "--output sheet.jpg is no name of a PNG file"),
        (["--teacher", "tiny_a", "--device", "abacus"], "--device abacus cannot be used here"),
        (
            ["--teacher", "tiny_a", "--weights", "no.pth"],
            "Here, weights=PATH is --weights tiny_a=PATH, and pretrained=False is --random.",
        ),
        (["--teacher", "tiny_a", "--teacher", "tiny_b", "--weights", "w.pth"], "does not say whose it is"),
        (["--teacher", "tiny_a", "--weights", "a.pth", "--weights", "b.pth"], "--weights came twice for"),
        (["no.jpg", "--teacher", "tiny_a"], "image 'no.jpg' does not exist"),
    ],
)
def test_features_that_cannot_be_drawn(
    words: list[str],
    message: str,
    photograph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["features", str(photograph), *words]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("vfmdistill features: ")
    assert message in printed.err
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == [photograph]


def test_ctrl_c_is_no_traceback(photograph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vfmdistill.images.read_image", interrupted)
    assert main(["features", str(photograph), "--teacher", "tiny_a"]) == 130


def test_a_place_that_cannot_be_written(photograph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside_a_file = photograph / "sheet.png"
    assert main(["features", str(photograph), "--teacher", "tiny_a", "--output", str(inside_a_file)]) == 1
    assert f"--output {inside_a_file} cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--grid", "0"], ["--grid", "axb"], ["--grid", "1x2x3"], ["--blocks", "9,"], ["--blocks", "-1"]]
)
def test_numbers_that_are_not_understood(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["features", "a.png", "--teacher", "tiny_a", f"{words[0]}={words[1]}"])
    assert stopped.value.code == 2
    assert f"argument {words[0]}: {words[1]!r}" in capsys.readouterr().err


@pytest.fixture
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of students in the current folder."""
    (tmp_path / "students_of_mine.py").write_text(
        "from torch import nn\n"
        "def small():\n"
        "    stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU())\n"
        "    body = nn.Sequential(nn.Conv2d(8, 8, 4, 4), nn.ReLU())\n"
        "    return nn.Sequential(stem, body, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8, 99))\n"
        "built = small()\n"
        "class Homes:\n"
        "    home = small\n"
        "def wide(width):\n"
        "    return nn.Conv2d(3, width, 16, 16)\n"
        "def nothing():\n"
        "    return None\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "students_of_mine", raising=False)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])


@pytest.mark.usefixtures("_own_module")
def test_inspect_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    path = list(sys.path)
    assert main(["inspect", "students_of_mine:small", "--input-size", "64"]) == 0
    assert sys.path == path
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines]
    assert ["path", "type", "output", "stride", "layout", "parameters", "note"] in rows
    assert ["0", "Sequential", "1", "×", "8", "×", "16", "×", "16", "4", "NCHW", "392"] in rows
    assert ["→", "1", "Sequential", "1", "×", "8", "×", "4", "×", "4", "16", "NCHW", "1,032"] in rows
    assert lines[-1].startswith("attach takes '1': the deepest map of stride 16 to 32; of 3 modules with such a map")
    assert lines[-1].endswith(" 4 more with --all.")
    assert main(["inspect", "students_of_mine:small", "--input-size", "64", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:9]] == ["0.0", "0.1", "0", "1.0", "1.1", "→"]
    assert "--all" not in lines[-1]


@pytest.mark.usefixtures("_own_module")
@pytest.mark.parametrize("name", ["small", "built", "Homes.home"])
def test_inspect_as_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"students_of_mine:{name}", "--input-size", "64x128", "--json"]) == 1
    assert capsys.readouterr().out == ""  # a pool over the width is more than the head takes
    assert main(["inspect", f"students_of_mine:{name}", "--input-size", "64x64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["student"] == f"students_of_mine:{name}"
    assert found["chosen"] == ["1"]
    assert found["input_size"] == [64, 64]
    assert [candidate["path"] for candidate in found["candidates"]] == ["0.0", "0.1", "0", "1.0", "1.1", "1"]


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("timm:test_resnet.r160_in1k", [160, 160]),  # a name with its weights, which are not loaded
        ("torchvision:mobilenet_v3_small", [224, 224]),
        ("torchvision:ssdlite320_mobilenet_v3_large", [320, 320]),
        ("deim_n", [640, 640]),
    ],
)
def test_a_student_is_inspected_at_its_own_size(spec: str, size: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", spec, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["input_size"] == size
    assert len(found["chosen"]) == 1


@pytest.mark.usefixtures("_own_module")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("deim_k", "unknown detector 'deim_k'; nearest: deim_"),
        ("timm:resnet81", "unknown timm model 'resnet81'; nearest: resnet"),
        ("torchvision:rsnet", "unknown torchvision model 'rsnet'; nearest: resnet"),
        ("timm:", "student 'timm:'; expected timm:NAME"),
        (".mine:build", "student '.mine:build'; expected timm:NAME"),
        ("no_such_module:build", "module 'no_such_module' cannot be imported (No module named"),
        ("students_of_mine:smal", "'students_of_mine' has no 'smal'"),
        ("students_of_mine:wide", "missing a required argument: 'width'; expected a function that takes no arguments"),
        ("students_of_mine:nothing", "students_of_mine:nothing returned a NoneType; expected a torch.nn.Module"),
        ("students_of_mine:__name__", "a str; expected a function that returns the network"),
        (
            "students_of_mine:small",
            "Give the size that it takes as input_size=, .* Here, input_size= is --input-size HxW",
        ),
    ],
)
def test_students_that_cannot_be_inspected(spec: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", spec]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("vfmdistill inspect: ")
    assert all(part in printed.err for part in message.split(".* "))


def test_inspect_without_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert main(["inspect", "timm:resnet18"]) == 1
    assert "the package timm is missing" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "64x", "1x2x3", "wide"])
def test_sizes_that_are_not_understood(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", "deim_n", "--input-size", size])
    assert stopped.value.code == 2
    assert f"argument --input-size: {size!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["teachers"], ["features", "{photograph}", "--teacher", "tiny_a"], ["inspect", "torchvision:mobilenet_v3_small"]],
)
def test_without_rich(
    words: list[str], photograph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main([word.format(photograph=photograph) for word in words]) == 1
    assert f"vfmdistill {words[0]}: the package rich is missing" in capsys.readouterr().err
    assert main(["teachers", "--json"]) == 0
    assert main(["inspect", "torchvision:mobilenet_v3_small", "--json"]) == 0


def test_the_module_runs() -> None:
    command = [sys.executable, "-m", "vfmdistill", "features", "no.jpg", "--teacher", "efficientnet_lite0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vfmdistill features: image 'no.jpg' does not exist")
    assert "Traceback" not in done.stderr
