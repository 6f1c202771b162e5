"""Checkpoint: weights from wherever they come, with the names that our tensors have there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detectors.coco_names import COCO_IDS, COCO_NAMES, in_coco_spelling
from detectors.detector import Detector
from detectors.detector_config import CONFIG, FORMAT, read_json
from detectors.key_maps import IGNORED, reference_key
from detectors.key_maps_transformers import TRANSFORMERS_IGNORED, TRANSFORMERS_SPELLINGS, transformers_keys
from detectors.pretrained import WEIGHTS, read_pretrained
from detectors.state_dict import find_state_dict, read_tensors
from detectors.transformers_config import read_transformers_config
from vfmdistill.errors import WeightsError
from vfmdistill.weight_files import read_weights_file

# A tensor of every detector, by which our names are told from the authors'.
OUR_SCORES = "decoder.selection.score_head.bias"

# RT-DETR's first version counts where later ones name.
_SPELLINGS: tuple[tuple[str, str], ...] = (
    (r"^encoder\.input_proj\.(\d+)\.0\.", r"encoder.input_proj.\1.conv."),
    (r"^encoder\.input_proj\.(\d+)\.1\.", r"encoder.input_proj.\1.norm."),
    (r"^decoder\.enc_output\.0\.", "decoder.enc_output.proj."),
    (r"^decoder\.enc_output\.1\.", "decoder.enc_output.norm."),
)

_COUNTERS = ((r"\.num_batches_tracked$", "counts steps of a batch norm that is frozen here"),)

# Settings in which a detector may differ from one whose weights it takes over: they say how it is trained, and how many
# queries and layers it uses.
_FREE = {
    "name", "family", "input_size", "backbone_freeze_norms", "backbone_freeze_stem", "num_queries",
    "decoder_eval_index", "num_denoising", "label_noise", "box_noise", "denoising_flip",
    "classification", "gamma", "alpha", "union_matching",
    "weight_classification", "weight_bbox", "weight_giou", "weight_fgl", "weight_ddf",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a detector, not yet under our names."""

    tensors: dict[str, Tensor]
    names: Callable[[str], tuple[str, ...]]
    """Our name of a tensor → its names among `tensors`; several are laid one behind the other."""
    ignored: tuple[tuple[str, str], ...] = ()
    """Patterns of names that are not needed, and why."""
    class_names: Sequence[str] | None = None
    category_ids: Sequence[int] | None = None
    license: str | None = None

    def get(self, key: str) -> Tensor | None:
        """Return the tensor for a name of ours, or None if it is not, or not wholly, there.

        Raises:
            WeightsError: its parts do not go together.
        """
        names = self.names(key)
        parts = [self.tensors[name] for name in names if name in self.tensors]
        if len(parts) < len(names):
            return None
        if len({part.shape for part in parts}) > 1:
            raise WeightsError(f"{', '.join(names)} must have one shape, got {[tuple(part.shape) for part in parts]}.")
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def open_checkpoint(source: str | Path | Mapping[str, Any], model: Detector) -> Checkpoint:
    """Read weights of any kind for a detector.

    Args:
        source: see `load_reference_checkpoint`.
        model: the detector that shall be filled; folders say how theirs was built, which is compared.

    Raises:
        WeightsError: the weights cannot be read, or a folder says that they belong to another kind of detector.
    """
    if isinstance(source, Mapping):
        return _from_state_dict(find_state_dict(source))
    if not isinstance(source, (str, os.PathLike)):
        raise WeightsError(f"weights come from a file, a folder or a state dict; got {type(source).__name__}.")
    path = Path(source).expanduser()
    if not path.is_dir():
        return _from_state_dict(find_state_dict(read_weights_file(path)))
    if read_json(path / CONFIG).get("format") == FORMAT:
        return _from_pretrained(path, model)
    return _from_transformers(path, model)


def _from_state_dict(tensors: dict[str, Tensor]) -> Checkpoint:
    if OUR_SCORES in tensors:
        return Checkpoint(tensors, _same_name, _COUNTERS)
    tensors = _respell(tensors, _SPELLINGS)
    return _published(tensors, lambda key: (reference_key(key),), IGNORED, None)


def _from_pretrained(directory: Path, model: Detector) -> Checkpoint:
    config, tensors = read_pretrained(directory)
    if config.deployed != model.deployed:
        raise WeightsError(
            f"{directory} holds a deployed detector, whose norms are folded in: load the one that it was made from, or "
            "use it as it is with detectors.from_pretrained."
            if config.deployed
            else f"{directory} holds a detector that is not deployed: load it before detectors.deploy."
        )
    theirs, ours = config.spec().model_dump(), model.spec.model_dump()
    differing = [field for field, value in theirs.items() if field not in _FREE and value != ours[field]]
    if differing:
        raise WeightsError(
            f"the {config.model!r} in {directory} is not built like this {model.spec.name!r}: it has "
            f"{', '.join(f'{field}={theirs[field]!r}' for field in differing)} instead of "
            f"{', '.join(f'{field}={ours[field]!r}' for field in differing)}."
        )
    return Checkpoint(tensors, _same_name, _COUNTERS, config.class_names, config.category_ids, config.license)


def _from_transformers(directory: Path, model: Detector) -> Checkpoint:
    config = read_transformers_config(directory)
    config.check(model.spec, directory)
    tensors = _respell(_read_shards(directory), TRANSFORMERS_SPELLINGS)
    return _published(tensors, transformers_keys, TRANSFORMERS_IGNORED, config.class_names)


def _published(
    tensors: dict[str, Tensor],
    names: Callable[[str], tuple[str, ...]],
    ignored: tuple[tuple[str, str], ...],
    class_names: Sequence[str] | None,
) -> Checkpoint:
    """Return a checkpoint of others; 80 classes of which nothing else is known are those of COCO."""
    scores = tensors.get(names(OUR_SCORES)[0])
    if class_names is None and scores is not None and scores.numel() == len(COCO_NAMES):
        class_names = COCO_NAMES
    if class_names is not None:
        class_names = in_coco_spelling(class_names)
    ids = COCO_IDS if class_names is not None and tuple(class_names) == COCO_NAMES else None
    return Checkpoint(tensors, names, ignored, class_names, ids)


def _read_shards(directory: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder with model.safetensors, or with several files and an index of them."""
    index = directory / f"{WEIGHTS}.index.json"
    if not index.is_file():
        return read_tensors(directory / WEIGHTS)
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(
        isinstance(shard, str) and shard == Path(shard).name for shard in shards.values()
    ):
        raise WeightsError(f"{index} is damaged: expected a weight_map from names to files of this folder.")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        tensors |= read_tensors(directory / shard)
    if absent := sorted(shards.keys() - tensors.keys()):
        raise WeightsError(f"the files that {index} lists lack {len(absent)} of its tensors (first: {absent[:3]}).")
    return tensors


def _respell(tensors: Mapping[str, Tensor], spellings: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Return the tensors under one spelling of their names.

    Raises:
        WeightsError: two spellings of a name hold different tensors.
    """
    respelled: dict[str, Tensor] = {}
    for name, value in tensors.items():
        spelling = name
        for pattern, replacement in spellings:
            spelling = re.sub(pattern, replacement, spelling)
        if spelling in respelled and not torch.equal(respelled[spelling], value):
            raise WeightsError(f"the checkpoint holds {spelling} twice, the second time as {name}, and they differ.")
        respelled[spelling] = value
    return respelled


def _same_name(key: str) -> tuple[str, ...]:
    return (key,)
