"""The file in a feature cache that says whose features it holds."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from vfmdistill.errors import DistillError, InputError
from vfmdistill.teachers.identity import Identity

MANIFEST = "teacher.json"


def claim(directory: Path, identity: Identity) -> None:
    """Make a folder that is new or empty a teacher's; leave one that is this teacher's already as it is.

    Raises:
        InputError: the folder is another teacher's, holds other things, or its manifest is damaged.
        DistillError: it cannot be made or read.
    """
    path = directory / MANIFEST
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # Another process may be writing the manifest, or have been faster.
            others = [file for file in directory.iterdir() if not file.name.startswith(MANIFEST)]
            if others and not path.exists():
                raise InputError(
                    f"the folder {str(directory)!r} is no feature cache: it holds files, but no {MANIFEST}. Give a new "
                    "or empty one."
                )
            _put(path, json.dumps(identity, indent=1))
        owner = _read(path)
    except OSError as error:
        raise DistillError(
            f"the feature cache {str(directory)!r} cannot be used: {error.strerror or error}. Give a folder that can "
            "be written, or drop cache=."
        ) from error
    if owner != identity:
        different = [part for part in identity if owner.get(part) != identity[part]]
        raise InputError(
            f"the feature cache {str(directory)!r} belongs to {_described(owner)}; this is {_described(identity)}. "
            f"They differ in {', '.join(different) or 'what the manifest says'}. Give each teacher a folder of its "
            "own, or delete that one."
        )


def _put(path: Path, content: str) -> None:
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_text(content, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path) -> Identity:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        owner = None
    if not isinstance(owner, dict):
        raise InputError(
            f"{str(path)!r} is damaged: it is no JSON object, so nobody knows whose features the folder holds. Delete "
            "the folder."
        )
    return owner


def _described(identity: Identity) -> str:
    versions = identity.get("versions")
    code = ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else "?"
    weights = str(identity.get("weights"))[:12]
    return f"teacher {identity.get('teacher')!r} ({identity.get('dtype')}, weights {weights}…, {code})"
