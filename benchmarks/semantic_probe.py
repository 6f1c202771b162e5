"""Does the semantics arrive? What a linear classifier reads at the tap of trained students, and their CKA to a teacher.

    python benchmarks/semantic_probe.py --ablation runs/ablation
    python benchmarks/semantic_probe.py --arm off=runs/off --arm gam=runs/gam/seed_0 --teachers efficientnet_lite0

Students are the detectors that a run leaves, with the weights of its best epoch, frozen. Each image of the training set
is looked at once, without augmentation; a multinomial logistic regression learns the class of every object from the
tapped map at its centre, with L2 chosen by cross-validation over training images, and is judged on the validation
objects. CKA compares that map with the teacher's, cell by cell. Arms
are compared with the first one, paired by seed. Beside them stand the student before training, the teacher's own map,
classifiers of shuffled labels, and CKA to the teacher's maps of other images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from detectors.ablation.linear_probe import FOLDS, STRENGTHS, TOLERANCE
from detectors.ablation.probe import PERMUTATIONS, SemanticProbe
from detectors.ablation.probe_record import ProbeRecord
from detectors.ablation.probe_runs import ProbedRun, check_seeds, common, runs_of, runs_of_ablation
from detectors.ablation.probe_table import notes_of, sheets_of
from detectors.ablation.probe_teachers import named_teachers, teachers_of
from detectors.ablation.untrained import untrained_like
from detectors.command_line import parse_options, plain_console, track
from detectors.input_size import InputSize
from detectors.predictor import check_device
from detectors.training import environment
from vfmdistill.errors import DistillError, InputError

LINES, PAGE = "semantic_probe.jsonl", "semantic_probe.md"


class Options(BaseModel):
    """The command line."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    ablation: Path | None = Field(None, description="output folder of an ablation, ARM/seed_N; those without a teacher "
                                  "come first")  # fmt: skip
    arm: list[str] = Field([], description="NAME=FOLDER: a run, or runs in folders seed_N; the first is compared with")
    teachers: list[str] = Field([], description="to compare maps with; none named: those of the runs; 'none': no CKA")
    teacher_weights: list[str] = Field([], description="TEACHER=FILE: local weights")
    data: Path | None = Field(None, description="folder of a data set; None: the one that the runs were trained on")
    input_size: InputSize | None = Field(None, description="height,width of the images; None: as the runs were trained")
    tap: str | None = Field(None, description="path of the module that is read in all students; None: AIFI")
    output: Path = Field(Path("runs/semantic_probe"), description=f"folder that receives {LINES} and {PAGE}")
    most_images: int = Field(300, ge=2, description="validation images whose cells CKA compares")
    batch_size: int = Field(16, ge=1, description="images that are looked at together")
    workers: int = Field(0, ge=0, description="processes that read images")
    device: str = Field("auto", description="'cpu', 'cuda', 'cuda:1' …; 'auto' takes the GPU if there is one")

    def runs(self) -> list[ProbedRun]:
        """Return the runs, those of the first arm first."""
        if (self.ablation is None) == (not self.arm):
            raise InputError("expected either --ablation FOLDER or --arm NAME=FOLDER, once for every arm.")
        runs = [] if self.ablation is None else runs_of_ablation(self.ablation)
        for text in self.arm:
            name, _, folder = text.partition("=")
            if not name or not folder:
                raise InputError(f"--arm {text!r}; expected NAME=FOLDER.")
            runs += runs_of(name, Path(folder))
        check_seeds(runs)
        return runs


def main(arguments: Sequence[str] | None = None) -> list[ProbeRecord]:
    """Do what the command line asks for; return what the file of lines receives."""
    description = "Probe what trained students hold at their tap."
    options = parse_options(Options, arguments, program="semantic_probe.py", description=description)
    console = plain_console()
    runs = options.runs()
    options.output.mkdir(parents=True, exist_ok=True)
    records = []
    with (options.output / LINES).open("w", encoding="utf-8") as lines:
        for record in probe(runs, options, console):
            lines.write(record.model_dump_json() + "\n")
            lines.flush()  # a later run that cannot be probed loses none of these
            records.append(record)
    sheets, notes = sheets_of(records), notes_of(records)
    page = ["# Does the semantics arrive?\n", *(sheet.markdown() for sheet in sheets), *(f"{note}\n" for note in notes)]
    page.append(f"    {environment.command()}\n")
    (options.output / PAGE).write_text("\n".join(page), encoding="utf-8")
    for sheet in sheets:
        console.print(sheet.title, style="bold")
        console.print(sheet.rich())
        console.print()
    for note in notes:
        console.print(note)
    console.print(f"\nwritten: {options.output / LINES}, {options.output / PAGE}", soft_wrap=True)
    return records


def probe(runs: Sequence[ProbedRun], options: Options, console: Console) -> Iterator[ProbeRecord]:
    """Yield what is found in every run, then in untrained students of the first arm's seeds, then in the teachers."""
    device = check_device(
        options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    )
    teachers = named_teachers(options.teachers, options.teacher_weights) if options.teachers else teachers_of(runs)
    data = options.data or common(runs, "data")
    size = options.input_size or common(runs, "input_size")
    bench = SemanticProbe(
        data,
        size,
        teachers={name: teacher.to(device) for name, teacher in teachers.items()},
        device=device,
        batch_size=options.batch_size,
        workers=options.workers,
        most_images=options.most_images,
        tap=options.tap,
        invalid_boxes=runs[0].settings.get("invalid_boxes", "raise"),
    )
    about: dict[str, Any] = {"settings": settings_of(options, data, size), "environment": environment.describe()}
    for run in track(runs, "students", console):
        figures, alignment = bench.student(run.open().to(device))
        recipe = {name: run.settings.get(name) for name in ("model", "data", "input_size", "epochs", "teacher",
                  "teacher_weights", "teacher_control", "rho", "distill_weight", "projector", "objective")}  # fmt: skip
        yield ProbeRecord(arm=run.arm, seed=run.seed, run=str(run.folder), figures=figures, alignment=alignment,
                          recipe=recipe, **about)  # fmt: skip
    trained = runs[0].open().to(device)
    for run in track([run for run in runs if run.arm == runs[0].arm], "untrained students", console):
        figures, alignment = bench.student(untrained_like(trained, run.seed))
        yield ProbeRecord(arm="untrained", seed=run.seed, figures=figures, alignment=alignment, **about)
    for name in teachers:
        yield ProbeRecord(arm=f"teacher {name}", figures=bench.teacher(name, figures.grid), **about)


def settings_of(options: Options, data: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Return everything that the figures depend on, as JSON takes it."""
    return {
        "command": environment.command(),
        "data": str(data),
        "input_size": list(size),
        "tap": options.tap,
        "most_images": options.most_images,
        "strengths": list(STRENGTHS),
        "folds": FOLDS,
        "tolerance": TOLERANCE,
        "permutations": PERMUTATIONS,
    }


if __name__ == "__main__":
    try:
        main()
    except DistillError as error:
        raise SystemExit(f"error: {error}") from None
