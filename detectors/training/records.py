"""The files that a run keeps about itself, written so that an interruption leaves whole ones."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detectors.flush import flush
from vfmdistill.errors import DistillError, InputError


class RecordError(DistillError, OSError):
    """A run's figures or its report cannot be written."""


def replace_text(path: Path, text: str) -> None:
    """Write a text file in one step: there is the old one or the new one at any moment.

    Raises:
        RecordError: for example for want of space; the old file stays.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append a JSON object as a line; when this returns, it is on the disk. What is not finite becomes null.

    Raises:
        RecordError: for example for want of space; what was written of the line has no end, so that nobody reads it.
    """
    line = json.dumps(_finite(values), allow_nan=False) + "\n"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _cannot_write(path, error) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file, none if there is no file; one that was not finished is left out.

    Raises:
        InputError: a line is no JSON object with an "epoch".
    """
    return [content for _, content in _lines(path)]


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a file with the lines that are wanted, as they are; one that was not finished is dropped.

    Raises:
        InputError: as `read_lines`.
        RecordError: as `replace_text`.
    """
    replace_text(path, "".join(line for line, content in _lines(path) if wanted(content)))


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if not isinstance(content, dict) or not isinstance(content.get("epoch"), int):
            raise InputError(
                f"line {number} of {path} is {line[:60]!r}; expected a JSON object with an epoch. Remove that line"
            )
        found.append((line + "\n", content))
    return found


def _cannot_write(path: Path, error: OSError) -> RecordError:
    return RecordError(f"cannot write {path}: {error.strerror or error}; make room or rights, then --resume")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
