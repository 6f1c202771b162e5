"""Weights of a pretrained student: the file that pretraining leaves, and a detector that starts from it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detectors.detector import Detector
from detectors.flush import flush
from detectors.state_dict import find_state_dict
from vfmdistill.errors import InputError, WeightsError
from vfmdistill.weight_files import read_weights_file

TRAINED = "trained"  # in the metadata of a file: a JSON list of the names of what was trained

# What a file's names may be to a detector: its own, or those of its backbone, also as timm's classifiers have them,
# which say stages.0 where the extractor of maps says stages_0.
_READINGS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: "backbone." + re.sub(r"^stages\.(\d+)", r"stages_\1", name),
)


@dataclass(frozen=True)
class StudentReport:
    """What `load_student_weights` did.

    Attributes:
        taken: names of the detector's tensors that were filled.
        missing: names of the detector's tensors that the file does not have; they stay as they were.
        left: names of the file's tensors that were not taken → why.
    """

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    left: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} tensors filled: {_by_part(self.taken)}"]
        if self.missing:
            lines.append(f"{len(self.missing)} not given, which stay as they were drawn: {_by_part(self.missing)}")
        lines += [f"left aside in the file, {reason}: {names}" for reason, names in _by_reason(self.left)]
        return "\n".join(lines)


def save_student_weights(
    student: nn.Module, moved: Collection[Tensor], path: Path, about: Mapping[str, str]
) -> list[str]:
    """Write a student's state dict, under its own names, and which of it was trained. The file appears whole or not at
    all.

    Trained are the parameters that moved, and what belongs to them: statistics and other buffers, and what was frozen
    among them, such as a stem.

    Args:
        student: not wrapped.
        moved: those of its parameters that the optimizer has moved.
        path: a .safetensors file; one that is there is replaced.
        about: further metadata.

    Returns:
        The names of what was trained.

    Raises:
        InputError: the file cannot be written, for example for want of space.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = {key: value for key, value in student.state_dict().items() if isinstance(value, Tensor)}
    trained = _trained(student, moved, state)
    # Copies: safetensors takes no two names for one memory.
    tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, {"format": "pt", **about, TRAINED: json.dumps(trained)})
        flush(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"the student cannot be written to {path} ({error}); give a place that can.") from error
    return trained


@torch.no_grad()
def load_student_weights(model: Detector, source: Path) -> StudentReport:
    """Fill what a detector, or its backbone alone, has in common with another network, by name and shape.

    Classes are not compared: of a detector that was trained for other ones, score heads fit that mean something else.
    `load_initial_weights` is for those.

    Args:
        model: the detector.
        source: a file with a state dict. One that `save_student_weights` wrote says what of it was trained: nothing
            else is taken. Of other files all is taken that fits.

    Raises:
        WeightsError: the file cannot be read, or nothing in it fits; the detector is then as it was.
    """
    given = find_state_dict(read_weights_file(source))
    trained = _trained_names(source)
    own = model.state_dict()
    reading = max(
        _READINGS,
        key=lambda reading: sum(_misfit(tensor, own.get(reading(name))) is None for name, tensor in given.items()),
    )
    taken: dict[str, Tensor] = {}
    left: dict[str, str] = {}
    for name, tensor in given.items():
        misfit = _misfit(tensor, own.get(reading(name)))
        if trained is not None and name not in trained:
            misfit = "not trained there, being behind the tap or beside it"
        if misfit is None:
            taken[reading(name)] = tensor
        else:
            left[name] = misfit
    if not taken:
        reasons = "; ".join(f"{reason}: {names}" for reason, names in _by_reason(left)) or "it is empty"
        raise WeightsError(
            f"nothing in {source} fits a {model.spec.name!r} by name and shape ({reasons}). Expected names of the "
            f"detector, {_by_part(own)}, or of its backbone alone. Pretrain this model, or leave out --init."
        )
    for name, tensor in taken.items():
        own[name].copy_(tensor)
    return StudentReport(tuple(taken), tuple(name for name in own if name not in taken), left)


def _trained(student: nn.Module, moved: Collection[Tensor], state: Iterable[str]) -> list[str]:
    """Return which names of a state dict are those of trained parameters, or belong to them."""
    known = {id(parameter) for parameter in moved}
    parameters = list(student.named_parameters(remove_duplicate=False))
    trainable = {name: id(parameter) in known for name, parameter in parameters if parameter.requires_grad}

    def belongs(name: str) -> bool:
        """Whether something has moved in the nearest module around a tensor in which something can be trained."""
        home, dot, _ = name.rpartition(".")
        inside = [has_moved for other, has_moved in trainable.items() if other.startswith(home + dot)]
        return any(inside) if inside or not home else belongs(home)

    return [name for name in state if (trainable[name] if name in trainable else belongs(name))]


def _trained_names(source: Path) -> set[str] | None:
    """Return the names of what a safetensors file says was trained, None if it says nothing."""
    if source.suffix != ".safetensors":
        return None
    from safetensors import safe_open

    with safe_open(source, framework="pt") as file:
        said: Any = (file.metadata() or {}).get(TRAINED)
    if said is None:
        return None
    try:
        names = json.loads(said)
    except ValueError:
        names = None
    if not isinstance(names, list):
        raise WeightsError(f"{source} says in its metadata {TRAINED}={said[:60]!r}; expected a JSON list of names.")
    return set(names)


def _misfit(tensor: Tensor, target: Tensor | None) -> str | None:
    """Say why a tensor has no place."""
    if target is None:
        return "unknown to the detector"
    return None if target.shape == tensor.shape else "of another shape in the detector"


def _by_reason(left: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return each reason with the parts of the tensors that were left aside for it."""
    return [
        (reason, _by_part(name for name, other in left.items() if other == reason))
        for reason in sorted(set(left.values()))
    ]


def _by_part(names: Iterable[str]) -> str:
    """["a.b", "a.c", "d"] → "a (2), d (1)": of which parts they are."""
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{part} ({count})" for part, count in counts.items()) or "no tensor"
