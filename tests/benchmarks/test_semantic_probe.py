from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from support.tiny_run import register_tiny_teacher, tiny_recipe

import detectors
from detectors.ablation import probe
from detectors.ablation.probe_record import ProbeRecord
from detectors.data import write_toy_dataset
from detectors.training import assemble
from vfmdistill.errors import DistillError, InputError

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "semantic_probe.py"


def main(*words: object) -> list[ProbeRecord]:
    records: list[ProbeRecord] = runpy.run_path(str(BENCHMARK))["main"]([str(word) for word in words])
    return records


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let strong L2 alone be tried: weak ones take by far the most time, and change nothing of what is tested here."""
    monkeypatch.setattr(probe, "STRENGTHS", (1.0, 0.1))


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms with two seeds, each trained for two steps."""
    register_tiny_teacher()
    folder = tmp_path_factory.mktemp("probe")
    data = write_toy_dataset(folder / "data", train_images=8, val_images=5, image_size=64)
    for arm, teacher in (("off", None), ("gam", "tiny")):
        for seed in range(2):
            output = folder / "runs" / arm / f"seed_{seed}"
            recipe = tiny_recipe(
                data, output, teacher=teacher, seed=seed, model="deim_n", epochs=1, plain_epochs=0, check_data=False
            )
            with assemble(recipe) as trainer:
                trainer.fit()
    return folder


def test_an_ablation_is_probed(
    ablation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "semantic_probe.py", "--ablation", "runs"])
    records = main("--ablation", ablation / "runs", "--device", "cpu", "--output", tmp_path / "out")
    assert [(record.arm, record.seed) for record in records] == [
        ("off", 0), ("off", 1), ("gam", 0), ("gam", 1), ("untrained", 0), ("untrained", 1), ("teacher tiny", None),
    ]  # fmt: skip
    objects = len(json.loads((ablation / "data" / "instances_val.json").read_text())["annotations"])
    for record in records:
        assert record.figures.objects == objects
        assert record.figures.grid == (2, 2)
        assert record.settings["data"] == str(ablation / "data")
        assert record.settings["input_size"] == [64, 64]
        assert record.environment["versions"]["torch"]
        assert set(record.alignment) == (set() if record.seed is None else {"tiny"})
    assert [record.recipe.get("teacher") for record in records[:5]] == [None, None, "tiny", "tiny", None]
    assert records[2].run == str(ablation / "runs" / "gam" / "seed_0")
    # Different networks give different figures.
    assert len({record.alignment["tiny"].debiased for record in records[:6]}) == 6

    lines = (tmp_path / "out" / "semantic_probe.jsonl").read_text(encoding="utf-8").splitlines()
    assert [ProbeRecord.model_validate_json(line) for line in lines] == records
    page = (tmp_path / "out" / "semantic_probe.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    for words in ("Classes right at the centres of objects", "Linear CKA to tiny", "minus off", "guessing gets"):
        assert words in page
        assert words in printed
    assert [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")] == [
        "| features of", "| off", "| gam", "| untrained", "| teacher tiny",
        "| features of", "| off", "| gam", "| untrained",
    ]  # fmt: skip
    assert "    python semantic_probe.py --ablation runs" in page

    # Runs named one by one are the same runs, and the figures can be had again, whoever they are compared with.
    arms = ("--arm", f"gam={records[3].run}", "--arm", f"off={records[0].run}")
    again = main(*arms, "--teachers", "none", "--device", "cpu", "--output", tmp_path / "again")
    assert [(record.arm, record.seed, record.alignment) for record in again] == [
        ("gam", 1, {}), ("off", 0, {}), ("untrained", 1, {}),
    ]  # fmt: skip
    assert [record.figures for record in again] == [records[number].figures for number in (3, 0, 5)]
    assert "CKA" not in (tmp_path / "again" / "semantic_probe.md").read_text(encoding="utf-8")


def test_runs_are_probed_on_other_data(ablation: Path, tmp_path: Path) -> None:
    data = write_toy_dataset(tmp_path / "other", train_images=6, val_images=3, image_size=64, seed=1)
    options = ("--data", data, "--input-size", "64,96", "--device", "cpu", "--output", tmp_path / "out")
    trained, untrained = main("--arm", f"off={ablation / 'runs' / 'off' / 'seed_0'}", *options)
    assert (trained.arm, untrained.arm) == ("off", "untrained")
    assert trained.alignment == {}  # it had no teacher, and none is named
    assert trained.figures.grid == (2, 3)
    assert trained.figures.objects == len(json.loads((data / "instances_val.json").read_text())["annotations"])
    assert trained.settings["data"] == str(data)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "either --ablation FOLDER or --arm NAME=FOLDER"),
        (("--ablation", "runs", "--arm", "off=runs/off"), "either --ablation FOLDER or --arm NAME=FOLDER"),
        (("--arm", "runs/off"), "--arm 'runs/off'; expected NAME=FOLDER"),
        (("--arm", "off=nowhere"), "nowhere holds neither a run"),
    ],
)
def test_what_the_command_line_lacks_is_said(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(*words)


def test_a_run_whose_weights_are_damaged_is_an_error(ablation: Path, tmp_path: Path) -> None:
    folder = tmp_path / "seed_0"
    model = detectors.from_pretrained(ablation / "runs" / "off" / "seed_0" / "pretrained")
    detectors.save_pretrained(model, folder / "pretrained")
    (folder / "run.json").write_text((ablation / "runs" / "off" / "seed_0" / "run.json").read_text())
    (folder / "pretrained" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DistillError, match="damaged"):
        main("--arm", f"off={folder}", "--device", "cpu", "--output", tmp_path / "out")
