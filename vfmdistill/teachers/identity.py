"""Who a teacher is, to the last bit of its weights."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import asdict
from importlib import metadata
from operator import itemgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from vfmdistill.teachers.readout import Readout
from vfmdistill.teachers.spec import TeacherSpec
from vfmdistill.version import __version__

Identity: TypeAlias = dict[str, Any]

_DISTRIBUTIONS = {"timm": "timm", "open_clip": "open-clip-torch", "transformers": "transformers"}
# The fields of a spec that features follow from.
_DECIDING = {"backend", "model_id", "patch_size", "embed_dim", "mean", "std"}


def identify(network: nn.Module, spec: TeacherSpec, readout: Readout, dtype: torch.dtype) -> Identity:
    """Return all that decides which features a network gives for an image, as JSON holds it.

    The weights are digested as they are, in the dtype that they have, which copies them to the host once; the device
    does not matter. The structure is what `print` shows. The versions are those of the code that reads the features.
    """
    versions = {"vfmdistill": __version__}
    if spec.backend in _DISTRIBUTIONS:
        versions[spec.backend] = metadata.version(_DISTRIBUTIONS[spec.backend])
    identity = {
        "teacher": spec.name,
        "dtype": str(dtype).removeprefix("torch."),
        "weights": _weights_digest(network),
        "readout": asdict(readout),
        "spec": spec.model_dump(mode="json", include=_DECIDING),
        "structure": hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(network)).encode()).hexdigest(),
        "versions": versions,
    }
    stored: Identity = json.loads(json.dumps(identity))
    return stored


def fingerprint(identity: Identity) -> str:
    """Return a digest of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _weights_digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    tensors = dict(itertools.chain(network.named_parameters(), network.named_buffers()))
    for name, tensor in sorted(tensors.items(), key=itemgetter(0)):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(as_bytes(tensor))
    return digest.hexdigest()


def as_bytes(tensor: Tensor) -> memoryview:
    """Return what a tensor holds, in the order of its indices."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
