"""What the words on the command line mean."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vfmdistill.errors import InputError


def weight_files(given: Sequence[str], teachers: Sequence[str]) -> dict[str, Path]:
    """Say whose each file is: NAME=PATH, or a mere PATH for the only teacher.

    Raises:
        InputError: a file is nobody's, or a teacher has two.
    """
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


def grid(text: str) -> int | tuple[int, int]:
    """Read "32" or "24x32", cells along the longer side or height x width."""
    counts = _numbers(text.lower().replace("×", "x"), "x")
    if len(counts) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no grid; expected cells such as 32, or height x width as 24x32")
    return counts[0] if len(counts) == 1 else (counts[0], counts[1])


def blocks(text: str) -> list[int]:
    """Read "9,12"."""
    return _numbers(text, ",")


def pixels(text: str) -> tuple[int, int]:
    """Read "640" or "480x640", a side or height x width."""
    counts = _numbers(text.lower().replace("×", "x"), "x")
    if len(counts) > 2:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; expected a side such as 640, or height x width as 480x640"
        )
    return counts[0], counts[-1]


def device(name: str | None) -> str:
    """Return a device that can be used; None is a GPU if there is one, else the CPU.

    Raises:
        InputError: it cannot be used here.
    """
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # an unknown device, and one that torch was not built for
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used here ({reason}); give cpu, or one that torch has.") from error
    return name


def _numbers(text: str, sign: str) -> list[int]:
    parts = [part.strip() for part in text.split(sign)]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not understood; expected whole numbers from 1, such as 9{sign}12"
        )
    return [int(part) for part in parts]
