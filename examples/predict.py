"""Find objects in images, folders of images and videos.

    python examples/predict.py --model runs/train street.jpg photographs clip.mp4
    python examples/predict.py --model detector --threshold 0.3 --classes person,car --no-draw photographs

The output folder receives

    detections.json   what was found, in COCO's results format: image_id, category_id, bbox [x, y, width, height], score
    images.json       which image_id is which file, or frame of a video, and the names of the category ids; in COCO's
                      annotation format, so that COCO's tools read the two together
    drawn/            the images and videos with boxes, names and scores on them

Images are numbered from 1 in the order in which they are looked at. Boxes are in pixels of the image as it is shown,
turned as its EXIF orientation says. A detector that knows no category ids has its class indices, from 0, in their
place. What cannot be read is named at the end, and makes the exit status 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field
from pydantic_settings import CliPositionalArg
from torch import Tensor

from detectors import video
from detectors.command_line import PredictorOptions, parse_options, plain_console, track
from detectors.detections import Detections, class_index
from detectors.pixels import to_pixels
from detectors.predictor import Predictor
from vfmdistill import DistillError
from vfmdistill.errors import InputError

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class Options(PredictorOptions):
    """The command line."""

    sources: CliPositionalArg[list[Path]] = Field(description="images, videos, and folders to look through for both")
    output: Path = Field(Path("runs/predict"), description="folder that receives detections and drawn pictures")
    threshold: float = Field(0.5, ge=0, le=1, description="lowest score of a detection")
    classes: list[str] = Field([], description="names of the classes to keep, of the --top-k best; none: all")
    draw: bool = Field(True, description="also draw what was found")


class Shown(NamedTuple):
    """One picture to look at: its file, RGB pixels (3, H, W), and for a frame of a video its number and time."""

    path: Path
    pixels: Tensor
    frame: int | None = None
    seconds: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the number of files that could not be read."""
    options = parse_options(
        Options, arguments, program="predict.py", description="Find objects in images, folders of images and videos."
    )
    console = plain_console()
    if (options.output / "detections.json").exists():
        raise InputError(f"{options.output} holds detections already: name another --output.")
    files = find_files(options.sources)
    predictor = options.open(options.threshold)
    console.print(f"weights: {options.weights}", soft_wrap=True)
    classes = [class_index(name, predictor.class_names) for name in options.classes] or None
    failures: list[str] = []
    results = Results(predictor)
    options.output.mkdir(parents=True, exist_ok=True)
    with Drawings(options.output / "drawn" if options.draw else None) as drawings:
        pictures = track(read_pictures(files, failures), "looking", console, count_pictures(files))
        while batch := list(islice(pictures, options.batch_size)):
            for shown, found in zip(batch, predictor([shown.pixels for shown in batch]), strict=True):
                kept = found.filter(classes=classes)
                drawings.add(results.add(shown, kept), shown, kept)
    results.write(options.output)
    summary = f"{len(results.detections)} detections in {len(results.images)} pictures: {options.output}"
    console.print(summary, soft_wrap=True)
    if failures:
        print(f"{len(failures)} of {len(files)} files could not be read:", *failures, sep="\n  ", file=sys.stderr)
    return len(failures)


def find_files(sources: Iterable[Path]) -> list[Path]:
    """Return the files that are named, and the images and videos in the folders that are, in the order of names."""
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            found = sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
            known = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES | video.SUFFIXES]
            if not known:
                endings = " ".join(sorted(IMAGE_SUFFIXES | video.SUFFIXES))
                raise InputError(f"the folder {source} holds no image and no video; known endings: {endings}.")
            files += known
        elif source.is_file():
            files.append(source)
        else:
            raise InputError(f"there is no file or folder {source}.")
    return files


def is_video(path: Path) -> bool:
    """Tell a video from an image, by its ending."""
    return path.suffix.lower() in video.SUFFIXES


def read_pictures(files: Iterable[Path], failures: list[str]) -> Iterator[Shown]:
    """Yield images and frames; note what cannot be read, and go on."""
    for path in files:
        try:
            if is_video(path):
                for number, frame in enumerate(video.read_video(path)):
                    yield Shown(path, frame.pixels, number, frame.seconds)
            else:
                yield Shown(path, to_pixels(path))
        except InputError as error:
            failures.append(str(error))


def count_pictures(files: Iterable[Path]) -> int | None:
    """Return how many images and frames there will be, or None where a video does not tell."""
    count = 0
    for path in files:
        try:
            frames = video.video_info(path).frames if is_video(path) else 1
        except InputError:
            continue  # it is named when it is its turn
        if frames is None:
            return None
        count += frames
    return count


class Results:
    """The two JSON files. Where the detector knows no category ids, its class indices take their place."""

    def __init__(self, predictor: Predictor) -> None:
        self.category_ids = predictor.category_ids or list(range(len(predictor.class_names)))
        self.categories = [
            {"id": key, "name": name} for key, name in zip(self.category_ids, predictor.class_names, strict=True)
        ]
        self.images: list[dict[str, Any]] = []
        self.detections: list[dict[str, Any]] = []

    def add(self, shown: Shown, found: Detections) -> int:
        """Add what was found in a picture; return the picture's number."""
        image_id = len(self.images) + 1
        entry = {"id": image_id, "file_name": str(shown.path), "width": found.size[1], "height": found.size[0]}
        if shown.frame is not None:
            entry |= {"frame": shown.frame, "seconds": round(shown.seconds, 6)}
        self.images.append(entry)
        self.detections += found.to_coco(image_id, self.category_ids)
        return image_id

    def write(self, folder: Path) -> None:
        """Write detections.json and images.json."""
        content = {"info": {}, "images": self.images, "annotations": [], "categories": self.categories}
        (folder / "images.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        lines = ",\n".join(json.dumps(detection) for detection in self.detections)
        (folder / "detections.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


class Drawings:
    """Writes drawn images, and drawn frames as videos; names begin with the number of the picture or first frame."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer: video.VideoWriter | None = None
        self._source: Path | None = None

    def __enter__(self) -> Drawings:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()

    def add(self, image_id: int, shown: Shown, found: Detections) -> None:
        """Draw a picture."""
        if self._folder is None:
            return
        drawn = found.draw(shown.pixels)
        name = f"{image_id:06d}_{shown.path.stem}"
        if shown.frame is None:
            drawn.save(self._folder / f"{name}.jpg", quality=92)
            return
        if self._writer is None or self._source != shown.path or shown.frame == 0:
            self._finish()
            self._writer = video.VideoWriter(self._folder / f"{name}.mp4", video.video_info(shown.path).rate)
            self._source = shown.path
        self._writer.write(video.Frame(to_pixels(drawn), shown.seconds))

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


if __name__ == "__main__":
    try:
        unread = main()
    except DistillError as error:
        raise SystemExit(f"error: {error}") from None
    raise SystemExit(1 if unread else 0)
