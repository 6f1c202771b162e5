"""The whole of an ablation on a few small images: planned, run, reported, gone on with after SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.page import Node, parse_page

from detectors.ablation.record import AblationRecord
from detectors.ablation.report import LINES, MARKDOWN, PAGE, read_record
from detectors.data.toy import write_toy_dataset

ROOT = Path(__file__).parents[2]


def words_for(data: Path, output: Path, *more: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "examples" / "ablate_teachers.py"),
        "--data", str(data), "--output", str(output), "--model", "rtdetrv4_n", "--teachers", "efficientnet_lite0",
        "--no-pretrained-backbone", "--input-size", "64", "--batch-size", "4", "--epochs", "1", "--num-queries", "10",
        "--num-denoising", "4", "--device", "cpu", "--seeds", "1", *more,
    ]  # fmt: skip


def run(data: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = words_for(data, output, *more)
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_dataset(tmp_path_factory.mktemp("toy") / "data", train_images=8, val_images=4, image_size=64)


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    output = tmp_path_factory.mktemp("ablation") / "out"
    return output, run(data, output, "--components", "off,fixed", "--note", "Far too short.")


def page(output: Path) -> Node:
    return parse_page((output / PAGE).read_text(encoding="utf-8"))


def finished(output: Path) -> dict[tuple[str, int], float | None]:
    record: AblationRecord = read_record(output / LINES)
    return {(each.arm, each.seed): each.epochs[-1].loss for each in record.records}


def test_all_runs_are_done_and_reported(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    output, process = done
    assert process.returncode == 0, process.stderr
    assert set(finished(output)) == {("off", 0), ("efficientnet_lite0+fixed", 0)}
    headline = next(page(output).all("p", "verdict")).text
    assert headline.startswith("No method shows a gain. The best is efficientnet_lite0+fixed. Too few seeds to say")
    assert headline in process.stdout
    assert f"report: {output / PAGE}" in process.stdout
    assert f"**{headline}**" in (output / MARKDOWN).read_text(encoding="utf-8")
    assert "Far too short." in page(output).section("Settings").text
    assert "--note 'Far too short.'" in page(output).section("Do it again").text


def test_the_page_shows_features_of_the_teacher_and_of_both_students(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    section = page(done[0]).section("Pictures")
    assert next(section.all("h3")).text == "Features"
    shown = "image, teacher efficientnet_lite0, off, efficientnet_lite0+fixed"
    assert shown in next(section.all("p", "note")).text
    assert all(node.attributes["src"].startswith("data:image/jpeg;base64,/9j/") for node in section.all("img"))


def test_what_is_done_is_not_done_again_and_more_seeds_are_added(
    done: tuple[Path, subprocess.CompletedProcess[str]], data: Path
) -> None:
    output, _ = done
    before = finished(output)
    refused = run(data, output, "--components", "off,fixed")
    assert refused.returncode == 1
    assert "go on with it by --resume, or name another --study" in refused.stderr
    process = run(data, output, "--components", "off,fixed", "--resume", "--seeds", "2", "--workers", "2")
    assert process.returncode == 0, process.stderr
    after = finished(output)
    assert set(after) == {*before, ("off", 1), ("efficientnet_lite0+fixed", 1)}
    assert {key: after[key] for key in before} == before
    assert "seed 0: begins" not in process.stdout


def test_a_plan_does_nothing(data: Path, tmp_path: Path) -> None:
    process = run(data, tmp_path / "out", "--controls", "shuffled:efficientnet_lite0", "--dry-run", "--seeds", "3")
    assert process.returncode == 0, process.stderr
    for arm in ("off", "efficientnet_lite0+fixed", "efficientnet_lite0+gam", "shuffled:efficientnet_lite0+gam"):
        assert arm in process.stdout.replace("\n", " ")
    assert "4 arms × 3 seeds = 12 runs: " in process.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--reference", "nosuch"), "there is no arm 'nosuch' with a teacher; expected one of efficientnet_lite0+"),
        (("--teachers", "efficientnet_lite9"), "unknown teacher 'efficientnet_lite9'"),
        (("--vary", "rho=auto,fixed"), "vary rho: 'fixed' is a component"),
        (("--storage", "study.db"), "--storage is no URL"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_trained(
    words: tuple[str, ...], message: str, data: Path, tmp_path: Path
) -> None:
    process = run(data, tmp_path / "out", *words)
    assert process.returncode == 1
    assert process.stderr.startswith("error: ")
    assert message in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert not list((tmp_path / "out").glob("*/seed_*"))


def test_arms_that_fail_are_named_and_the_others_reported(data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"no weights")
    process = run(
        data, tmp_path / "out", "--components", "off,fixed", "--teacher-weights", f"efficientnet_lite0={weights}"
    )
    assert process.returncode == 1
    assert "missing: efficientnet_lite0+fixed, seed 0" in process.stdout
    assert str(weights) in process.stdout
    assert set(finished(tmp_path / "out")) == {("off", 0)}
    assert page(tmp_path / "out").section("Missing runs").rows()[0][:2] == ["efficientnet_lite0+fixed", "0"]


@pytest.mark.slow
def test_two_workers_take_up_what_was_killed_and_every_run_is_done_once(data: Path, tmp_path: Path) -> None:
    settings = ("--components", "off,fixed", "--seeds", "3", "--epochs", "3", "--heartbeat", "2")
    whole = tmp_path / "whole"
    assert run(data, whole, *settings).returncode == 0
    output = tmp_path / "out"
    killed = subprocess.Popen(
        words_for(data, output, *settings), env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    while not (output / "off" / "seed_0" / "checkpoints").is_dir():
        assert killed.poll() is None
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    both = [
        subprocess.Popen(words_for(data, output, *settings, "--resume"), env=environment(), stdout=subprocess.PIPE,
                         text=True)
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert finished(output) == finished(whole)
    begun = [line.partition(" in ")[0] for text in said for line in text.splitlines() if f" in {output}" in line]
    assert sorted(begun) == sorted(
        f"{arm}, seed {seed}: {'going on' if (arm, seed) == ('off', 0) else 'begins'}"
        for arm in ("off", "efficientnet_lite0+fixed")
        for seed in range(3)
    )
