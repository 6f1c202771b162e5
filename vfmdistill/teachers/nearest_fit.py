"""Which teacher a file may belong to that does not fit the one it was given for."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vfmdistill.teachers.catalog import CATALOG

# Files hold a little beside the network: mask tokens, biases that are zero.
_TOLERANCE = 0.002


def nearest_fit(state: Mapping[str, Tensor], name: str) -> str:
    """Return a sentence, with a space in front, that names the teacher of the catalogue with as many parameters.

    The asked teacher's own family comes first. The sentence is empty if none has as many, or if the asked one has.

    Args:
        state: names and tensors of the file.
        name: the teacher that was asked for.
    """
    held = sum(tensor.numel() for tensor in state.values())
    family = CATALOG[name].family if name in CATALOG else None
    alike = [spec for spec in CATALOG.values() if abs(spec.params - held) <= _TOLERANCE * held]
    ranked = sorted(alike, key=lambda spec: (spec.family != family, abs(spec.params - held), spec.name != name))
    return f" The one given is as large as that of {ranked[0].name!r}." if ranked and ranked[0].name != name else ""
