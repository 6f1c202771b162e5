"""deploy: a detector re-parameterised for inference."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import nn

from vfmdistill.errors import InputError

if TYPE_CHECKING:
    from detectors.detector import Detector


def deploy(model: Detector) -> Detector:
    """Return a copy of a detector that gives the same outputs faster, and cannot be trained.

    Batch norms, affine blocks and RepVGG branches become part of convolutions; decoder layers behind the answering one,
    heads that do not answer and the denoising embedding are left out. Hooks are not copied: the copy of a student that
    is attached to a teacher holds nothing of the distiller. The given detector stays as it is.

    Which tensors the copy has depends on the spec and the number of classes alone, so a state dict of one copy loads
    into another. A detector that is deployed already is only copied.

    Args:
        model: the detector itself, not what wraps it (`DistributedDataParallel.module`, …); in any mode.

    Returns:
        The copy, in eval mode, without gradients, on the same device and in the same dtype.

    Raises:
        InputError: `model` is not a detector.
    """
    from detectors.folding import fold_affines, fold_branches, fold_norms
    from detectors.input_size import STRIDE

    with torch.inference_mode(False), torch.no_grad():  # tensors born in inference mode are of no use outside it
        twin = copy_for_inference(model)
        if not twin.deployed:
            weight = next(twin.parameters())
            fold_norms(twin, torch.zeros(1, 3, 2 * STRIDE, 2 * STRIDE, device=weight.device, dtype=weight.dtype))
            fold_branches(twin)
            fold_affines(twin.backbone)
            _cut_to_answer(twin)
            twin.deployed = True
    return twin.eval()  # also what was put in


def copy_for_inference(model: Detector) -> Detector:
    """Return a copy without hooks, in eval mode, without gradients.

    Raises:
        InputError: `model` is not a detector.
    """
    from detectors.detector import Detector

    if not isinstance(model, Detector):
        raise InputError(
            f"expected a detector, got {type(model).__name__}; unwrap it before (model.module, model._orig_mod)."
        )
    # The memo holds what deepcopy takes for copied already.
    memo = {
        id(hooks): OrderedDict[int, object]()
        for module in model.modules()
        for name, hooks in vars(module).items()
        if isinstance(hooks, OrderedDict) and (name.endswith("_hooks") or "_hooks_" in name)
    }
    return copy.deepcopy(model, memo).eval().requires_grad_(False)


def _cut_to_answer(model: Detector) -> None:
    """Leave out of the decoder what does not contribute to the answer."""
    decoder = model.decoder
    decoder.stages = nn.ModuleList(list(decoder.stages)[: decoder.eval_index + 1])
    for stage in list(decoder.stages)[:-1]:
        for head in ("score_head", "quality"):
            if hasattr(stage, head):
                setattr(stage, head, nn.Identity())
    decoder.denoising_embedding = None
