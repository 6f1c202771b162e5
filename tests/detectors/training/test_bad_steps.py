import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_step import tiny_batch, tiny_step

from detectors.losses.finite import NonFiniteError
from detectors.training.bad_steps import KEPT, BadSteps, TooManyBadSteps, is_scale_search
from detectors.training.checkpoint import STATE, CheckpointError
from detectors.training.rng_state import RngState
from detectors.training.step_dump import StepDump
from vfmdistill.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def facts(tmp_path: Path) -> dict[str, Any]:
    """What a trainer knows of a bad step."""
    recipe, step, _ = tiny_step(tmp_path, teacher=None)
    torch.manual_seed(5)
    return {
        "epoch": 2,
        "batches": [tiny_batch(), tiny_batch(seed=1)],
        "losses": [{"loss_mal": 1 / 3, "loss_bbox": math.nan}, {"loss_mal": -math.inf}],
        "reason": "loss_bbox = nan.",
        "model": step.model,
        "rng": RngState.take(CPU),
        "recipe": recipe,
    }


def test_a_dump_holds_what_was_recorded(tmp_path: Path, facts: dict[str, Any]) -> None:
    counts = torch.tensor([7.0, 7.0, 7.0, math.inf])
    path = BadSteps(tmp_path, 3, rank=1).record(12, **facts, counts=counts)
    assert path == tmp_path / "bad_steps" / "rank_1" / "step_00000012"
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    json.loads((path / STATE).read_text(), parse_constant=pytest.fail)  # no NaN, which JSON does not know
    dump = StepDump.read(path)
    assert (dump.step, dump.epoch, dump.rank, dump.processes, dump.reason) == (12, 2, 1, 1, "loss_bbox = nan.")
    assert repr(dump.losses) == repr(facts["losses"])
    assert dump.counts == counts.tolist()
    assert dump.recipe == facts["recipe"]
    assert torch.equal(dump.rng.cpu, facts["rng"].cpu)
    assert (dump.injectors, dump.weight) == (None, None)
    for (images, targets), (images_before, targets_before) in zip(dump.batches, facts["batches"], strict=True):
        assert torch.equal(images, images_before)
        for target, before in zip(targets, targets_before, strict=True):
            assert target.keys() == before.keys()
            assert all(torch.equal(target[key], before[key]) for key in before)
    state = facts["model"].state_dict()
    assert dump.model.keys() == state.keys()
    assert all(torch.equal(dump.model[key], value) for key, value in state.items())


def test_targets_that_share_memory_or_hold_more_than_tensors_can_be_kept(tmp_path: Path, facts: dict[str, Any]) -> None:
    images, targets = tiny_batch(boxes=0)
    joint = torch.arange(8.0)
    targets[0] |= {"one": joint[:5], "other": joint[3:], "file": "a.png"}
    path = BadSteps(tmp_path, 3).record(1, **{**facts, "batches": [(images, targets)]})
    assert path is not None
    ((_, kept),) = StepDump.read(path).batches
    assert kept[0].keys() == {"labels", "boxes", "image_id", "one", "other"}
    assert kept[1]["boxes"].shape == (0, 4)
    assert torch.equal(kept[0]["other"], joint[3:])


def test_more_than_the_limit_in_a_row_end_the_run_with_the_command_that_replays_one(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    bad = BadSteps(tmp_path / "my run", 2)
    for step in (1, 2):
        bad.record(step, **facts)
    bad.good()
    for step in (4, 5):
        bad.record(step, **facts)
    with pytest.raises(TooManyBadSteps) as caught:
        bad.record(6, **facts)
    assert isinstance(caught.value, NonFiniteError)
    folder = tmp_path / "my run" / "bad_steps" / "rank_0"
    assert "3 steps in a row were not finite, the last of them step 6: loss_bbox = nan." in str(caught.value)
    assert f"python -m detectors.training.replay '{folder / 'step_00000006'}'" in str(caught.value)
    assert (bad.count, bad.in_a_row) == (5, 3)


def test_the_first_ones_are_kept_and_the_others_counted_also_over_a_resumption(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    bad = BadSteps(tmp_path, 100)
    written = [bad.record(step, **facts) for step in range(1, KEPT)]
    resumed = BadSteps(tmp_path, 100)
    resumed.load_state_dict(json.loads(json.dumps(bad.state_dict())))
    written += [resumed.record(step, **facts) for step in range(KEPT, KEPT + 3)]
    assert [path is not None for path in written] == [True] * KEPT + [False] * 2
    assert len(list((tmp_path / "bad_steps" / "rank_0").iterdir())) == KEPT
    assert (resumed.count, resumed.in_a_row) == (KEPT + 2, KEPT + 2)


def test_processes_count_alike_whoever_found_the_step_bad(tmp_path: Path, facts: dict[str, Any]) -> None:
    finder, other = BadSteps(tmp_path, 1, rank=0), BadSteps(tmp_path, 1, rank=1)
    finder.record(1, **facts)
    other.skip(1)
    assert finder.state_dict() == other.state_dict()
    with pytest.raises(TooManyBadSteps, match="rank_0/step_00000002"):
        finder.record(2, **facts)
    with pytest.raises(TooManyBadSteps, match=r"another process found it bad\. .* lies in .*bad_steps, one folder for"):
        other.skip(2)
    assert not (tmp_path / "bad_steps" / "rank_1").exists()


def test_a_disk_that_takes_no_dump_says_so_and_leaves_nothing_half_written(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    (tmp_path / "bad_steps").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write step 3 to .*step_00000003: .*"):
        BadSteps(tmp_path, 3).record(3, **facts)


def test_what_is_no_step_is_not_read(tmp_path: Path, facts: dict[str, Any]) -> None:
    path = BadSteps(tmp_path, 3).record(1, **facts)
    assert path is not None
    with pytest.raises(InputError, match="not a complete checkpoint"):
        StepDump.read(tmp_path)
    state = json.loads((path / STATE).read_text())
    for change, message in (
        ({"kind": None}, "is a checkpoint, no step; expected a folder of bad_steps/"),
        ({"losses": [{"loss_mal": "lots"}]}, "is damaged: ValueError"),
        ({"sizes": [1, 2]}, "is damaged: IndexError"),
        ({"recipe": {"model": "deim_n", "speed": 3}}, "of another version: speed: "),
    ):
        (path / STATE).write_text(json.dumps({**state, **change}))
        with pytest.raises(InputError, match=message):
            StepDump.read(path)
    shutil.rmtree(path)


def test_a_scaler_that_looks_for_its_scale_makes_no_bad_steps() -> None:
    assert is_scale_search(losses_finite=True, norm_finite=False, scale=65536.0)
    assert not is_scale_search(losses_finite=True, norm_finite=False, scale=1.0)  # no scale is to blame any more
    assert not is_scale_search(losses_finite=True, norm_finite=False, scale=None)
    assert not is_scale_search(losses_finite=False, norm_finite=False, scale=65536.0)
    assert not is_scale_search(losses_finite=True, norm_finite=True, scale=65536.0)
