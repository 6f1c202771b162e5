"""The last stage's returns to the best weights: when the authors' solver makes them (RT-DETRv4 commit df44122)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny_run import tiny_recipe

from detectors.training import Trainer, assemble, last_stage, snapshot
from detectors.training.last_stage import LastStage

EPOCHS, PLAIN_FROM = 8, 3


class Run:
    """As much of a trainer as the rule looks at; evaluated with one AP an epoch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, reload_best: bool = True) -> None:
        self.recipe = SimpleNamespace(reload_best=reload_best, ema_restart_decay=0.9998, epochs=EPOCHS)
        self.average = SimpleNamespace(decay=0.9999)
        self.monitor = SimpleNamespace(say=lambda text: None)
        self.distiller = SimpleNamespace(finish_adapting=lambda: self.events.append("λ rests"))
        self.in_last_stage = False
        self.rule, self.events = LastStage(), list[Any]()
        monkeypatch.setattr(snapshot, "restart", self._restart)

    def _restart(self, trainer: Any) -> bool:
        self.events.append(self.rule.best_epoch)
        return self.rule.best_epoch >= 0

    def epoch(self, epoch: int, precision: float | None) -> list[Any]:
        """Return what happened: the epochs gone back to, and the decay after it."""
        self.events.clear()
        self.in_last_stage = epoch >= PLAIN_FROM
        if epoch == PLAIN_FROM:
            self.rule.begin(self)  # type: ignore[arg-type]
        if precision is not None:
            self.rule.judge(self, epoch, precision)  # type: ignore[arg-type]
        return [*self.events, round(self.average.decay, 6)]


def test_when_it_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    assert [run.epoch(epoch, value) for epoch, value in enumerate((0.1, 0.3, 0.2))] == [[0.9999]] * 3
    assert run.epoch(3, 0.25) == ["λ rests", 1, 1, 0.9997]  # at its start, and as it does not beat 0.3
    assert run.epoch(4, 0.2) == [0.9997]  # nothing to beat after a return
    assert run.epoch(5, 0.2) == [1, 0.9996]  # as good is not better
    assert run.epoch(6, 0.4) == [0.9996]
    assert run.epoch(7, 0.1) == [0.9996]  # no use after the last epoch


def test_the_decay_can_stay_as_it_did_in_the_authors_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    run.recipe.ema_restart_decay = None
    for epoch, precision in enumerate((0.1, 0.3, 0.2)):
        run.epoch(epoch, precision)
    assert run.epoch(3, 0.25) == ["λ rests", 1, 1, 0.9999]


def test_its_state_goes_into_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    for epoch, precision in enumerate((0.1, 0.3, 0.2, 0.25)):
        run.epoch(epoch, precision)
    state, run.rule = run.rule.state(), LastStage()
    run.rule.load_state(state)
    assert run.epoch(4, 0.2) == [0.9997]
    assert run.epoch(5, 0.1) == [1, 0.9996]


def test_families_without_it_only_let_the_weight_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, reload_best=False)
    events = [run.epoch(epoch, value) for epoch, value in enumerate((0.3, 0.2, 0.1, 0.1, 0.05))]
    assert events == [[0.9999]] * 3 + [["λ rests", 0.9999], [0.9999]]


def test_without_an_evaluation_there_is_nothing_to_go_back_to(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    for epoch in range(3):
        run.epoch(epoch, None)
    assert run.epoch(3, None) == ["λ rests", -1, 0.9999]


def test_weights_average_and_optimizer_come_back(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precisions = iter((0.2, 0.1, 0.05, 0.3))
    evaluate, begin = Trainer.evaluate, LastStage.begin
    states: dict[Any, tuple[dict[str, torch.Tensor], int]] = {}

    def state(trainer: Trainer) -> dict[str, torch.Tensor]:
        tensors = snapshot._tensors(trainer)
        return {f"{part}/{name}": value.clone() for part, values in tensors.items() for name, value in values.items()}

    def evaluated(trainer: Trainer) -> dict[str, Any]:
        states[trainer.epoch] = (state(trainer), trainer.average.updates)
        return {**evaluate(trainer), "AP": next(precisions)}

    def begun(rule: LastStage, trainer: Trainer) -> None:
        begin(rule, trainer)
        states["begun"] = (state(trainer), trainer.average.updates)

    monkeypatch.setattr(Trainer, "evaluate", evaluated)
    monkeypatch.setattr(last_stage.LastStage, "begin", begun)
    with assemble(tiny_recipe(toy, tmp_path, epochs=4, plain_epochs=2)) as trainer:
        trainer.fit()
    first, restarted = states[0], states["begun"]
    assert first[1] == restarted[1]
    assert first[0].keys() == restarted[0].keys()
    assert [name for name, value in first[0].items() if not torch.equal(value, restarted[0][name])] == []
    assert any(not torch.equal(value, states[1][0][name]) for name, value in first[0].items())
    assert trainer.average.decay == pytest.approx(0.9999 - 1e-4)  # epoch 2 did not improve
    assert trainer.best == {"AP": 0.3, "epoch": 3}
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "best_0003",
        "epoch_0002",
        "epoch_0003",
    ]
