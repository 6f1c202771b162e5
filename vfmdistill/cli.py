"""The command line: which teachers there are, what they see in an image, and where a student can be tapped."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from vfmdistill.command_words import blocks, device, grid, pixels, weight_files
from vfmdistill.errors import DistillError, InputError, WeightsError
from vfmdistill.student_specs import EXPECTED, build_student
from vfmdistill.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from vfmdistill.teacher import Teacher

_OTHERS = "Any other model: timm:MODEL, open_clip:MODEL/TAG, hf:OWNER/NAME."
_LINE = 160  # characters of a line where it goes to a file, which no table of ours exceeds


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for.

    Args:
        arguments: the words behind the program's name; None takes them from the process.

    Returns:
        The exit status: 0, 1 after an error that a line on standard error describes, or 130 after Ctrl-C.

    Raises:
        SystemExit: after ``--help`` and ``--version`` (status 0), or for words that are no command (status 2).
    """
    options = _parser().parse_args(arguments)
    try:
        if options.command == "teachers":
            _show_teachers(options.filter, options.json)
        elif options.command == "inspect":
            _show_inspection(options)
        else:
            _show_features(options)
        sys.stdout.flush()
    except DistillError as error:
        print(f"vfmdistill {options.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vfmdistill",
        description="Teachers: which there are, and what they see. Students: where they can be tapped.",
    )
    parser.add_argument("--version", action="version", version=f"vfmdistill {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    teachers = commands.add_parser("teachers", help="list the catalogue", description=f"The catalogue. {_OTHERS}")
    teachers.add_argument("filter", nargs="?", default="*", metavar="FILTER", help="a part of the name, or a pattern")
    teachers.add_argument("--json", action="store_true", help="everything that is known, and where the weights are")

    features = commands.add_parser(
        "features",
        help="draw what teachers see in images",
        description="Draw the three main directions of each teacher's features as red, green and blue. The colours of "
        "a teacher mean the same in all images, and nothing across teachers.",
    )
    features.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="an image file")
    features.add_argument("--teacher", action="append", required=True, metavar="NAME", help="repeat it for several")
    source = features.add_mutually_exclusive_group()
    source.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a file to take instead of the published weights; with several teachers, say whose",
    )
    source.add_argument("--random", action="store_true", help="random weights: what a network sees untaught")
    features.add_argument(
        "--grid", type=grid, metavar="CELLS|HxW", help="along the longer side, or height x width (default: 32)"
    )
    features.add_argument(
        "--output", type=Path, default=Path("features.png"), metavar="PNG", help="written anew (default: %(default)s)"
    )
    features.add_argument("--dense", choices=("tokens", "value"), help="what to read (default: the catalogue's choice)")
    features.add_argument("--blocks", type=blocks, metavar="N,N", help="blocks to read, from 1 (default: the last)")
    features.add_argument("--merge", choices=("concat", "mean"), help="several blocks (default: concat)")
    features.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 … (default: a GPU if there is one)")

    inspect = commands.add_parser(
        "inspect",
        help="list where a student can be tapped",
        description="List the modules of a student whose outputs are maps, and mark what attach takes where no tap is "
        "given. The network is built with random weights.",
    )
    inspect.add_argument("student", metavar="STUDENT", help=EXPECTED)
    inspect.add_argument(
        "--input-size", type=pixels, metavar="PIXELS|HxW", help="of the probe (default: the student's own, else 224)"
    )
    inspect.add_argument("--all", action="store_true", help="list layers without parameters too, and inner layers")
    inspect.add_argument("--json", action="store_true", help="all of them, for programs")
    return parser


def _show_teachers(pattern: str, as_json: bool) -> None:
    from vfmdistill.teacher_table import find_teachers, teachers_as_json, teachers_as_table

    specs = find_teachers(pattern)
    if as_json:
        print(teachers_as_json(specs))
        return
    console = _console()
    console.print(teachers_as_table(specs))
    console.print(f"{len(specs)} teacher{'s' * (len(specs) > 1)}. {_OTHERS}", soft_wrap=True)


def _show_inspection(options: argparse.Namespace) -> None:
    from vfmdistill.inspection import inspect
    from vfmdistill.inspection_table import closing_line, inspection_as_table, shown_candidates

    with nullcontext() if options.json else _console(stderr=True).status(f"{options.student} …"):
        student, input_size = build_student(options.student)
        try:
            inspection = inspect(student, options.input_size or input_size)
        except InputError as error:
            raise InputError(f"{error} Here, input_size= is --input-size HxW.") from error
    if options.json:
        print(json.dumps({"student": options.student, **inspection.to_dict()}, indent=2, ensure_ascii=False))
        return
    console = _console()
    console.print(inspection_as_table(inspection, options.all))
    hidden = 0 if options.all else len(inspection.candidates) - len(shown_candidates(inspection))
    more = f" {hidden} more with --all." if hidden else ""
    console.print(f"{closing_line(inspection)}{more}", soft_wrap=True)


def _show_features(options: argparse.Namespace) -> None:
    from vfmdistill.feature_sheet import CELLS, feature_columns
    from vfmdistill.images import read_image
    from vfmdistill.teachers.catalog import teacher_spec
    from vfmdistill.visualize import save_sheet

    # What is quick to check comes first: a large teacher takes long to build.
    output: Path = options.output
    if output.suffix.lower() != ".png" or output.is_dir():
        raise InputError(f"--output {output} is no name of a PNG file; give one that ends in .png.")
    names = list(dict.fromkeys(options.teacher))
    for name in names:
        teacher_spec(name)
    teachers = _teachers(names, weight_files(options.weights, names), device(options.device), options)
    images = [read_image(path) for path in options.images]
    columns = feature_columns(images, teachers, options.grid or CELLS)
    try:
        save_sheet(output, columns, width=320)
    except OSError as error:
        raise InputError(f"--output {output} cannot be written ({error}); give a place that can.") from error
    _console().print(f"{output}: {len(images)} image(s) × {', '.join(names)}", soft_wrap=True)


def _teachers(
    names: Sequence[str], weights: dict[str, Path], device: str, options: argparse.Namespace
) -> Iterator[tuple[str, Teacher]]:
    """Build the teachers one by one, saying so on standard error, where there is a terminal."""
    from vfmdistill.teacher import Teacher

    asked = {"dense": options.dense, "blocks": options.blocks, "merge": options.merge}
    readout = {option: choice for option, choice in asked.items() if choice is not None}
    taught = not options.random
    for name in names:
        with _console(stderr=True).status(f"{name} …"):
            try:
                yield name, Teacher(name, pretrained=taught, weights=weights.get(name), **readout).to(device)
            except WeightsError as error:
                here = f"Here, weights=PATH is --weights {name}=PATH, and pretrained=False is --random."
                raise WeightsError(f"{error} {here}") from error


def _console(stderr: bool = False) -> Console:
    try:
        from rich.console import Console
    except ImportError as error:
        raise DistillError("the package rich is missing, which draws tables: pip install rich.") from error

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else _LINE, markup=False, emoji=False, highlight=False)
