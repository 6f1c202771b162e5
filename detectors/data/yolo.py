"""Reading labels in YOLO's format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from detectors.data.content import Content
from detectors.data.images import Header, image_files, read_headers
from detectors.data.orientation import Size, upright_size
from detectors.data.problems import Kind
from detectors.data.yolo_yaml import DataYaml, read_class_list, read_data_yaml


def read_yolo(images: Path, description: Path) -> Content:
    """Read one split of a data set in YOLO's format, as Ultralytics lays it out.

    The labels of `images/train/a.jpg` lie in `labels/train/a.txt`; where no folder is called `images`, beside the
    image. An image without such a file has no boxes. A line is the class index and the box (center x, center y, width,
    height), or the class index and the corners of a polygon, whose bounding box is taken; all as fractions of the
    upright picture, which is what Ultralytics shows to its users. Keypoints behind a box are passed over where
    data.yaml announces them (`kpt_shape`).

    Image ids count from 1 in the order of the images, category ids are the class indices.

    Args:
        images: the image folder or the text file that lists images. Where data.yaml gives several for a split, the
            first stands for them all.
        description: data.yaml or classes.txt.
    """
    data = read_data_yaml(description) if description.suffix in (".yaml", ".yml") else read_class_list(description)
    root = description.parent
    sources = _sources(images, data)
    images_dir = sources[0] if sources[0].is_dir() else sources[0].parent
    labels = _label_file(images_dir / "_", root).parent if images.is_dir() else images
    content = Content(labels, images_dir, upright=True, has_lines=True)
    for fault in data.faults:
        content.note(Kind.MALFORMED, f"{description}: {fault}")
    content.categories = [{"id": index, "name": name} for index, name in data.names.items()]
    paths = [path for source in sources for path in _images(source, root, content)]
    for number, (path, header) in enumerate(zip(paths, read_headers(paths), strict=True), start=1):
        name = os.path.relpath(path, images_dir)
        if not isinstance(header, Header):
            kind = Kind.IMAGE_UNREADABLE if path.exists() else Kind.IMAGE_MISSING
            content.note(kind, f"image {number} ({name}): {header}")
            continue
        width, height = upright_size(*header)
        label_file = _label_file(path, root)
        image = {"id": number, "file_name": name, "width": width, "height": height}
        content.images.append(image | {"label_file": os.path.relpath(label_file, root)})
        _read_labels(label_file, number, (width, height), data, content)
    for source in sources:
        if source.is_dir():
            _note_strays(source, root, {_label_file(path, root) for path in paths}, content)
    return content


def _sources(images: Path, data: DataYaml) -> list[Path]:
    """Return all folders and lists of the split that begins with `images`."""
    for paths in data.splits.values():
        if os.path.abspath(paths[0]) == os.path.abspath(images):
            return paths
    return [images]


def _images(source: Path, root: Path, content: Content) -> Iterator[Path]:
    if source.is_dir():
        yield from image_files(source)
        return
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        content.note(Kind.IMAGE_MISSING, f"{source} is no image folder, and no list of images: {error}")
        return
    for line in filter(None, map(str.strip, lines)):
        candidates = [source.parent / line, root / line]
        yield Path(os.path.normpath(next((path for path in candidates if path.exists()), candidates[0])))


def _label_file(path: Path, root: Path) -> Path:
    """Return where the labels of an image lie; folders above the data set may be called `images` too."""
    base = root if path.is_relative_to(root) else Path()
    folders = list(path.relative_to(base).parent.parts if base is root else path.parent.parts)
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return Path(base, *folders, path.stem + ".txt")


def _read_labels(file: Path, image_id: int, size: Size, data: DataYaml, content: Content) -> None:
    """Add the boxes of one image to the content."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        content.note(Kind.MALFORMED, f"{file}: {error}")
        return
    for number, line in enumerate(lines, start=1):
        if not (words := line.split()):
            continue
        try:
            values = [float(word) for word in words]
            label = int(values[0])
            if label != values[0]:
                raise ValueError(f"{words[0]} is no class index")
            bbox = _bbox(values[1:], size, data.keypoints)
        except (ValueError, OverflowError) as error:
            content.note(Kind.MALFORMED, f"{file}:{number}: {error}")
            continue
        if label not in data.names:
            content.note(Kind.UNKNOWN_CATEGORY, f"{file}:{number}: there is no class {label}")
            continue
        content.annotations.append(
            {
                "id": len(content.annotations) + 1,
                "image_id": image_id,
                "category_id": label,
                "bbox": bbox,
                "iscrowd": 0,
                "line": number,
            }
        )


def _bbox(values: list[float], size: Size, keypoints: bool) -> list[float]:
    """Return [x, y, width, height] in pixels of a box, a box with keypoints, or a polygon."""
    if len(values) == 4 or (keypoints and len(values) > 4):
        left, top = values[0] - values[2] / 2, values[1] - values[3] / 2
        width, height = values[2:4]
    elif len(values) >= 6 and len(values) % 2 == 0:
        left, top = min(values[::2]), min(values[1::2])
        width, height = max(values[::2]) - left, max(values[1::2]) - top
    else:
        raise ValueError(
            f"{len(values) + 1} numbers; expected a class index and a box (4 numbers) or a polygon (2 for each corner)"
        )
    return [left * size[0], top * size[1], width * size[0], height * size[1]]


def _note_strays(source: Path, root: Path, expected: set[Path], content: Content) -> None:
    for folder, _, names in os.walk(_label_file(source / "_", root).parent, followlinks=True):
        for name in sorted(names):
            path = Path(folder, name)
            described = name == "classes.txt" or name.lower().startswith("readme")
            if path.suffix == ".txt" and not described and path not in expected:
                content.note(Kind.LABELS_WITHOUT_IMAGE, os.path.relpath(path, root))
