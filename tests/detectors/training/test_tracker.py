import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType

from detectors.training.recipe import Recipe, recipe_for
from detectors.training.tracker import check_tracker, start_tracker, stop_tracker
from vfmdistill.errors import InputError


class Recorder(GeneralTracker):
    """Stands for a service: keeps what it is told."""

    name = "wandb"
    requires_logging_directory = False

    def __init__(self, project: str, **settings: Any) -> None:
        super().__init__()
        self.project, self.settings, self.ended = project, settings, False
        self.logged: list[tuple[dict[str, float], int | None]] = []

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.configuration = values

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.ended = True


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make wandb look installed, with a recorder in its place."""
    monkeypatch.setattr(metadata, "version", lambda name: "1.0")
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [LoggerType.WANDB])
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Recorder)


def tracked(folder: Path) -> Recipe:
    return recipe_for("rtdetrv4_n", output=folder / "cards", tracker="wandb")


@pytest.mark.usefixtures("installed")
def test_values_configuration_and_identity_reach_the_service_and_a_resumed_run_has_the_same(tmp_path: Path) -> None:
    identities = []
    for step in (5, 9):
        accelerator = Accelerator(cpu=True, log_with="wandb")
        log = start_tracker(accelerator, tracked(tmp_path))
        assert log is not None
        log({"train/loss": 1.5}, step)
        (recorder,) = accelerator.trackers
        assert recorder.logged == [({"train/loss": 1.5}, step)]
        assert recorder.project == "vfmdistill"
        assert recorder.configuration["model"] == "rtdetrv4_n"
        assert recorder.settings["name"] == "cards"
        assert recorder.settings["resume"] == "allow"
        identities.append(recorder.settings["id"])
        stop_tracker(accelerator)
        assert recorder.ended
        assert accelerator.trackers == []
    assert identities[0] == identities[1]
    assert json.loads((tmp_path / "cards" / "tracker.json").read_text()) == {"id": identities[0]}
    accelerator = Accelerator(cpu=True, log_with="wandb")
    start_tracker(accelerator, tracked(tmp_path / "other"))
    assert accelerator.trackers[0].settings["id"] != identities[0]


def test_a_missing_package_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(InputError, match=r"tracker 'wandb' .* is not installed: `pip install wandb`"):
        check_tracker("wandb")
    with pytest.raises(InputError, match="pip install wandb"):
        start_tracker(Accelerator(cpu=True), tracked(tmp_path))
    assert not (tmp_path / "cards").exists()


@pytest.mark.usefixtures("installed")
def test_an_accelerator_that_does_not_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"logs with \[\]; expected 'wandb'"):
        start_tracker(Accelerator(cpu=True), tracked(tmp_path))


def test_no_tracker_is_none(tmp_path: Path) -> None:
    check_tracker(None)
    assert start_tracker(Accelerator(cpu=True), recipe_for("rtdetrv4_n", output=tmp_path)) is None
    assert list(tmp_path.iterdir()) == []
