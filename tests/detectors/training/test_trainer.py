import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_run import STEPS, tiny_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import detectors
from detectors.pretrained import from_pretrained
from detectors.training import Interrupted, Trainer, assemble, load_checkpoint
from detectors.training.bad_steps import TooManyBadSteps
from detectors.training.ema import WeightAverage
from detectors.training.engine import Engine
from vfmdistill import GradientModulator
from vfmdistill.errors import InputError, UnknownNameError, WeightsError
from vfmdistill.suggestion import suggest_modulator


def test_a_run_leaves_metrics_curves_and_checkpoints_and_no_hooks(toy: Path, tmp_path: Path) -> None:
    with assemble(tiny_recipe(toy, tmp_path, keep_checkpoints=1)) as trainer:
        figures = trainer.fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1] == figures
    losses = {"loss", "loss_mal", "loss_bbox", "loss_giou", "loss_fgl", "loss_ddf", "semantic_loss"}
    modulation = {"weight", "share", "next_weight", "modulation"}
    assert {"epoch", "learning_rate", "AP", "AP50"} | losses | modulation <= lines[0].keys()
    assert trainer.step == 3 * STEPS
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert [name for name in kept if name.startswith("epoch")] == ["epoch_0002"]
    assert len(kept) == 2
    assert list((tmp_path / "tensorboard").glob("events*"))
    for model in (trainer.model, trainer.average.model):
        assert not any(module._forward_hooks for module in model.modules())
    state = json.loads((tmp_path / "checkpoints" / "epoch_0002" / "state.json").read_text())
    assert state["class_names"] == trainer.model.class_names
    assert state["recipe"]["model"] == "rtdetrv4_n"
    assert state["modulator"]["weight"] == trainer.distiller.weight  # type: ignore[union-attr]


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_shares_by_part_are_those_of_the_last_step_that_the_teacher_looked_at(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with assemble(tiny_recipe(toy, tmp_path, epochs=2, plain_epochs=0, teacher_every=2)) as trainer:
        gradients: list[dict[str, float]] = []
        clip = trainer.engine.clip

        def watched(*args: Any) -> torch.Tensor:
            norm = clip(*args)
            named = [*trainer.model.named_parameters(), *trainer.distiller.named_parameters()]  # type: ignore[union-attr]
            sums = dict.fromkeys((name.split(".")[0] for name, one in named if one.requires_grad), 0.0)
            for name, parameter in named:
                if parameter.grad is not None:
                    sums[name.split(".")[0]] += parameter.grad.abs().sum().item()
            gradients.append({part: 100 * total / sum(sums.values()) for part, total in sums.items()})
            return norm

        monkeypatch.setattr(trainer.engine, "clip", watched)
        trainer.fit()
    looked = [2, 4]  # of steps 0 to 5, every other one is: the last of each epoch
    for line, step in zip(lines_of(tmp_path), looked, strict=True):
        shares = {name.removeprefix("share/"): share for name, share in line.items() if name.startswith("share/")}
        assert shares == pytest.approx(gradients[step], rel=1e-4)
        assert shares.keys() == {"backbone", "encoder", "decoder", "injectors"}
        assert sum(shares.values()) == pytest.approx(100)
        assert shares["injectors"] > 0
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in curves.Scalars("epoch/share/encoder")] == [STEPS, 2 * STEPS]


def test_shares_by_part_survive_a_stop_after_the_last_step_of_an_epoch(toy: Path, tmp_path: Path) -> None:
    with assemble(tiny_recipe(toy, tmp_path / "whole", epochs=1)) as trainer:
        trainer.fit()
    with assemble(tiny_recipe(toy, tmp_path / "stopped", epochs=1)) as trainer:
        note = trainer._note

        def stop(*args: Any) -> None:
            note(*args)
            trainer._stop.received = signal.SIGTERM if trainer.step == STEPS else None

        trainer._note = stop  # type: ignore[method-assign]
        with pytest.raises(Interrupted):
            trainer.fit()
    assert not lines_of(tmp_path / "stopped")
    with assemble(tiny_recipe(toy, tmp_path / "stopped", epochs=1, resume=True)) as trainer:
        figures = trainer.fit()
    assert figures["share/backbone"] > 0
    assert lines_of(tmp_path / "stopped") == lines_of(tmp_path / "whole")


def test_a_calibration_is_said_once_and_the_next_run_can_go_by_the_log(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with assemble(tiny_recipe(toy, tmp_path, rho="auto", epochs=4, evaluate_every=4)) as trainer:
        trainer.fit()
        modulator = trainer.distiller.modulator  # type: ignore[union-attr]
    assert isinstance(modulator, GradientModulator)
    assert modulator.calibration is not None
    assert modulator.calibration.steps == len(modulator.calibration.shares) == 2 * STEPS
    said = capsys.readouterr().out
    assert said.count("calibrated over") == said.count(str(modulator.calibration)) == 1
    lines = lines_of(tmp_path)
    reasons = [line["modulation"] for line in lines]
    assert (*reasons[:2], reasons[3]) == ("calibrating", "calibrated", "final_phase")
    assert lines[1]["rho"] == modulator.rho == pytest.approx((lines[0]["share"] + lines[1]["share"]) / 2)
    suggested = suggest_modulator(tmp_path / "metrics.jsonl")
    held = [line for line in lines[:3] if line["next_weight"] == line["weight"]]
    assert suggested.rho == pytest.approx(np.median([line["share"] for line in held[len(held) // 2 :]]))
    assert suggested.default_weight == 20


def test_the_projector_is_in_the_checkpoint_but_not_in_the_model(toy: Path, tmp_path: Path) -> None:
    from detectors.training.checkpoint import read_checkpoint

    with assemble(tiny_recipe(toy, tmp_path, epochs=1, plain_epochs=0)) as trainer:
        keys = set(trainer.model.state_dict())
        trainer.fit()
    tensors, _ = read_checkpoint(tmp_path / "checkpoints" / "epoch_0000")
    assert tensors["model"].keys() == tensors["ema"].keys() == keys
    assert {tuple(tensor.shape) for tensor in tensors["injectors"].values()} == {(16, 128), (16,)}
    assert any("injectors" in key for key in tensors["optimizer"])


def test_the_averaged_detector_comes_back_from_its_checkpoint(toy: Path, tmp_path: Path) -> None:
    with assemble(tiny_recipe(toy, tmp_path, epochs=1, plain_epochs=0)) as trainer:
        trainer.fit()
    model = load_checkpoint(tmp_path / "checkpoints" / "epoch_0000")
    assert (model.class_names, model.category_ids) == (trainer.model.class_names, [3, 7, 11, 20, 42])
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = model(images), trainer.average.model(images)
    torch.testing.assert_close(ours, theirs)
    weights, averaged = model.state_dict(), trainer.average.model.state_dict()
    assert weights.keys() == averaged.keys()
    assert all(torch.equal(weights[key], averaged[key]) for key in averaged)
    with pytest.raises(InputError, match="not a complete checkpoint"):
        load_checkpoint(tmp_path / "checkpoints" / "epoch_0007")


def test_whatever_differs_from_the_models_row_is_in_the_checkpoint(toy: Path, tmp_path: Path) -> None:
    options = {"input_size": (64, 96), "num_queries": 7, "decoder_layers": 2, "box_noise": 0.4, "gamma": 2.0}
    with assemble(tiny_recipe(toy, tmp_path / "one")) as trainer:
        names, criterion, settings = trainer.model.class_names, trainer.criterion, trainer.recipe
        parts = trainer.train_loader.data, trainer.val_data
    changed = {"output": tmp_path / "two", "teacher": None, "epochs": 1}
    model = detectors.build("rtdetrv4_n", class_names=names, **options)
    rest = Engine(settings), model, criterion, *parts, WeightAverage(model)
    with pytest.raises(InputError, match="the model was built for images of 64 × 96, the recipe is for 64 × 64"):
        Trainer(settings.model_copy(update=changed), *rest)
    with Trainer(settings.model_copy(update={**changed, "input_size": (64, 96)}), *rest) as trainer:
        trainer.fit()
    for loaded in (
        load_checkpoint(tmp_path / "two" / "checkpoints" / "epoch_0000"),
        from_pretrained(tmp_path / "two" / "pretrained"),
    ):
        assert loaded.spec == model.spec
        assert {key: getattr(loaded.spec, key) for key in options} == options


def test_without_a_teacher_there_is_no_semantic_loss(toy: Path, tmp_path: Path) -> None:
    with assemble(tiny_recipe(toy, tmp_path, teacher="none", epochs=1, plain_epochs=0)) as trainer:
        figures = trainer.fit()
    assert not {"semantic_loss", "weight", "share"} & figures.keys()


def test_seed_decides_the_run_and_the_teacher_does_not_touch_the_students_start(toy: Path, tmp_path: Path) -> None:
    def start(name: str, **overrides: object) -> torch.Tensor:
        with assemble(tiny_recipe(toy, tmp_path / name, **overrides)) as trainer:
            return torch.cat([parameter.flatten() for parameter in trainer.model.parameters()])

    first = start("a")
    assert torch.equal(first, start("b", teacher="none"))
    assert not torch.equal(first, start("c", seed=1))


def test_workers_do_not_change_the_run(toy: Path, tmp_path: Path) -> None:
    results = []
    for workers in (0, 2):
        with assemble(tiny_recipe(toy, tmp_path / str(workers), workers=workers, epochs=2)) as trainer:
            results.append(trainer.fit())
    assert results[0] == results[1]


def test_a_step_that_is_not_finite_changes_nothing_but_the_count(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with assemble(tiny_recipe(toy, tmp_path, epochs=1, plain_epochs=0)) as trainer:
        criterion, step = trainer.criterion.forward, trainer.train_step
        seen = []

        def broken(*args: Any) -> dict[str, torch.Tensor]:
            losses = criterion(*args)
            return losses | ({"loss_giou": losses["loss_giou"] * torch.nan} if trainer.step == 1 else {})

        def watched(parts: Any, number: int, **options: Any) -> Any:
            before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
            outcome = step(parts, number, **options)
            after = trainer.model.state_dict()
            seen.append([key for key in before if not torch.equal(before[key], after[key])])
            return outcome

        monkeypatch.setattr(trainer.criterion, "forward", broken)
        monkeypatch.setattr(trainer, "train_step", watched)
        figures = trainer.fit()
    assert [bool(changed) for changed in seen] == [True, False, True]  # running statistics neither
    assert figures["bad_steps"] == 1
    assert trainer.average.updates == 2
    assert {path.name for path in (tmp_path / "bad_steps" / "rank_0").iterdir()} == {"step_00000002"}
    said = " ".join(capsys.readouterr().out.split())
    assert "step 2 is left out: 1 losses are not finite: loss_giou = nan." in said
    assert "python -m detectors.training.replay" in said


def test_nothing_but_bad_steps_end_the_run_and_name_the_images(toy: Path, tmp_path: Path) -> None:
    with assemble(tiny_recipe(toy, tmp_path, epochs=2, plain_epochs=0, max_bad_steps=2)) as trainer:
        with torch.no_grad():
            trainer.model.decoder.selection.box_head.layers[-1].bias.fill_(torch.nan)  # type: ignore[index, operator, union-attr]
        with pytest.raises(
            TooManyBadSteps,
            match=r"3 steps in a row were not finite, the last of them step 3: matching costs are not finite, of "
            r"outputs .*main.* in images 0 \(id \d+\), 1 \(id \d+\), .* of the batch.*"
            r"python -m detectors\.training\.replay .*step_00000003",
        ):
            trainer.fit()
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("model", ["rtdetrv4_n", "deim_rtdetrv2_r18"])
def test_a_batch_in_parts_is_the_batch(toy: Path, tmp_path: Path, model: str) -> None:
    """Four parts of two images and one of eight: weights to 1e-5, share to 1e-3 relative; norms frozen."""
    weights, shares = [], []
    for parts in (1, 4):
        recipe = tiny_recipe(
            toy, tmp_path / str(parts), model=model, batch_size=8, accumulate=parts, epochs=8, num_denoising=0,
            learning_rate=1e-4, backbone_learning_rate=1e-4, warmup_steps=0, evaluate_every=8, augment=False,
        )  # fmt: skip
        with assemble(recipe) as trainer:
            trainer.model.backbone.requires_grad_(True)
            freeze_norms(trainer.model)
            for group in trainer.optimizer.param_groups:
                group["eps"] = 1e-4  # by default a gradient that is all but zero takes a full step along its rounding
            trainer.fit()
        lines = [json.loads(line) for line in (tmp_path / str(parts) / "metrics.jsonl").read_text().splitlines()]
        shares.append([line["share"] for line in lines])
        weights.append(trainer.model.state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=0, atol=1e-5, msg=key)
    assert shares[1] == pytest.approx(shares[0], rel=1e-3)
    assert len(set(shares[0])) > 1


def freeze_norms(model: torch.nn.Module) -> None:
    """Let batch norms use their running statistics in training too."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module  # type: ignore[assignment,method-assign,misc]
            module.training = False


def test_batches_that_cannot_be_filled(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="13 training images do not fill one batch of 14; lower --batch-size"):
        assemble(tiny_recipe(toy, tmp_path, batch_size=14))


def test_boxes_that_are_left_out_are_counted(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to(toy / "images")
    for split in ("train", "val"):
        content = json.loads((toy / f"instances_{split}.json").read_text())
        content["annotations"][0]["bbox"][2] = 0
        (data / f"instances_{split}.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="--invalid-boxes drop"):
        assemble(tiny_recipe(data, tmp_path / "run"))
    with assemble(tiny_recipe(data, tmp_path / "run", invalid_boxes="drop")):
        assert capsys.readouterr().out.count(", 1 invalid ones left out, 5 classes") == 2


def test_what_is_not_there_is_said_before_the_first_step(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no data"):
        assemble(tiny_recipe(toy, tmp_path).model_copy(update={"data": None}))
    with pytest.raises(InputError, match="does not exist"):
        assemble(tiny_recipe(tmp_path / "nowhere", tmp_path))
    with pytest.raises(UnknownNameError, match="dinov2_vits14"):
        assemble(tiny_recipe(toy, tmp_path, teacher="dinov2_vit14s"))
    with pytest.raises(WeightsError, match=r"nowhere\.pth"):
        assemble(tiny_recipe(toy, tmp_path, teacher="dinov2_vits14", teacher_weights="nowhere.pth"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_an_accelerator_that_is_missing_is_not_replaced_by_the_cpu(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device 'cuda' was asked for"):
        assemble(tiny_recipe(toy, tmp_path, device="cuda"))
