"""What the doctor says about the image files of a data set: the same picture twice, and files without annotations."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from detectors.data.images import image_files, read_image
from detectors.data.inspection import Inspection
from detectors.data.problems import Kind, Problem


class _Member(NamedTuple):
    """An image of a split, and the digest of its file."""

    split: str
    name: str
    path: Path
    digest: bytes


def same_pictures(splits: Mapping[str, Inspection]) -> Iterator[tuple[str, Problem]]:
    """Yield (names of the splits concerned, problem) for each picture that is there more than once.

    Files with the same bytes are found, and files with the same pixels in the same format: other metadata, or a
    compression without loss done anew. Pictures that were resized or compressed with loss are not.
    """
    groups: dict[bytes, list[_Member]] = defaultdict(list)
    for split, inspection in splits.items():
        folder = inspection.annotations.images_dir
        for name, facts in zip(inspection.annotations.file_names, inspection.images, strict=True):
            if facts is not None:
                member = _Member(split, name, folder / name, facts.file_digest)
                groups[facts.pixel_digest].append(member)
    for candidates in groups.values():
        if len(candidates) == 1:
            continue
        for members in _of_equal_pixels(candidates):
            # A file that one split lists twice is named as a duplicate already.
            if len({(member.split, member.path) for member in members}) == 1:
                continue
            concerned = list(dict.fromkeys(member.split for member in members))
            kind = Kind.LEAK if len(concerned) > 1 else Kind.REPEATED_PICTURE
            equal = "the same bytes" if len({member.digest for member in members}) == 1 else "the same pixels"
            names = ", ".join(
                f"{member.split} {member.name}" if kind is Kind.LEAK else member.name for member in members
            )
            file = splits[concerned[-1]].annotations.file
            yield " + ".join(concerned), Problem(kind, file, f"{names}: {equal}")


def _of_equal_pixels(candidates: list[_Member]) -> Iterator[list[_Member]]:
    """Part files whose reduced pixels are equal by their bytes, and where these differ by all of their pixels."""
    if len({member.digest for member in candidates}) == 1:
        yield candidates
        return
    pixels: dict[bytes, bytes] = {}
    groups: dict[bytes, list[_Member]] = defaultdict(list)
    for member in candidates:
        if member.digest not in pixels:
            picture = read_image(member.path)
            pixels[member.digest] = hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
        groups[pixels[member.digest]].append(member)
    yield from groups.values()


def unnamed_files(splits: Mapping[str, Inspection]) -> Iterator[tuple[str, Problem]]:
    """Yield (names of the splits concerned, problem) for image files in their folders that no annotation names."""
    named: set[str] = set()
    folders: dict[Path, list[str]] = defaultdict(list)
    for split, inspection in splits.items():
        folder = inspection.annotations.images_dir
        named.update(os.path.abspath(folder / name) for name in inspection.annotations.file_names)
        folders[folder].append(split)
    seen: set[str] = set()
    for folder, names in folders.items():
        for path in image_files(folder):
            absolute = os.path.abspath(path)
            if absolute not in named and absolute not in seen:
                seen.add(absolute)
                file = splits[names[0]].annotations.file
                yield " + ".join(names), Problem(Kind.UNNAMED_FILES, file, str(path.relative_to(folder)))
