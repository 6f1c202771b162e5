from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_step import tiny_batch, tiny_step

from detectors.training.dry_run import DryRun, Heaviest, OutOfMemory, dry_run, heaviest_images, is_out_of_memory
from detectors.training.recipe import recipe_for

LARGEST = Heaviest((96, 96), 5)
GIB = 2**30


def full_state(step: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return everything that a dry run must leave as it was."""
    tensors = {f"model.{key}": value for key, value in step.model.state_dict().items()}
    tensors |= {f"gradient.{key}": p.grad for key, p in step.model.named_parameters() if p.grad is not None}
    tensors |= {f"injectors.{key}": value for key, value in step.distiller.injectors.state_dict().items()}
    tensors |= {f"modes.{key}": torch.tensor(part.training) for key, part in step.model.named_modules()}
    for number, state in enumerate(optimizer.state.values()):
        tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
    tensors["rng"] = torch.get_rng_state()
    return {key: value.clone() for key, value in tensors.items()}


def test_a_run_after_a_dry_run_is_the_run_without_it(tmp_path: Path) -> None:
    states, losses = [], []
    for tried in (False, True):
        _, step, optimizer = tiny_step(tmp_path)
        torch.manual_seed(3)
        if tried:
            result = dry_run(step, optimizer, images=2, heaviest=LARGEST)
            assert (result.images, result.heaviest, result.total_bytes) == (2, LARGEST, None)
            assert result.seconds > 0
        outcomes = [step([tiny_batch()], number) for number in range(2)]
        if tried:
            dry_run(step, optimizer, images=1, heaviest=LARGEST)
        losses.append([float(value) for outcome in outcomes for value in outcome.losses.values()])
        states.append(full_state(step, optimizer) | {"state": torch.tensor(step.distiller.weight)})  # type: ignore[union-attr]
        assert step.distiller is not None
        step.distiller.update()
    assert losses[0] == losses[1]
    assert states[0].keys() == states[1].keys()
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []


def test_gradients_that_were_there_and_the_mode_are_given_back(tmp_path: Path) -> None:
    _, step, optimizer = tiny_step(tmp_path)
    for parameter in step.model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    step.model.eval()
    before = full_state(step, optimizer)
    dry_run(step, optimizer, images=2, heaviest=LARGEST)
    after = full_state(step, optimizer)
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert not optimizer.state


def test_the_batch_is_what_was_asked_for_and_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, step, optimizer = tiny_step(tmp_path)
    seen: list[Any] = []
    step.network.register_forward_pre_hook(lambda module, args: seen.append((*args, module.training)))
    gradients: list[int] = []
    next(step.model.parameters()).register_hook(lambda gradient: gradients.append(gradient.numel()))
    dry_run(step, optimizer, images=3, heaviest=Heaviest((64, 96), 40))  # 40 objects, 10 queries
    ((images, targets, training),) = seen
    assert training
    assert images.shape == (3, 3, 64, 96)
    assert [target["boxes"].shape for target in targets] == [(40, 4)] * 3
    for target in targets:
        edges = torch.cat([target["boxes"][:, :2] - target["boxes"][:, 2:] / 2, target["boxes"][:, :2]], 1)
        assert edges.min() >= 0
        assert target["labels"].max() < step.model.num_classes
    assert len(gradients) == 1


def test_data_without_boxes_can_be_tried(tmp_path: Path) -> None:
    _, step, optimizer = tiny_step(tmp_path, teacher=None)
    assert dry_run(step, optimizer, images=2, heaviest=Heaviest((64, 64), 0)).heaviest.boxes == 0


@pytest.mark.parametrize(
    "failure",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nC++ stack"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["cuda", "cpu"],
)
def test_memory_that_runs_out_is_one_clear_error_and_leaves_everything_as_it_was(
    tmp_path: Path, failure: RuntimeError
) -> None:
    _, step, optimizer = tiny_step(tmp_path)
    before = full_state(step, optimizer)

    def fail(*_: Any) -> None:
        raise failure

    handle = step.model.decoder.register_forward_pre_hook(fail)
    with pytest.raises(OutOfMemory) as caught:
        dry_run(step, optimizer, images=16, heaviest=Heaviest((96, 96), 12))
    handle.remove()
    message = str(caught.value)
    assert message.startswith("16 images of 96 × 96 with 12 boxes each do not fit into the memory of cpu: ")
    assert str(failure).split("\n")[0] in message
    assert "stack" not in message
    for option in ("--batch-size", "--accumulate", "--precision", "--input-size"):
        assert option in message
    assert caught.value.__context__ is None  # which would hold the memory of the frames that failed
    after = full_state(step, optimizer)
    assert [key for key in before if not torch.equal(before[key], after[key])] == []


def test_other_errors_come_through(tmp_path: Path) -> None:
    _, step, optimizer = tiny_step(tmp_path)

    def fail(*_: Any) -> None:
        raise RuntimeError("shapes do not fit")

    step.model.decoder.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        dry_run(step, optimizer, images=1, heaviest=LARGEST)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_the_heaviest_images_of_the_published_run() -> None:
    counts = [3, 1, 9, 4, 9, 2, 2, 7, 1, 5]
    recipe = recipe_for("rtdetrv4_s")
    # 5/4 of 640; two mosaics of four images blended: all but the two ones
    assert heaviest_images(recipe, counts) == Heaviest((800, 800), sum(counts) - 2)
    assert heaviest_images(recipe_for("rtdetrv4_s", mixup=0.0), counts).boxes == 9 + 9 + 7 + 5
    assert heaviest_images(recipe_for("rtdetrv4_s", mosaic=0.0), counts).boxes == 9 + 9
    assert heaviest_images(recipe_for("rtdetrv4_s", augment=False), counts) == Heaviest((640, 640), 9)
    assert heaviest_images(recipe_for("dfine_l"), counts) == Heaviest((800, 800), 9)  # no dense stage
    assert heaviest_images(recipe_for("deim_n"), counts).size == (640, 640)  # one size
    assert heaviest_images(recipe_for("rtdetrv4_s", input_size=(384, 640)), counts).size == (480, 800)
    assert heaviest_images(recipe_for("deim_n", mosaic=0.0, mixup=0.0), []).boxes == 0


def test_a_result_in_words() -> None:
    large = DryRun(8, Heaviest((800, 800), 120), 2.31, 30 * GIB, 80 * GIB)
    assert str(large) == ("dry run of 8 images of 800 × 800 with 120 boxes each: 30.00 of 80.00 GiB of memory, 2.3 s")
    assert "1 image of 64 × 96 with 3 boxes each: memory grew by 0.50 GiB" in str(
        DryRun(1, Heaviest((64, 96), 3), 1.0, GIB // 2, None)
    )
    assert "memory cannot be measured here" in str(DryRun(1, Heaviest((64, 96), 3), 1.0, None, None))
