"""Pretrain any network on images without labels: a frozen foundation model is all that it learns from.

    python examples/pretrain_student.py --images photographs --student deim_n --teacher dinov2_vits14 --input-size 320
    python examples/pretrain_student.py --images photographs --student timm:resnet50 --input-range imagenet
    python examples/train_rtdetrv4.py --data cards --model deim_n --init runs/pretrain/student.safetensors

The semantic loss is the only loss, so its weight λ is 1 and stays there: what a modulator weighs it against is missing.
Nothing behind the tap is trained. The output folder receives

    student.safetensors   the student's state dict, anew after every epoch; its metadata name what was trained
    metrics.jsonl         the mean semantic loss of every few steps
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import vfmdistill
from detectors.command_line import parse_options, plain_console, track
from detectors.data.images import IMAGE_SUFFIXES
from detectors.training.student_weights import save_student_weights
from vfmdistill.errors import DistillError, InputError, WeightsError
from vfmdistill.images import read_image
from vfmdistill.student_specs import EXPECTED, build_student
from vfmdistill.teachers.catalog import IMAGENET_MEAN, IMAGENET_STD

RANGES = {"unit": ((0.0,) * 3, (1.0,) * 3), "imagenet": (IMAGENET_MEAN, IMAGENET_STD)}  # mean, deviation


def _square(value: Any) -> Any:
    """Take a lone number, also as the text of a command line, for the side of a square."""
    sides = value if isinstance(value, (list, tuple)) else [value]
    return (sides[0], sides[0]) if len(sides) == 1 else value


class Options(BaseModel):
    """The command line."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    images: Path = Field(description="folder of images of any size, looked through to its depths")
    student: str = Field(description=f"what is trained, from random weights: {EXPECTED}")
    teacher: str = Field("dinov2_vits14", description="name of the teacher, see `vfmdistill teachers`")
    teacher_weights: Path | None = Field(None, description="local file with the teacher's weights")
    tap: list[str] = Field([], description="modules of the student to align, by their paths; none: what attach takes")
    input_size: Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_square)] | None = Field(
        None, description="height,width of the images; one number for a square; None: the student's own"
    )
    input_range: Literal["unit", "imagenet"] = Field(
        "unit", description="what the student gets, now and later: RGB in [0, 1], or with ImageNet's mean and deviation"
    )
    epochs: PositiveInt = Field(50, description="passes over the images")
    steps: PositiveInt | None = Field(None, description="optimizer steps, in place of --epochs")
    batch_size: PositiveInt = Field(32, description="images in a step")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW's highest rate, after a rise over 5 % of the steps")
    seed: int = Field(0, ge=0, description="seed of weights, order and cuts of the images")
    workers: int = Field(2, ge=0, description="processes that read images")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="'auto' takes the GPU if there is one")
    log_every: PositiveInt = Field(20, description="steps between two reads of the loss from the device")
    output: Path = Field(Path("runs/pretrain"), description="folder that receives weights and losses")


class Photographs(Dataset[Tensor | InputError]):
    """Random cuts (3, H, W) of the images below a folder, upright, in the range that is asked for."""

    def __init__(self, folder: Path, size: tuple[int, int], input_range: str) -> None:
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        self.paths = [path for path in found if not path.name.startswith(".")]
        if not self.paths:
            kind = "holds no image" if folder.is_dir() else "is no folder"
            raise InputError(f"--images {folder} {kind}; expected one with {' '.join(sorted(IMAGE_SUFFIXES))} in it.")
        self.cut = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.3, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.3, 0.3, 0.3),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(*RANGES[input_range]),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | InputError:
        try:
            cut: Tensor = self.cut(read_image(self.paths[index]))
        except InputError as error:
            return error  # raised in a worker, it would come back as a page about the worker
        return cut


def together(cuts: list[Tensor | InputError]) -> Tensor | InputError:
    """Return a batch (N, 3, H, W), or what is wrong with an image of it."""
    faults = [cut for cut in cuts if isinstance(cut, InputError)]
    return faults[0] if faults else torch.stack([cut for cut in cuts if isinstance(cut, Tensor)])


def main(arguments: Sequence[str] | None = None) -> Path:
    """Pretrain as the command line asks; return the file with the student's weights."""
    options = parse_options(
        Options, arguments, program="pretrain_student.py", description="Pretrain any network on images without labels."
    )
    weights, log = options.output / "student.safetensors", options.output / "metrics.jsonl"
    if weights.exists() or log.exists():
        raise InputError(f"{options.output} holds a pretrained student already: name another --output.")
    device = find_device(options.device)
    torch.manual_seed(options.seed)
    student, own_size = build_student(options.student)
    size = options.input_size or own_size
    images = Photographs(options.images, size, options.input_range)
    if options.batch_size > len(images):
        raise InputError(f"--batch-size {options.batch_size} of {len(images)} images; expected no more than there are.")
    loader = DataLoader(
        images, options.batch_size, shuffle=True, drop_last=True, num_workers=options.workers, collate_fn=together
    )
    steps = options.steps or options.epochs * len(loader)
    console = plain_console()
    with attach(student.to(device).train(), options, size) as distiller:
        taps = ", ".join(tap.path for tap in distiller.taps)
        console.print(f"{options.student}, tapped at {taps}: {steps} steps on {len(images)} images", soft_wrap=True)
        optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()], lr=options.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
        for epoch, done in enumerate(range(0, steps, len(loader))):
            count = min(len(loader), steps - done)
            unread, losses = [], []
            for step, batch in enumerate(track(islice(loader, count), f"epoch {epoch}", console, count), done + 1):
                if isinstance(batch, InputError):
                    raise batch
                batch = batch.to(device)
                forward(student, batch)
                loss = distiller.loss(batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                unread.append(loss.detach())
                if step % options.log_every == 0 or step == done + count:
                    losses += record(log, unread, epoch, step, options.learning_rate)
                    unread = []
            about = {"student": options.student, "teacher": options.teacher, "taps": taps, "steps": str(step)}
            trained = save_student_weights(student, optimizer.state.keys(), weights, about)
            console.print(f"epoch {epoch}  semantic loss {sum(losses) / len(losses):.4f}")
    console.print(f"{len(trained)} of {len(student.state_dict())} tensors are trained: {weights}", soft_wrap=True)
    return weights


def find_device(name: str) -> torch.device:
    """Return the device that is asked for."""
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise InputError("--device cuda, but PyTorch sees no GPU; give --device cpu, or auto.")
    return torch.device("cuda" if found and name != "cpu" else "cpu")


def attach(student: nn.Module, options: Options, size: tuple[int, int]) -> vfmdistill.Distiller:
    """Put the teacher beside the student, with a fixed λ of 1."""
    try:
        teacher = vfmdistill.Teacher(options.teacher, weights=options.teacher_weights)
    except WeightsError as error:
        raise WeightsError(f"{error} Here, weights= is --teacher-weights FILE.") from error
    probe = torch.zeros(2, 3, *size, device=next(student.parameters()).device)
    try:
        return vfmdistill.attach(
            student, teacher, tap=options.tap or None, modulator=1.0, input_range=options.input_range, probe=probe
        )
    except InputError as error:
        raise InputError(f"{error} Here, tap= is --tap, and the size of probe= is --input-size.") from error


def forward(student: nn.Module, images: Tensor) -> None:
    """Run the student on a batch. torchvision's detectors, which ask for objects, are told that there is none."""
    if not type(student).__module__.startswith("torchvision.models.detection"):
        student(images)
        return
    shapes = {"boxes": (0, 4), "masks": (0, *images.shape[2:]), "keypoints": (0, 17, 3)}
    nothing = {key: images.new_zeros(shape) for key, shape in shapes.items()}
    student(
        list(images), [{**nothing, "labels": torch.zeros(0, dtype=torch.int64, device=images.device)}] * len(images)
    )


def rate(step: int, steps: int) -> float:
    """Return the factor on the learning rate: linear up over the first twentieth of the steps, then a cosine to 0."""
    rise = max(1, steps // 20)
    return (step + 1) / rise if step < rise else 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))


def record(log: Path, losses: Sequence[Tensor], epoch: int, step: int, learning_rate: float) -> list[float]:
    """Read the losses of the latest steps from the device, write down their mean, and return them."""
    values: list[float] = torch.stack(list(losses)).tolist()
    mean = sum(values) / len(values)
    if not math.isfinite(mean):
        raise DistillError(
            f"the semantic loss became {mean} within the {len(values)} steps up to step {step}; expected a finite one. "
            f"Begin anew with a --learning-rate below {learning_rate:g}."
        )
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch, "step": step, "semantic_loss": mean}) + "\n")
    except OSError as error:
        raise InputError(f"{log} cannot be written ({error}); give a place that can, with --output.") from error
    return values


if __name__ == "__main__":
    try:
        main()
    except DistillError as error:
        raise SystemExit(f"error: {error}") from None
