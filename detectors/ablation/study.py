"""AblationStudy: the runs of an ablation as an Optuna study, each done exactly once by whoever takes it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import GridSampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from vfmdistill.errors import DistillError, InputError

from .arms import Arm
from .plan import check_same_plan
from .record import AblationRecord, Missing, TrialRecord
from .storage import PatientStorage, Turn

Point: TypeAlias = tuple[str, int]
"""Name of an arm, and seed."""

_LARGEST_SEED = 2**31 - 1
_TAKEN = "taken"
_LIVE = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)


class RunFailed(DistillError):  # noqa: N818 - as Optuna's TrialPruned
    """A run ended with an error; the message says which. It is done again only if that is asked for."""


class RunInterrupted(DistillError):  # noqa: N818 - the run did as it was told
    """A run was stopped and will be gone on with."""


class Task(NamedTuple):
    """A run that was taken: say how it goes on with `trial`."""

    arm: Arm
    seed: int
    trial: Trial


class AblationStudy:
    """All runs of an ablation: those that are done, are worked on, and wait.

    Runs come in the order of the seeds, every arm of one before the next, so that whatever is done can be compared.
    A run whose worker died waits again. Values of the study's trials are AP.

    Args:
        storage: of the study.
        name: of the study in it.
        arms: in the order of the report.
        recipe: that all arms share, JSON-able.
        seeds: of the runs of every arm.
        join: go on with the study if there is one; False: there must be none.
        command: what starts it, for the report.
        notes: sentences for the report; given anew, they replace those that the study has.

    Raises:
        InputError: there is such a study and `join` is False, or it has other arms or another recipe.
    """

    def __init__(
        self,
        storage: PatientStorage,
        name: str,
        arms: Sequence[Arm],
        recipe: Mapping[str, Any],
        seeds: Sequence[int],
        *,
        join: bool,
        command: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self.arms = {arm.name: arm for arm in arms}
        self.name = name
        self._storage = storage
        self._choices: dict[str, BaseDistribution] = {
            "arm": CategoricalDistribution(list(self.arms)),
            "seed": IntDistribution(0, _LARGEST_SEED),
        }
        plan = {
            "arms": [arm.model_dump(mode="json") for arm in arms],
            "recipe": dict(recipe),
            "command": command,
            "notes": list(notes),
        }
        with Turn(storage.engine.url, name):
            if not join and name in optuna.get_all_study_names(storage):
                raise InputError(
                    f"the storage holds a study {name!r} already: go on with it by --resume, or name another --study "
                    "and --output."
                )
            self._study = optuna.create_study(
                study_name=name, storage=storage, direction="maximize", load_if_exists=True
            )
            known = self._study.user_attrs.get("plan")
            if known is None:
                self._study.set_user_attr("plan", plan)
            else:
                check_same_plan(plan, known, name)
                planned = set(self._study.user_attrs.get("seeds", []))  # none where whoever began it died at once
                more = {"command": command} if set(seeds) > planned else {}
                if notes or more:
                    self._study.set_user_attr("plan", known | more | ({"notes": list(notes)} if notes else {}))
            self._study.set_user_attr("seeds", sorted({*seeds, *self._study.user_attrs.get("seeds", [])}))
            self._queue(again=True)

    @property
    def seeds(self) -> list[int]:
        """Of the runs of every arm; other workers may have added some."""
        seeds: list[int] = self._study.user_attrs["seeds"]
        return seeds

    @property
    def points(self) -> list[Point]:
        """All runs that are asked for, in the order in which they are done."""
        return [(name, seed) for seed in self.seeds for name in self.arms]

    def trials(self) -> dict[Point, FrozenTrial]:
        """Return the trial of every run: the finished one, else the one that lives, else the latest that failed."""
        return _latest(self._study.get_trials(deepcopy=False))

    def take(self, work: Callable[[Task], TrialRecord]) -> Literal["done", "failed", "busy", "over"]:
        """Take the next run that waits, and do it.

        Args:
            work: does the run and returns its record. `RunInterrupted` makes the run wait again; anything else that it
                raises is noted as the reason why there is none.

        Returns:
            "done" or "failed": what came of the run. Without one: "busy" where others still work, one of which may
            die, else "over".
        """
        outcome: Literal["done", "failed", "busy", "over"] = "failed"
        turn = Turn(self._storage.engine.url, self.name)
        taken: int | None = None

        def objective(trial: Trial) -> float:
            nonlocal outcome, taken
            taken = trial._trial_id
            arm = trial.suggest_categorical("arm", list(self.arms))
            seed = trial.suggest_int("seed", 0, _LARGEST_SEED)
            # Optuna never takes a run for dead that has not given a sign of life yet.
            self._storage.record_heartbeat(trial._trial_id)
            trial.set_user_attr(_TAKEN, True)
            turn.release()  # the run is ours
            try:
                record = work(Task(self.arms[arm], seed, trial))
            except RunInterrupted:
                raise
            except Exception as error:
                trial.set_user_attr("error", f"{type(error).__name__}: {error}")
                raise
            trial.set_user_attr("record", record.model_dump(mode="json"))
            outcome = "done"
            return record.figures["AP"]

        with turn:
            self._queue()
            states = {trial.state for trial in self._study.get_trials(deepcopy=False)}
            if TrialState.WAITING not in states:
                return "busy" if TrialState.RUNNING in states else "over"
            try:
                # Optuna takes the run, shows that it is alive, and notes how it ended.
                self._study.optimize(objective, n_trials=1, catch=(Exception,))
            except (ValueError, RuntimeError):
                if taken is None or self._storage.get_trial(taken).state != TrialState.FAIL:
                    raise
                return "failed"  # others took the run for dead, and its end cannot be noted any more
        return outcome

    def record(self) -> AblationRecord:
        """Return what there is of the ablation."""
        records, missing = [], []
        trials = self.trials()
        for point in self.points:
            trial = trials.get(point)
            if trial is not None and trial.state == TrialState.COMPLETE:
                records.append(TrialRecord.model_validate(trial.user_attrs["record"]))
            else:
                missing.append(Missing(arm=point[0], seed=point[1], reason=_reason(trial)))
        plan = self._study.user_attrs["plan"]
        return AblationRecord(name=self.name, records=records, missing=missing, **plan)

    def _queue(self, *, again: bool = False) -> None:
        """Let every run wait that is not done, worked on or waiting; those that failed only where asked for `again`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        for running in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _TAKEN not in running.user_attrs:  # whoever was about to take it died: it is our turn
                self._storage.set_trial_state_values(running._trial_id, TrialState.FAIL)
        trials = self.trials()
        points = self.points
        self._study.sampler = GridSampler({"arm": list(self.arms), "seed": self.seeds})
        for point in points:
            trial = trials.get(point)
            if trial is not None and (trial.state in _LIVE or ("error" in trial.user_attrs and not again)):
                continue
            parameters = {"arm": point[0], "seed": point[1]}
            self._study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    system_attrs={"fixed_params": parameters, **self._place(parameters)},
                )
            )

    def _place(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the grid sampler notes of a trial: where in its grid it stands."""
        sampler = self._study.sampler
        space: dict[str, list[Any]] = {"arm": list(self.arms), "seed": self.seeds}
        for number in range(len(space["arm"]) * len(space["seed"])):
            place = {"grid_id": number, "search_space": space}
            probe = create_trial(state=TrialState.WAITING, system_attrs=place)
            if all(
                sampler.sample_independent(self._study, probe, name, self._choices[name]) == value
                for name, value in parameters.items()
            ):
                return place
        raise DistillError(f"{parameters} is not in the grid {space}")


def _latest(trials: Iterable[FrozenTrial]) -> dict[Point, FrozenTrial]:
    found: dict[Point, FrozenTrial] = {}
    for trial in trials:
        parameters = trial.system_attrs["fixed_params"]
        point = (parameters["arm"], parameters["seed"])
        if point not in found or _rank(trial) >= _rank(found[point]):
            found[point] = trial
    return found


def _rank(trial: FrozenTrial) -> int:
    return 2 if trial.state == TrialState.COMPLETE else int(trial.state in _LIVE)


def _reason(trial: FrozenTrial | None) -> str:
    if trial is None or trial.state == TrialState.WAITING:
        return "waiting"
    host = trial.user_attrs.get("host", "an unknown machine")
    if trial.state == TrialState.RUNNING:
        return f"running on {host}"
    return str(trial.user_attrs.get("error", f"stopped on {host}"))
