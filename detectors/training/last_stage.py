"""LastStage: the plain epochs at the end, which begin with the best weights so far and return to them.

The rule of D-FINE (arXiv 2410.13842) that DEIM and RT-DETRv4 kept: at the start of the last stage the best checkpoint
is loaded and the average's decay begins anew; after an epoch that does not improve it is loaded again, the decay is
lowered a little, and the next epoch has nothing to beat. (Their averages take the decay once, when they are made, so in
their runs the new ones had no effect: `ema_restart_decay` None does what ran.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import snapshot

if TYPE_CHECKING:
    from .trainer import Trainer

LOWERED_BY = 1e-4  # the average's decay, at every return


class LastStage:
    """Follows the evaluations of a run and says when to go back to the best weights of the stages before the last.

    Attributes:
        best_epoch: the best epoch before the last stage, −1 without one.
    """

    def __init__(self) -> None:
        self.best_epoch = -1
        self._to_beat = -1.0

    def begin(self, trainer: Trainer) -> None:
        """Start the last stage."""
        recipe = trainer.recipe
        if trainer.distiller is not None:
            trainer.distiller.finish_adapting()
        if not recipe.reload_best:
            return
        if not snapshot.restart(trainer):
            trainer.monitor.say("last stage: no epoch was evaluated before it, so the weights stay as they are")
            return
        if recipe.ema_restart_decay is not None:
            trainer.average.decay = recipe.ema_restart_decay
        trainer.monitor.say(
            f"last stage: going on from the best epoch so far, {self.best_epoch}, averaging with decay "
            f"{trainer.average.decay:g}"
        )

    def judge(self, trainer: Trainer, epoch: int, precision: float) -> None:
        """Take note of an epoch's AP; in the last stage, go back to the best weights if it did not improve."""
        if precision > self._to_beat:
            self._to_beat = precision
            if not trainer.in_last_stage:
                self.best_epoch = epoch
        elif trainer.in_last_stage and trainer.recipe.reload_best and epoch + 1 < trainer.recipe.epochs:
            self._to_beat = -1.0
            if snapshot.restart(trainer):
                if trainer.recipe.ema_restart_decay is not None:
                    trainer.average.decay -= LOWERED_BY
                trainer.monitor.say(
                    f"epoch {epoch} did not improve: back to epoch {self.best_epoch}, averaging with decay "
                    f"{trainer.average.decay:g}"
                )

    def state(self) -> dict[str, Any]:
        """Return the state as JSON-able values."""
        return {"best_epoch": self.best_epoch, "to_beat": self._to_beat}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.best_epoch, self._to_beat = state["best_epoch"], state["to_beat"]
