"""The command line: which teachers there are, and what they see in an image."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vfmdistill.errors import DistillError, InputError, WeightsError
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
    parser = argparse.ArgumentParser(prog="vfmdistill", description="Teachers: which there are, and what they see.")
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
        "--grid", type=_grid, metavar="CELLS|HxW", help="along the longer side, or height x width (default: 32)"
    )
    features.add_argument(
        "--output", type=Path, default=Path("features.png"), metavar="PNG", help="written anew (default: %(default)s)"
    )
    features.add_argument("--dense", choices=("tokens", "value"), help="what to read (default: the catalogue's choice)")
    features.add_argument("--blocks", type=_blocks, metavar="N,N", help="blocks to read, from 1 (default: the last)")
    features.add_argument("--merge", choices=("concat", "mean"), help="several blocks (default: concat)")
    features.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 … (default: a GPU if there is one)")
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
    teachers = _teachers(names, _weights(options.weights, names), _device(options.device), options)
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


def _weights(given: Sequence[str], teachers: Sequence[str]) -> dict[str, Path]:
    """Say whose each file is: NAME=PATH, or a mere PATH for the only teacher."""
    files: dict[str, Path] = {}
    for word in given:
        name, sign, path = word.partition("=")
        if not sign or name not in teachers:
            if len(teachers) > 1:
                raise InputError(
                    f"--weights {word} does not say whose it is; expected NAME=PATH with NAME one of "
                    f"{', '.join(teachers)}."
                )
            name, path = teachers[0], word
        if name in files:
            raise InputError(f"--weights came twice for teacher {name!r}; give one file.")
        files[name] = Path(path).expanduser()
    return files


def _grid(text: str) -> int | tuple[int, int]:
    counts = _numbers(text.lower().replace("×", "x"), "x")
    if len(counts) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no grid; expected cells such as 32, or height x width as 24x32")
    return counts[0] if len(counts) == 1 else (counts[0], counts[1])


def _blocks(text: str) -> list[int]:
    return _numbers(text, ",")


def _numbers(text: str, sign: str) -> list[int]:
    parts = [part.strip() for part in text.split(sign)]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not understood; expected whole numbers from 1, such as 9{sign}12"
        )
    return [int(part) for part in parts]


def _device(name: str | None) -> str:
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # an unknown device, and one that torch was not built for
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used here ({reason}); give cpu, or one that torch has.") from error
    return name


def _console(stderr: bool = False) -> Console:
    try:
        from rich.console import Console
    except ImportError as error:
        raise DistillError("the package rich is missing, which draws tables: pip install rich.") from error

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else _LINE, markup=False, emoji=False, highlight=False)
