import json
import subprocess
import sys
from pathlib import Path

import pytest

from detectors.data.toy import write_toy_dataset

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_rtdetrv4.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(EXAMPLE), *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_dataset(tmp_path_factory.mktemp("toy") / "data", train_images=8, val_images=4, image_size=64)


def test_a_small_run_with_the_packaged_teacher_leaves_its_pictures(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = run(
        "--data", str(data), "--output", str(output), "--model", "rtdetrv4_n", "--teacher", "efficientnet_lite0",
        "--no-pretrained-backbone", "--input-size", "64,96", "--batch-size", "4", "--epochs", "2", "--workers", "0",
        "--num-queries", "10", "--rho", "auto", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("maps.png", "predictions.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
        assert str(output / name) in done.stdout
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert lines[1]["semantic_loss"] < lines[0]["semantic_loss"]
    assert f"AP {lines[-1]['AP']:.3f}" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "rtdetrv4_z"], "unknown model 'rtdetrv4_z'; nearest: rtdetrv4_"),
        (["--teacher", "dinov3_vitb14"], "unknown teacher 'dinov3_vitb14'; nearest: dinov3_vitb16"),
        (["--data", "nowhere"], "nowhere"),
        (["--input-size", "96,100"], "divisible by 32. The nearest sizes that work: 96 × 96 and 96 × 128"),
        (["--weights", "nowhere.pth"], "there is no file or folder nowhere.pth to start from"),
    ],
)
def test_wrong_input_is_one_clear_line(words: list[str], message: str, data: Path, tmp_path: Path) -> None:
    settings = [
        "--data",
        str(data),
        "--output",
        str(tmp_path / "run"),
        "--teacher",
        "efficientnet_lite0",
        "--batch-size",
        "4",
    ]
    done = run(*settings, *words)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_is_complete() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "--teacher-weights" in done.stdout
