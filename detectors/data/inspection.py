"""One look at every annotation and every image file of a split."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from detectors.data.annotations import Annotations
from detectors.data.examination import examine_annotations
from detectors.data.formats import read_content
from detectors.data.images import pixel_format_fault, threads
from detectors.data.orientation import Size, boxes_refer_to_stored, orientation_of, upright_size
from detectors.data.problems import Kind, Problem

Watch = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Called with items, a title and their number; yields the items, and shows how far they are."""


class ImageFacts(NamedTuple):
    """What a sound image file is like.

    Attributes:
        stored: (width, height) of the stored pixels.
        orientation: of EXIF, 1 to 8.
        file_digest: of its bytes.
        pixel_digest: of its pixels, those of a JPEG at an eighth of their size and without colour: equal where the
            same picture was written with other metadata or another compression without loss.
    """

    stored: Size
    orientation: int
    file_digest: bytes
    pixel_digest: bytes


class Inspection(NamedTuple):
    """What was found in one split: the sound annotations, the facts of each of their images, None where it is not
    sound, and the problems.
    """

    annotations: Annotations
    images: list[ImageFacts | None]
    problems: list[Problem]


def inspect_split(
    images_dir: str | os.PathLike[str],
    annotation_file: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    watch: Watch | None = None,
) -> Inspection:
    """Read every annotation and decode every image of a split; see `Split` and `examine_annotations` for arguments."""
    annotations, problems = examine_annotations(read_content(images_dir, annotation_file), class_names)
    folder = annotations.images_dir
    if not folder.is_dir():
        missing = Problem(Kind.IMAGE_MISSING, annotations.file, f"the image folder {folder} does not exist")
        return Inspection(annotations, [None] * len(annotations.file_names), [*problems, missing])
    facts: list[ImageFacts | None] = []
    for image_id, name, found in zip(
        annotations.image_ids, annotations.file_names, _inspect_images(annotations, watch), strict=True
    ):
        if isinstance(found, ImageFacts):
            facts.append(found)
        else:
            facts.append(None)
            problems.append(Problem(found[0], annotations.file, f"image {image_id} ({name}): {found[1]}"))
    return Inspection(annotations, facts, problems)


def _inspect_images(annotations: Annotations, watch: Watch | None) -> Iterator[ImageFacts | tuple[Kind, str]]:
    """Yield what `inspect_image` returns for each image, several of them looked at at once."""
    number = len(annotations.file_names)
    with ThreadPoolExecutor(threads()) as pool:
        found = pool.map(
            inspect_image,
            [annotations.images_dir / name for name in annotations.file_names],
            [annotations.size(image) for image in range(number)],
        )
        try:
            yield from found if watch is None else watch(found, annotations.file.name, number)
        except BaseException:
            # Whoever interrupts does not wait for the rest.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def inspect_image(path: Path, annotated: Size) -> ImageFacts | tuple[Kind, str]:
    """Return the facts of an image file, or what is wrong with it.

    The whole stream is decoded, so that truncation is found wherever it lies; JPEGs at an eighth of their size and
    without colour, where Pillow still reads every byte.

    Args:
        path: the file.
        annotated: (width, height) in pixels that the annotations expect, of the stored or of the upright picture.
    """
    try:
        data = path.read_bytes()
    except ValueError as error:  # a name that no file can have
        return Kind.IMAGE_MISSING, f"{path}: {error}"
    except OSError as error:
        return (Kind.IMAGE_UNREADABLE, str(error)) if path.exists() else (Kind.IMAGE_MISSING, f"{path} does not exist")
    file = io.BytesIO(data)
    try:
        with Image.open(file) as image:
            stored = image.size
            if fault := pixel_format_fault(image):
                return Kind.IMAGE_UNREADABLE, fault
            if image.draft("L", (max(1, stored[0] // 8), max(1, stored[1] // 8))) is None:
                image.load()
                stored = image.size  # Pillow turns a TIFF only now
            orientation = orientation_of(image)
            pixels = hashlib.blake2b(f"{image.format} {image.mode} {stored}".encode(), digest_size=16)
            pixels.update(image.tobytes())
    # Pillow's decoders raise SyntaxError, struct.error, EOFError and more for files that are merely broken.
    except Exception as error:
        # Pillow names what it was given.
        return Kind.IMAGE_UNREADABLE, str(error).replace(repr(file), repr(str(path)))
    if boxes_refer_to_stored(stored, orientation, annotated) and annotated != stored:
        text = f"the file is {stored[0]} × {stored[1]}, the annotations say {annotated[0]} × {annotated[1]}"
        if upright_size(stored, orientation) != stored:
            text += f" (EXIF orientation {orientation} exchanges the sides, which does not explain it)"
        return Kind.IMAGE_SIZE, text
    return ImageFacts(stored, orientation, hashlib.blake2b(data, digest_size=16).digest(), pixels.digest())
