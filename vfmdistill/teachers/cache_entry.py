"""The features of one image as a file: safetensors, with a checksum that also says whose image it is."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from vfmdistill.errors import DistillError, InputError
from vfmdistill.teachers.identity import as_bytes

Features: TypeAlias = tuple[Tensor, Tensor | None]
Entry: TypeAlias = dict[str, Tensor]


def to_file(entry: Entry, key: str) -> bytes:
    """Return what the file of an entry holds."""
    from safetensors.torch import save

    own = {name: tensor.clone() for name, tensor in entry.items()}  # a summary may be a view of the map
    return save(own, metadata={"checksum": _checksum(entry, key)})


def from_file(path: Path, key: str) -> Entry | None:
    """Return an entry, memory-mapped, or None if there is no such file.

    Raises:
        InputError: the file is damaged, or another image's.
        DistillError: it cannot be read.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            checksum = (file.metadata() or {}).get("checksum")
            names: list[str] = file.keys()
            entry = {name: file.get_tensor(name) for name in names}
        if checksum == _checksum(entry, key):
            return entry
        reason = "its content does not fit its checksum"
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DistillError(
            f"the entry {str(path)!r} of the feature cache cannot be read: {error}. Look at the disk, or drop cache=."
        ) from error
    except Exception as error:  # of many kinds, for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(
        f"the entry {str(path)!r} of the feature cache is damaged: {reason}. Delete that file, and it is computed "
        "anew; if there are more, delete the folder and look at the disk."
    )


def split(features: Features, device: torch.device) -> list[Entry]:
    """Return the features of a batch as an entry for each image, on a device."""
    feature_map, summary = features
    maps = [{"map": image} for image in feature_map.detach().to(device).contiguous()]
    if summary is None:
        return maps
    summaries = summary.detach().to(device).contiguous()
    return [{**entry, "summary": image} for entry, image in zip(maps, summaries, strict=True)]


def difference(kept: Entry, fresh: Entry) -> float:
    """Return how far apart two entries are: the largest |kept - fresh| / |fresh| of their tensors, in Euclidean length.

    It is infinite where they do not hold tensors of the same names and shapes.
    """
    if {name: tensor.shape for name, tensor in kept.items()} != {name: tensor.shape for name, tensor in fresh.items()}:
        return float("inf")
    return max(
        float(torch.dist(kept[name].double(), fresh[name].double()) / fresh[name].double().norm().clamp_min(1e-12))
        for name in fresh
    )


def join(entries: Sequence[Entry], device: torch.device) -> Features:
    """Return entries as the features of a batch, on a device."""
    feature_map = torch.stack([entry["map"] for entry in entries]).to(device)
    if "summary" not in entries[0]:
        return feature_map, None
    return feature_map, torch.stack([entry["summary"] for entry in entries]).to(device)


def _checksum(entry: Entry, key: str) -> str:
    value = zlib.crc32(key.encode())
    for name, tensor in sorted(entry.items()):
        value = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode(), value)
        value = zlib.crc32(as_bytes(tensor), value)
    return f"{value:08x}"
