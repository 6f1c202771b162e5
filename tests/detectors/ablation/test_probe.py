from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_detector import tiny_detector
from support.tiny_run import TinyTeacher
from torch import Tensor, nn

import vfmdistill
from detectors.ablation import probe as probe_module
from detectors.ablation.linear_probe import STRENGTHS
from detectors.ablation.probe import SemanticProbe, figures_of
from detectors.ablation.probe_features import Readout
from detectors.data import write_toy_dataset
from detectors.detector import Detector

CPU, SIZE = torch.device("cpu"), (64, 96)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_dataset(tmp_path_factory.mktemp("toy") / "data", train_images=9, val_images=6, image_size=64)


def readout(features: Tensor, labels: Tensor) -> Readout:
    return Readout(features, labels, torch.arange(len(labels)) // 2, torch.zeros(1, features.shape[1], 3, 4))


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Labels of three classes, and noise in which nothing says them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, (count,), generator=generator), torch.randn(count, 6, generator=generator)


def test_features_that_tell_the_class_are_found_and_shuffled_labels_are_not() -> None:
    (labels, noise), (wanted, other) = drawn(150, 0), drawn(90, 1)
    code = 4 * torch.eye(3, 6)
    figures = figures_of(readout(noise + code[labels], labels), readout(other + code[wanted], wanted), 3)
    assert figures.accuracy > 0.95
    assert figures.train_accuracy > 0.95
    assert figures.held_out > 0.95
    assert abs(figures.shuffled - figures.chance) < 0.1
    assert abs(figures.chance - 1 / 3) < 0.05
    assert (figures.train_objects, figures.objects) == (150, 90)
    assert (figures.grid, figures.channels) == ((3, 4), 6)


def test_noise_gets_no_more_than_chance() -> None:
    (labels, noise), (wanted, other) = drawn(300, 2), drawn(300, 3)
    figures = figures_of(readout(noise, labels), readout(other, wanted), 3)
    assert abs(figures.accuracy - figures.chance) < 0.08
    assert figures.strength in STRENGTHS


def test_an_extreme_strength_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, noise = drawn(60, 4)
    split = readout(noise, labels)
    for chosen, at_edge in ((10.0, True), (1e-6, True), (0.1, False)):
        monkeypatch.setattr(probe_module, "choose", lambda held_out, chosen=chosen: chosen)
        figures = figures_of(split, split, 3)
        assert (figures.strength, figures.at_edge) == (chosen, at_edge)


def test_validation_objects_do_not_choose_the_strength() -> None:
    (labels, noise), (wanted, other) = drawn(80, 5), drawn(40, 6)
    one = figures_of(readout(noise, labels), readout(other, wanted), 3)
    two = figures_of(readout(noise, labels), readout(other.flip(0), wanted.roll(1)), 3)
    assert (one.strength, one.held_out, one.train_accuracy) == (two.strength, two.held_out, two.train_accuracy)


class TapOf(nn.Module):
    """As a teacher: what a student has at its tap, doubled and turned to other channels."""

    def __init__(self, student: Detector) -> None:
        super().__init__()
        self.student = student
        found: list[Tensor] = []
        student.encoder.get_submodule("aifi").register_forward_hook(lambda *arguments: found.append(arguments[-1]))
        self.found = found

    def forward(self, images: Tensor) -> Tensor:
        self.student(images)
        return 2 * self.found.pop().flip(1)


@pytest.mark.parametrize("in_memory", [True, False])
def test_students_are_compared_with_teachers(toy: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool) -> None:
    monkeypatch.setattr(probe_module, "STRENGTHS", (1.0, 0.1))  # weak L2 takes by far the most time
    if not in_memory:
        monkeypatch.setattr(probe_module, "_MOST_BYTES", 0)
    own = vfmdistill.Teacher(TapOf(tiny_detector()))
    stranger = vfmdistill.Teacher(TinyTeacher())
    bench = SemanticProbe(
        toy, SIZE, teachers={"own": own, "stranger": stranger}, device=CPU, batch_size=4, most_images=5
    )
    figures, alignment = bench.student(tiny_detector())
    assert (alignment["own"].plain, alignment["own"].debiased) == pytest.approx((1, 1), abs=1e-4)
    assert alignment["own"].plain_floor < 0.999
    assert alignment["own"].debiased_floor < alignment["own"].debiased
    assert alignment["stranger"].plain < 0.999
    assert {entry.images for entry in alignment.values()} == {5}
    assert (figures.grid, figures.channels) == ((2, 3), 128)
    assert bench.class_names == tiny_detector().class_names

    # The same features up to scale and order: the same can be read in them.
    taught = bench.teacher("own", figures.grid)
    assert (taught.accuracy, taught.strength) == (figures.accuracy, figures.strength)
    assert bench.teacher("stranger", figures.grid).channels == 16
