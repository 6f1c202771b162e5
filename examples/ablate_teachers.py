"""Does it help, which teacher, and is it noise? The same training with and without teachers, paired by seed.

    python examples/ablate_teachers.py --data cards --model deim_n --teachers efficientnet_lite0,dinov2_vits14 \
        --controls random:dinov2_vits14,shuffled:efficientnet_lite0 --seeds 5 --epochs 60 --rho auto --workers 2
    python examples/ablate_teachers.py ... --vary projector=linear,mlp --vary distill_weight=1,5,20
    python examples/ablate_teachers.py ... --dry-run      # what would be run, and how long it would take
    python examples/ablate_teachers.py ... --resume       # go on; on another machine, with the same --storage: help

All arms of a seed begin with the same weights and see the same images, augmentations and denoising noise. Every
setting of `train_rtdetrv4.py` is one here too. The folder receives the runs, `report.html`, `report.md` and
`records.jsonl`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

try:
    import optuna
except ModuleNotFoundError:
    raise SystemExit("error: ablations need Optuna. Run: pip install 'vfmdistill[ablation]'") from None

from detectors.ablation.command_line import Asked, command_of, parse_ablation
from detectors.ablation.comparison import compare
from detectors.ablation.crew import run_crew
from detectors.ablation.estimate import estimate_arms
from detectors.ablation.gallery import check_reference, gallery
from detectors.ablation.preflight import check_ablation
from detectors.ablation.report import write_report
from detectors.ablation.storage import open_storage
from detectors.ablation.study import AblationStudy
from detectors.command_line import plain_console
from detectors.training.run_text import duration
from vfmdistill import DistillError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ablation that the command line asks for, or what is left of it, and write its report."""
    asked = parse_ablation(
        arguments,
        program="ablate_teachers.py",
        description="Train with and without teachers, paired by seed, and report what the differences say.",
    )
    console = plain_console()
    arms = asked.grid.arms(asked.recipe)
    check_reference(arms, asked.options.reference)
    check_ablation(asked.recipe, arms)
    if asked.options.dry_run:
        show_plan(asked, console)
        return
    asked.options.output.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = AblationStudy(
        open_storage(asked.storage, heartbeat=asked.options.heartbeat),
        asked.options.study,
        arms,
        asked.recipe.model_dump(mode="json"),
        asked.seeds,
        join=asked.options.resume,
        command=command_of(arguments, "examples/ablate_teachers.py"),
        notes=asked.options.note,
    )
    stopped = run_crew(
        study,
        asked.recipe,
        asked.options.output,
        workers=asked.options.workers,
        console=console,
        keep_checkpoints=asked.options.keep_all_checkpoints,
    )
    record = study.record()
    if record.records:
        findings, output = compare(record), asked.options.output
        page = write_report(record, findings, output)  # what keeps pictures from being made costs only them
        pictures = gallery(record, findings, output, reference=asked.options.reference, say=console.print)
        if pictures:
            write_report(record, findings, output, pictures=pictures)
        console.print(findings.headline, soft_wrap=True)
        console.print(f"report: {page}", soft_wrap=True)
    for missing in record.missing:
        console.print(f"missing: {missing.arm}, seed {missing.seed}: {missing.reason}", soft_wrap=True)
    if stopped is not None:
        raise SystemExit(128 + stopped)
    if any(missing.reason != "waiting" and not missing.reason.startswith("running") for missing in record.missing):
        raise SystemExit(1)


def show_plan(asked: Asked, console: Console) -> None:
    """Print the arms, and what their runs would take on this machine."""
    arms = asked.grid.arms(asked.recipe)
    table = Table("arm", "compared with", "settings", "step", "run", "all seeds")
    total = 0.0
    for arm, estimate in estimate_arms(asked.recipe, arms):
        settings = " ".join(f"{name}={value}" for name, value in arm.settings.items())
        whole = estimate.seconds * len(asked.seeds)
        total += whole
        step, each = f"{estimate.step_seconds:.2f} s", duration(estimate.seconds)
        table.add_row(arm.name, arm.baseline or "", settings, step, each, duration(whole))
    console.print(table)
    runs, workers = len(arms) * len(asked.seeds), asked.options.workers
    said = f"{len(arms)} arms × {len(asked.seeds)} seeds = {runs} runs: {duration(total)} one after the other."
    if workers > 1:
        said += f" {workers} at a time take between {duration(total / workers)} and that, as they share this machine."
    console.print(said, soft_wrap=True)


if __name__ == "__main__":
    try:
        main()
    except DistillError as error:
        raise SystemExit(f"error: {error}") from None
