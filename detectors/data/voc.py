"""Reading annotations in Pascal VOC's format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from detectors.data.content import Content
from detectors.data.images import IMAGE_SUFFIXES, Header, read_headers
from detectors.data.problems import Kind
from detectors.data.voc_xml import Element, parse_xml

# Folders of splits that lie side by side, where each holds its images and annotations.
FLAT_SPLITS = frozenset({"train", "val", "valid", "test", "trainval"})


def read_voc(images_dir: Path, source: Path) -> Content:
    """Read one split of a data set in Pascal VOC's format.

    Pixels count from 1 there and belong to the box at both ends, so that xmin = 1, xmax = W spans an image of width W:
    its edges are xmin − 1 and xmax, as the format's own evaluation measures them. A coordinate below 1 cannot
    have been counted like that and is taken as the edge itself. Objects that are `difficult` become crowd regions: no
    training targets, and ignored by the evaluation, as the format's own ignores them.

    The format lists no classes: they are the names in all annotations of all splits, in alphabetical order, with
    category ids from 1. Image ids count from 1 in the order of the list. The image of `a.xml` is `a.jpg`, or `a` with
    another suffix; if there is none, the one that the annotation names. The size is the file's where the annotation
    gives none.

    Args:
        images_dir: `JPEGImages`, or the folder that holds images and annotations of the split.
        source: the list of images in `ImageSets/Main`, whose annotations lie in `Annotations` beside `JPEGImages`; or
            the folder with the annotations.
    """
    content = Content(source, images_dir, has_lines=True)
    folder = source if source.is_dir() else images_dir.parent / "Annotations"
    missing = _stems(source, content)
    files = _image_names(images_dir)
    names: set[str] = set()
    for path in _annotation_files(folder, source):
        number = missing.pop(path.stem, None) if path.parent == folder else None
        try:
            document = parse_xml(path.read_bytes())
        except (OSError, ValueError) as error:
            if number is not None:
                content.note(Kind.MALFORMED, f"{path}: {error}")
            continue
        names |= {name for entry in document.children if entry.tag == "object" and (name := entry.value("name"))}
        if number is not None:
            name = files.get(path.stem) or document.value("filename") or f"{path.stem}.jpg"
            label_file = os.path.relpath(path, images_dir.parent)
            image = {"id": number, "file_name": name, "width": 0, "height": 0, "label_file": label_file}
            content.images.append(image)
            _read_document(document, path, image, content)
    for stem in missing:
        content.note(Kind.MALFORMED, f"{folder / stem}.xml does not exist")
    category_ids = {name: number for number, name in enumerate(sorted(names), start=1)}
    content.categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    content.images.sort(key=lambda image: image["id"])
    _read_missing_sizes(content)
    known = {image["id"] for image in content.images}
    content.annotations = [annotation for annotation in content.annotations if annotation["image_id"] in known]
    content.annotations.sort(key=lambda annotation: annotation["image_id"])
    for number, annotation in enumerate(content.annotations, start=1):
        annotation |= {"id": number, "category_id": category_ids[annotation["category_id"]]}
    return content


def _stems(source: Path, content: Content) -> dict[str, int]:
    """Return image id by the name of the image without its suffix."""
    if source.is_dir():
        names = sorted(path.stem for path in source.glob("*.xml"))
        return {name: number for number, name in enumerate(names, start=1)}
    stems: dict[str, int] = {}
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        content.note(Kind.MALFORMED, f"cannot be read as a list of images: {error}")
        return stems
    for number, line in enumerate(lines, start=1):
        # Lists of one class have a second column, which says whether the image shows it.
        if words := line.split():
            if words[0] in stems:
                content.note(Kind.DUPLICATE, f"line {number}: {words[0]}")
            stems.setdefault(words[0], len(stems) + 1)
    return stems


def _annotation_files(folder: Path, source: Path) -> list[Path]:
    """Return the annotations of all splits."""
    folders = [folder]
    if source.is_dir() and source.name in FLAT_SPLITS:
        folders = [source.parent / name for name in sorted(FLAT_SPLITS)]
    return [path for each in folders for path in sorted(each.glob("*.xml"))]


def _image_names(folder: Path) -> dict[str, str]:
    """Return the names of the image files in a folder by their names without suffix; .jpg comes first."""
    try:
        names = [name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
    except OSError:
        return {}
    names.sort(key=lambda name: (name.lower().endswith(".jpg"), name))
    return {os.path.splitext(name)[0]: name for name in names}


def _read_document(document: Element, path: Path, image: dict[str, Any], content: Content) -> None:
    """Fill in the size of an image, and add its boxes to the content; the names of classes stand for their ids."""
    size = document.find("size")
    if size is not None:
        try:
            image |= {side: int(float(size.value(side, "0"))) for side in ("width", "height")}
        except (ValueError, OverflowError):
            content.note(Kind.MALFORMED, f"{path}:{size.line}: the size is no pair of numbers")
    for entry in document.children:
        if entry.tag != "object":
            continue
        try:
            label, corners = _corners(entry)
            crowd = _number(entry, "difficult", "0") != 0
        except ValueError as error:
            content.note(Kind.MALFORMED, f"{path}:{entry.line}: {error}")
            continue
        if any(0 <= value < 1 for value in corners):
            content.note(Kind.COUNTED_FROM_ZERO, f"{path}:{entry.line}: {', '.join(f'{value:g}' for value in corners)}")
        left, top = (value - 1 if value >= 1 else value for value in corners[:2])
        content.annotations.append(
            {
                "image_id": image["id"],
                "category_id": label,
                "bbox": [left, top, corners[2] - left, corners[3] - top],
                "iscrowd": int(crowd),
                "line": entry.line,
            }
        )


def _corners(entry: Element) -> tuple[str, list[float]]:
    """Return the class and xmin, ymin, xmax, ymax of an object."""
    label, box = entry.value("name"), entry.find("bndbox")
    if not label:
        raise ValueError("the object has no `name`")
    if box is None:
        raise ValueError(f"the {label} has no `bndbox`")
    return label, [_number(box, name) for name in ("xmin", "ymin", "xmax", "ymax")]


def _number(element: Element, tag: str, default: str = "") -> float:
    text = element.value(tag, default)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"`{tag}` is {text!r}; expected a number") from None


def _read_missing_sizes(content: Content) -> None:
    """Let the files say what size they have where the annotations do not."""
    unknown = [image for image in content.images if not (image["width"] and image["height"])]
    headers = read_headers([content.images_dir / image["file_name"] for image in unknown])
    for image, header in zip(unknown, headers, strict=True):
        if isinstance(header, Header):
            image["width"], image["height"] = header.stored
        else:
            kind = Kind.IMAGE_UNREADABLE if (content.images_dir / image["file_name"]).exists() else Kind.IMAGE_MISSING
            content.note(kind, f"image {image['id']} ({image['file_name']}): {header}")
    content.images = [image for image in content.images if image["width"] and image["height"]]
