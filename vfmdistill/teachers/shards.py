"""Weights that lie in several files, and folders that hold weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vfmdistill.errors import WeightsError
from vfmdistill.weight_files import read_weights_file

INDEX_ENDING = ".index.json"
# In the order of preference: whole before sharded, safetensors before PyTorch.
_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)


def read_weights(path: str | Path) -> Any:
    """Return what a weights file, an index of several, or a folder with either holds, on the CPU.

    Args:
        path: a weights file; an index as transformers writes it (``model.safetensors.index.json``), whose files lie
            beside it; or a folder as `save_pretrained` makes it.

    Raises:
        WeightsError: something is missing or damaged.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = _in_folder(path)
    return _from_shards(path) if path.name.endswith(INDEX_ENDING) and path.is_file() else read_weights_file(path)


def _in_folder(folder: Path) -> Path:
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"folder {str(folder)!r} holds no weights; expected one of {', '.join(_NAMES)}. Give the path of the file."
    )


def _from_shards(index: Path) -> dict[str, Tensor]:
    places = _places(index)
    missing = [name for name in sorted(set(places.values())) if not (index.parent / name).is_file()]
    if missing:
        raise WeightsError(
            f"{str(index)!r} lists files that do not lie beside it: {_listed(missing)}. Put all of them there."
        )
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        part = read_weights_file(index.parent / name)
        if not isinstance(part, dict):
            raise WeightsError(
                f"{str(index.parent / name)!r} holds no state dict; copy it again from where it is from."
            )
        tensors |= part
    absent = [key for key in places if key not in tensors]
    if absent:
        raise WeightsError(
            f"the files of {str(index)!r} lack {len(absent)} of its tensors: {_listed(absent)}. "
            "They are not from the same save; copy all files of one."
        )
    return tensors


def _places(index: Path) -> dict[str, str]:
    """Which file beside the index holds which tensor."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        # A name with a folder in it could point anywhere on this machine.
        plain = {str(key): str(name) for key, name in places.items() if Path(str(name)).name == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{str(index)!r} could not be read as an index of weights: {error!r}. It must be undamaged JSON with a "
            "weight_map from names of tensors to names of files, as transformers writes it."
        ) from error
    if not plain or len(plain) < len(places):
        bad = [str(name) for name in places.values() if str(name) not in plain.values()]
        raise WeightsError(
            f"{str(index)!r} must name files that lie beside it; it names {_listed(bad) if bad else 'none'}."
        )
    return plain


def _listed(names: Sequence[str], most: int = 6) -> str:
    return f"{', '.join(names[:most])}{', …' if len(names) > most else ''}"
