from __future__ import annotations

import json
import runpy
import subprocess
import sys
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from safetensors import safe_open
from safetensors.torch import load_file
from support.students import Classifier
from support.tiny_run import register_tiny_teacher, tiny_recipe
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import detection, resnet

import vfmdistill
from detectors.data.toy import write_toy_dataset
from detectors.training import assemble
from vfmdistill.errors import DistillError, InputError, UnknownNameError, WeightsError

FILE = Path(__file__).parents[2] / "examples" / "pretrain_student.py"
EXAMPLE = runpy.run_path(str(FILE))
CLASSIFIER = ("--student", "support.students:Classifier", "--tap", "body")


def pretrain(images: Path, output: Path, *words: str) -> Path:
    path: Path = EXAMPLE["main"]([
        "--images", str(images), "--output", str(output), "--teacher", "tiny", "--input-size", "64",
        "--batch-size", "4", "--workers", "0", "--device", "cpu", *words,
    ])  # fmt: skip
    return path


def picture(path: Path, height: int, width: int, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name) + height)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    coarse.resize((width, height)).save(path, **options)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of several sizes and kinds in three folders, and two files that are none."""
    register_tiny_teacher()
    folder = tmp_path_factory.mktemp("photographs")
    for number, (height, width) in enumerate([(50, 90), (90, 50), (64, 64), (200, 130)]):
        picture(folder / f"{number}.png", height, width)
        picture(folder / "more" / "and more" / f"{number}.JPG", height, width)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture(folder / "turned" / "z.jpg", 60, 100, exif=exif)
    (folder / "._0.png").write_bytes(b"what another system leaves")
    (folder / "read.me").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    register_tiny_teacher()
    return write_toy_dataset(tmp_path_factory.mktemp("toy") / "data", train_images=8, val_images=2, image_size=64)


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_the_file_says_what_it_holds(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pretrain(
        photographs, tmp_path / "run", *CLASSIFIER, "--epochs", "12", "--log-every", "1", "--learning-rate", "0.01"
    )
    lines = metrics(tmp_path / "run")
    assert [(line["epoch"], line["step"]) for line in lines] == [(n // 2, n + 1) for n in range(24)]
    losses = [line["semantic_loss"] for line in lines]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    said = capsys.readouterr().out
    assert "tapped at body: 24 steps on 9 images" in said
    assert f"epoch 11  semantic loss {sum(losses[-2:]) / 2:.4f}" in said
    assert str(path) in said
    Classifier().load_state_dict(load_file(path))  # all of it, under the student's own keys
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    assert (about["student"], about["teacher"], about["taps"], about["steps"]) == (CLASSIFIER[1], "tiny", "body", "24")
    trained = json.loads(about["trained"])
    assert {name.partition(".")[0] for name in trained} == {"stem", "body"}
    assert {"stem.1.running_var", "body.1.num_batches_tracked"} <= set(trained)
    assert sorted(item.name for item in path.parent.iterdir()) == ["metrics.jsonl", "student.safetensors"]


def test_a_seed_decides_everything_and_steps_end_within_an_epoch(photographs: Path, tmp_path: Path) -> None:
    runs = {}
    for name, seed in (("one", "3"), ("again", "3"), ("other", "4")):
        path = pretrain(photographs, tmp_path / name, *CLASSIFIER, "--steps", "3", "--seed", seed)
        assert [(line["epoch"], line["step"]) for line in metrics(tmp_path / name)] == [(0, 2), (1, 3)]
        runs[name] = load_file(path)
    assert all(torch.equal(value, runs["again"][key]) for key, value in runs["one"].items())
    assert not torch.equal(runs["one"]["stem.0.weight"], runs["other"]["stem.0.weight"])


def test_it_is_a_plain_loop_with_a_fixed_weight(photographs: Path, tmp_path: Path) -> None:
    path = pretrain(photographs, tmp_path, *CLASSIFIER, "--steps", "3", "--seed", "3", "--learning-rate", "0.01")
    torch.manual_seed(3)
    student = Classifier()
    images = EXAMPLE["Photographs"](photographs, (64, 64), "unit")
    loader = DataLoader(images, 4, shuffle=True, drop_last=True)
    teacher = vfmdistill.Teacher("tiny")
    with vfmdistill.attach(student, teacher, tap="body", modulator=1.0) as distiller:
        optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()])
        rates = iter([0.01, 0.01, 0.005])  # a rise of one step, then half a cosine over two
        for batch in islice(chain.from_iterable(repeat(loader)), 3):
            optimizer.param_groups[0]["lr"] = next(rates)
            student(batch)
            optimizer.zero_grad()
            distiller.loss(batch).backward()
            optimizer.step()
    state = load_file(path)
    assert all(torch.equal(value, state[key]) for key, value in student.state_dict().items())


def test_a_detector_starts_from_its_pretrained_self(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pretrain(toy / "images", tmp_path / "pre", "--student", "deim_n", "--steps", "2")
    common = {"model": "deim_n", "teacher": None, "epochs": 1, "seed": 5}
    capsys.readouterr()
    # ImageNet weights would be fetched here, were it not for the file.
    with assemble(tiny_recipe(toy, tmp_path / "run", init=path, pretrained_backbone=True, **common)) as trainer:
        ours = trainer.model.state_dict()
        averaged = trainer.average.model.state_dict()
    said = capsys.readouterr().out
    assert f"starting from {path}:" in said
    assert "330 tensors filled: backbone (312), encoder (18)" in said
    assert "not given, which stay as they were drawn: encoder (216), decoder" in said
    assert "not trained there, being behind the tap or beside it: encoder (216), decoder" in said
    with assemble(tiny_recipe(toy, tmp_path / "twin", **common)) as trainer:
        drawn = trainer.model.state_dict()
    given = load_file(path)
    for key, value in ours.items():
        trained = key.startswith(("backbone.", "encoder.aifi.", "encoder.input_projections.1."))
        assert torch.equal(value, given[key] if trained else drawn[key]), key
        assert torch.equal(value, averaged[key]), key
    assert not torch.equal(given["encoder.aifi.layers.0.norm1.bias"], drawn["encoder.aifi.layers.0.norm1.bias"])
    assert given["backbone.stem.stem1.bn.num_batches_tracked"] == 2


def test_images_are_upright_and_in_the_range_that_is_asked_for(photographs: Path) -> None:
    unit, imagenet = (EXAMPLE["Photographs"](photographs, (32, 48), range_) for range_ in ("unit", "imagenet"))
    assert len(unit) == 9
    torch.manual_seed(0)
    plain = unit[0]
    torch.manual_seed(0)
    normalised = imagenet[0]
    assert plain.shape == (3, 32, 48)
    assert 0 <= plain.min() < plain.max() <= 1
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(normalised, (plain - mean[:, None, None]) / deviation[:, None, None])
    unit.cut = nn.Identity()
    assert unit[8].shape == (3, 100, 60)  # stored as 60 × 100, turned by EXIF


def test_the_rate_rises_and_follows_a_cosine_to_zero() -> None:
    rates = [EXAMPLE["rate"](step, 100) for step in range(101)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert rates[52:53] + rates[100:] == pytest.approx([0.5 + 0.5 * np.cos(np.pi * 47 / 95), 0.0])
    assert EXAMPLE["rate"](0, 1) == 1.0


def test_a_detector_of_torchvision_trains_without_objects() -> None:
    levels = {f"layer{number}": str(number) for number in range(1, 5)}
    body = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1])
    backbone = detection.backbone_utils.BackboneWithFPN(body, levels, [64, 128, 256, 512], 32)
    student = detection.FCOS(backbone, num_classes=3, min_size=64, max_size=64).train()
    seen: list[torch.Tensor] = []
    body.layer4.register_forward_hook(lambda module, args, output: seen.append(output))
    EXAMPLE["forward"](student, torch.rand(2, 3, 64, 64))
    assert [output.shape for output in seen] == [(2, 512, 2, 2)]


def test_a_loss_that_is_not_finite_ends_it(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DistillError, match=r"became nan within the 2 steps up to step 2; .* --learning-rate below 1e\+30"
    ):
        pretrain(photographs, tmp_path / "run", *CLASSIFIER, "--learning-rate", "1e30")
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--images", "nowhere"], InputError, "--images nowhere is no folder; expected one with .bmp"),
        (["--student", "timm:resnet_50"], UnknownNameError, "unknown timm model 'resnet_50'; nearest: "),
        (["--student", "deim"], UnknownNameError, "unknown detector 'deim'"),
        (["--student", "deim_n", "--input-size", "70"], InputError, "divisible by 32.*is --input-size"),
        (["--tap", "boby"], UnknownNameError, "nearest: body"),
        (["--teacher", "dinov2_vitb"], UnknownNameError, "unknown teacher 'dinov2_vitb'"),
        (["--teacher", "dinov2_vits14", "--teacher-weights", "no.pth"], WeightsError, "is --teacher-weights FILE"),
        (["--batch-size", "10"], InputError, "--batch-size 10 of 9 images"),
        (["--epochs", "0"], InputError, "--epochs: Input should be greater than 0"),
        (["--device", "cuda"], InputError, "PyTorch sees no GPU"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(
    words: list[str], error: type[Exception], message: str, photographs: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(error, match=message):
        pretrain(photographs, tmp_path / "run", *(() if "--student" in words else CLASSIFIER), *words)
    assert not (tmp_path / "run").exists()


def test_a_pretrained_student_is_not_overwritten(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="holds a pretrained student already: name another --output"):
        pretrain(photographs, tmp_path, *CLASSIFIER)


def test_a_damaged_image_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and then nothing")
    words = ("--images", "images", "--student", "timm:test_resnet", "--teacher", "efficientnet_lite0")
    words += ("--input-size", "64", "--batch-size", "1", "--workers", "1", "--device", "cpu")
    done = subprocess.run(
        [sys.executable, str(FILE), *words], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: image 'images/broken.jpg' cannot be read")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*/student.safetensors"))
