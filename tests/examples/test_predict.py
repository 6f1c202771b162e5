from __future__ import annotations

import json
import runpy
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from support.tiny_detector import tiny_detector

from detectors.predictor import Predictor
from detectors.pretrained import save_pretrained
from detectors.video import Frame, VideoWriter, read_video
from vfmdistill.errors import InputError, UnknownNameError

EXAMPLE = Path(__file__).parents[2] / "examples" / "predict.py"
RNG = np.random.default_rng(0)


def main(*words: object) -> int:
    unread: int = runpy.run_path(str(EXAMPLE))["main"]([str(word) for word in words])
    return unread


def picture(path: Path, height: int, width: int, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path, **options)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(tiny_detector(), folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, the middle one turned by its EXIF orientation, and a text."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture(tmp_path / "photos" / "a.png", 40, 60)
    picture(tmp_path / "photos" / "b" / "a.JPG", 30, 50, exif=exif)
    picture(tmp_path / "photos" / "c.png", 64, 64)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path / "photos"


def read(output: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    results = json.loads((output / "detections.json").read_text())
    return results, json.loads((output / "images.json").read_text())


def test_a_folder_becomes_coco_results_and_drawn_pictures(model: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ("--model", model, "--output", output, "--threshold", 0.1, "--batch-size", 2, "--device", "cpu")
    assert main(*options, folder) == 0
    results, images = read(output)
    paths = [folder / "a.png", folder / "b" / "a.JPG", folder / "c.png"]
    assert [image["file_name"] for image in images["images"]] == [str(path) for path in paths]
    assert [(image["id"], image["width"], image["height"]) for image in images["images"]] == [
        (1, 60, 40), (2, 30, 50), (3, 64, 64)
    ]  # fmt: skip
    predictor = Predictor(model, threshold=0.1, device="cpu", batch_size=2)
    found = predictor(paths)
    assert results == [result for i, each in enumerate(found, start=1) for result in each.to_coco(i)]
    assert len(results) > 10
    names = {category["id"]: category["name"] for category in images["categories"]}
    assert [names[result["category_id"]] for result in results] == [name for each in found for name in each.names]
    drawn = sorted((output / "drawn").iterdir())
    assert [path.name for path in drawn] == ["000001_a.jpg", "000002_a.jpg", "000003_c.jpg"]
    assert [Image.open(path).size for path in drawn] == [(60, 40), (30, 50), (64, 64)]


def test_cocos_own_tools_read_the_two_files_together(model: Path, folder: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    output = tmp_path / "out"
    main("--model", model, "--output", output, "--threshold", 0.1, "--no-draw", folder)
    coco = COCO(str(output / "images.json"))
    loaded = coco.loadRes(str(output / "detections.json"))
    assert len(loaded.anns) == len(read(output)[0])
    assert not (output / "drawn").exists()


def test_says_which_checkpoint_of_a_run_it_takes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pretrained(tiny_detector(), tmp_path / "run" / "pretrained")
    main("--model", tmp_path / "run", "--output", tmp_path / "out", "--no-draw", folder)
    assert capsys.readouterr().out.startswith(f"weights: {tmp_path / 'run' / 'pretrained'}\n")


def test_keeps_some_classes_above_a_threshold(model: Path, folder: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--no-draw", "--threshold")
    main(*options, 0.1, "--output", tmp_path / "all", folder)
    main(*options, 0.15, "--classes", "ring,striped disc", "--output", tmp_path / "some", folder)
    results, _ = read(tmp_path / "all")
    expected = [r for r in results if r["category_id"] in (3, 20) and r["score"] >= 0.15]
    assert read(tmp_path / "some")[0] == expected
    assert 0 < len(expected) < len(results)


def test_a_detector_without_names_and_ids_has_its_indices_listed(folder: Path, tmp_path: Path) -> None:
    save_pretrained(tiny_detector(num_classes=3), tmp_path / "model")
    main("--model", tmp_path / "model", "--output", tmp_path / "out", "--threshold", 0, "--no-draw", folder / "a.png")
    results, images = read(tmp_path / "out")
    assert images["categories"] == [{"id": i, "name": f"class {i}"} for i in range(3)]
    assert {result["category_id"] for result in results} <= {0, 1, 2}


def test_a_video_is_looked_at_frame_by_frame_and_drawn(model: Path, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed: pip install 'vfmdistill[video]'")
    with VideoWriter(folder / "clip.mp4", Fraction(10)) as writer:
        for number in range(5):
            writer.write(Frame(torch.full((3, 48, 64), 50 * number, dtype=torch.uint8), number / 10))
    output = tmp_path / "out"
    assert main("--model", model, "--output", output, "--threshold", 0.1, "--batch-size", 3, folder) == 0
    results, images = read(output)
    clip = [image for image in images["images"] if image["file_name"].endswith("clip.mp4")]
    assert [(image["id"], image["frame"], image["seconds"]) for image in clip] == [
        (4, 0, 0.0), (5, 1, 0.1), (6, 2, 0.2), (7, 3, 0.3), (8, 4, 0.4)
    ]  # fmt: skip
    assert {result["image_id"] for result in results} >= {4, 8}
    assert sorted(path.name for path in (output / "drawn").iterdir())[3:] == ["000004_clip.mp4"]
    frames = list(read_video(output / "drawn" / "000004_clip.mp4"))
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=1e-4)
    # Something coloured was drawn on the grey frames.
    assert (frames[4].pixels.float().amax(0) - frames[4].pixels.float().amin(0)).max() > 60


def test_what_cannot_be_read_is_named_at_the_end_and_does_not_stop_the_rest(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / "b.png").write_text("broken")
    (folder / "clip.mp4").write_text("broken")
    words = [sys.executable, EXAMPLE, "--model", model, "--output", tmp_path / "out", "--no-draw", folder]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "2 of 5 files could not be read:\n" in done.stderr
    assert f"image {folder / 'b.png'} cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
    assert "in 3 pictures" in done.stdout
    assert len(read(tmp_path / "out")[1]["images"]) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "rinc"], "unknown class 'rinc'; nearest: ring"),
        (["nowhere.png"], "there is no file or folder nowhere.png"),
        (["--threshold", "50"], "--threshold: Input should be less than or equal to 1"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
        (["--model", "nowhere"], "there is no folder nowhere; expected"),
    ],
)
def test_wrong_input_is_said_before_anything_is_written(
    words: list[str], message: str, model: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises((InputError, UnknownNameError), match=message):
        main("--model", model, "--output", tmp_path / "out", folder, *words)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_and_older_detections_are_errors(model: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no image and no video; known endings: \.avi"):
        main("--model", model, "--output", tmp_path / "out", tmp_path / "empty")
    main("--model", model, "--output", tmp_path / "out", folder)
    with pytest.raises(InputError, match="holds detections already: name another --output"):
        main("--model", model, "--output", tmp_path / "out", folder)


def test_errors_and_help_on_the_command_line(tmp_path: Path) -> None:
    words = [sys.executable, str(EXAMPLE), "--model", "nowhere", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
