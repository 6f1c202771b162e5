"""run.json: what a run is — recipe, data, teacher, parameter groups — and where, when and how it was started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vfmdistill.errors import InputError

from .records import replace_text

NAME = "run.json"


def begin_run(folder: Path, facts: Mapping[str, Any], *, epoch: int = 0, step: int = 0) -> None:
    """Write run.json when a process starts or resumes a run.

    The starts before it stay in "sessions", each with "command", "environment", "started" (UTC), "epoch" and "step".

    Args:
        folder: the run's folder.
        facts: JSON-able; "command" and "environment" as `environment` gives them, and anything else about the run.
        epoch: the epoch that this process starts with.
        step: optimizer steps before it.
    """
    session = {
        "command": facts.get("command"),
        "environment": facts.get("environment"),
        "started": _now(),
        "epoch": epoch,
        "step": step,
    }
    known = read_run(folder)
    _write(folder, {**facts, "finished": False, "sessions": [*known.get("sessions", []), session]})


def end_run(folder: Path, *, finished: bool, **results: Any) -> None:
    """Add to run.json how the process that wrote it last ended.

    Args:
        folder: the run's folder.
        finished: whether the last epoch is done; False for a run that was interrupted.
        results: JSON-able facts that are known only now.
    """
    known = read_run(folder)
    sessions = known.get("sessions", [])
    if sessions:
        sessions[-1]["ended"] = _now()
    _write(folder, {**known, **results, "finished": finished, "sessions": sessions})


def read_run(folder: Path) -> dict[str, Any]:
    """Return what run.json holds; nothing if there is none.

    Raises:
        InputError: it is not a JSON object.
    """
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; remove it, and the report does without it") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(content).__name__}; remove it")
    return content


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    replace_text(folder / NAME, json.dumps(content, indent=1) + "\n")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
