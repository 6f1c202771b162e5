"""FeatureCache: what a teacher said about an image before, kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vfmdistill.errors import DistillError, InputError
from vfmdistill.teachers.cache_entry import Entry, Features, difference, from_file, join, split, to_file
from vfmdistill.teachers.cache_manifest import claim
from vfmdistill.teachers.identity import Identity, as_bytes, fingerprint

_PARTIAL = "partial"  # the folder of files that are being written
_ABANDONED = 24 * 3600  # seconds after which such a file has no writer any more
_COMPARED = 1000  # one in so many images that are found is computed again
_LIKE = 0.2  # relative difference that devices and precisions explain; other features are further off
_PARTS = 64  # of the limit: after each, the folder is measured again, as other processes write too


class FeatureCache:
    """A folder that holds the features of one teacher for the images that it has seen.

    Features are found by a digest of the very pixels that reach the network, the grid and the teacher, weights
    included. So an image that differs in one pixel, or is flipped, is another image, and features of another are never
    served. This pays in training without augmentation, where the same pixels come in every epoch; a random flip doubles
    what is stored; crops, jitter, mosaic and changing sizes make every image new: do without a cache then. Digesting
    and reading run on the host, which a small teacher on a fast GPU outruns.

    What decides the features and cannot be digested, as the code of a module that a user brings, is watched by example:
    the first image that is found, and one in a thousand after it, is computed again and compared.

    Each image is a safetensors file, which is memory-mapped for reading, guarded by a checksum, and put in place by
    renaming, so that any number of threads and processes may share the folder, which may be read-only where nothing is
    missing. A map takes C · h · w numbers in the teacher's precision: 0.6 MB for 768 channels, 20 × 20 cells and
    bfloat16.

    Args:
        directory: of this teacher alone; made at the first use.
        limit: bytes at which no more images are added; several processes may pass it by a few percent each.
        patience: images after which a cache in which none was ever found says so, in a warning. Give more than the
            data set has.

    Attributes:
        directory: the folder.
        hits: images that were found.
        misses: images that were not.

    Raises:
        InputError: limit or patience is below 1.
    """

    def __init__(self, directory: str | Path, *, limit: int | None = None, patience: int = 10_000) -> None:
        if (limit is not None and limit < 1) or patience < 1:
            raise InputError(
                f"limit={limit}, patience={patience}; expected a number of bytes or None, and one of images, from 1."
            )
        self.directory = Path(directory).expanduser()
        self.hits = self.misses = 0
        self._limit = limit
        self._patience = patience
        self._warned = False
        self._owner = ""  # fingerprint of the teacher
        self._partial = self.directory / _PARTIAL
        self._used = self._added = 0  # bytes in the folder when it was measured, and added by us since
        self._trusted = 0  # images that may be found before one is compared

    def open(self, identity: Identity) -> None:
        """Make sure that the folder belongs to a teacher, and make it that teacher's if it is new.

        Raises:
            InputError: it is another teacher's, or holds other things.
            DistillError: it cannot be made or read.
        """
        claim(self.directory, identity)
        self._owner = fingerprint(identity)
        self._trusted = 0
        with contextlib.suppress(OSError):  # another process was faster, or the folder is read-only
            for file in self._partial.iterdir():
                if time.time() - file.stat().st_mtime > _ABANDONED:
                    file.unlink()
        if self._limit is not None:
            self._measure()

    def features(self, pixels: Tensor, grid: tuple[int, int], compute: Callable[[Tensor], Features]) -> Features:
        """Return the features of a batch, computing and keeping those that are not there.

        Args:
            pixels: (N, 3, H, W), as the network gets them.
            grid: of the map.
            compute: gives map (M, C, h, w) and summary (M, D) or None for some of the images.

        Raises:
            InputError: an entry is damaged, or not what compute gives.
            DistillError: an entry cannot be read or written.
        """
        keys = [self._key(image, grid) for image in pixels.detach().cpu()]
        entries = {key: from_file(self._path(key), key) for key in dict.fromkeys(keys)}
        missing = [key for key, entry in entries.items() if entry is None]
        found = {key: entry for key, entry in entries.items() if entry is not None}
        self._count(len(found), len(missing))
        if found and self._trusted <= 0:
            first = next(iter(found))
            self._compare(found[first], compute(pixels[[keys.index(first)]]))
        self._trusted -= len(found)
        if not missing:
            return join([found[key] for key in keys], pixels.device)
        all_new = len(missing) == len(keys)
        computed = compute(pixels if all_new else pixels[[keys.index(key) for key in missing]])
        for key, entry in zip(missing, split(computed, torch.device("cpu")), strict=True):
            self._write(key, entry)
        if all_new:
            return computed
        rows = dict(zip(missing, split(computed, pixels.device), strict=True))
        if found:  # moved together, not one by one
            rows |= zip(found, split(join([*found.values()], pixels.device), pixels.device), strict=True)
        return join([rows[key] for key in keys], pixels.device)

    def _compare(self, kept: Entry, computed: Features) -> None:
        """See that what was found is what the teacher gives for that image now; then trust the next ones."""
        (fresh,) = split(computed, torch.device("cpu"))
        if (apart := difference(kept, fresh)) > _LIKE:
            raise InputError(
                f"the feature cache {str(self.directory)!r} holds other features for an image than the teacher gives "
                f"now; they differ by {apart:.0%} of their length. Something has changed that the digest of the "
                "weights does not show, such as the code of a module. Delete the folder."
            )
        self._trusted = _COMPARED

    def _key(self, image: Tensor, grid: tuple[int, int]) -> str:
        digest = hashlib.sha256(f"{self._owner} {tuple(grid)} {tuple(image.shape)} {image.dtype};".encode())
        digest.update(as_bytes(image))
        return digest.hexdigest()

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key[2:]}.safetensors"

    def _write(self, key: str, entry: Entry) -> None:
        content = to_file(entry, key)
        if not self._has_room(len(content)):
            return
        path, partial = self._path(key), self._partial / uuid.uuid4().hex
        try:
            for folder in (path.parent, self._partial):
                folder.mkdir(exist_ok=True)
            with partial.open("xb") as file:
                file.write(content)
            partial.replace(path)
        except BaseException as error:
            with contextlib.suppress(OSError):  # where nothing can be written, nothing is left either
                partial.unlink()
            if not isinstance(error, OSError):
                raise
            if not path.exists():  # else another process has written it and maps it, where that forbids replacing
                raise self._unwritable(error) from error

    def _has_room(self, size: int) -> bool:
        if self._limit is None:
            return True
        if self._added > self._limit / _PARTS:
            self._measure()
        if self._used + self._added + size > self._limit:
            return False
        self._added += size
        return True

    def _measure(self) -> None:
        used = 0
        for file in self.directory.glob("??/*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # somebody has deleted it meanwhile
                used += file.stat().st_size
        self._used, self._added = used, 0

    def _count(self, hits: int, misses: int) -> None:
        self.hits += hits
        self.misses += misses
        if self.hits or self.misses < self._patience or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"none of the first {self.misses} images was in the feature cache {str(self.directory)!r}. In a first "
            "epoch that is as it should be. If each image has come before, augmentation changes it every time: the "
            "cache is of no use and only fills the disk; drop cache=. FeatureCache(directory, patience=N) waits for N "
            "images before it says so.",
            stacklevel=3,
        )

    def _unwritable(self, error: OSError) -> DistillError:
        return DistillError(
            f"the feature cache {str(self.directory)!r} cannot be written: {error.strerror or error}. What it holds is "
            "whole. Make room, give another folder, FeatureCache(directory, limit=BYTES), or drop cache=."
        )
