"""One training step of each kind of decoder: what goes into the criterion, and the gradients that come back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import detectors
from detectors.losses import check_finite

# The smallest of each kind, with two decoder layers.
MODELS = {"edge distributions": "deim_n", "boxes": "rtdetrv2_r18", "boxes, matchability": "deim_rtdetrv2_r18"}
OPTIONS = {"decoder_layers": 2, "decoder_eval_index": -1, "num_queries": 20, "num_denoising": 10}


def targets_with(*counts: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "labels": torch.randint(0, 5, (count,), generator=generator),
            "boxes": 0.2 + 0.4 * torch.rand(count, 4, generator=generator),
            "image_id": torch.tensor(100 + image),
        }
        for image, count in enumerate(counts)
    ]


def step(
    name: str,
    *counts: int,
    size: tuple[int, int] = (64, 96),
    autocast: torch.dtype | None = None,
    **options: object,
) -> tuple[detectors.Detector, dict[str, Tensor], dict[str, Tensor]]:
    """Return a detector with its gradients, what it said, and the losses."""
    torch.manual_seed(0)
    model = detectors.build(name, num_classes=5, **{**OPTIONS, **options}).train()
    with torch.no_grad():
        for parameter in model.decoder.parameters():  # box heads start with zeros, behind which nothing learns yet
            parameter.add_(0.02 * torch.randn_like(parameter))
    criterion = detectors.build_criterion(model.spec, num_classes=5)
    targets = targets_with(*counts)
    maps = model.encoder(model.backbone(torch.rand(len(counts), 3, *size)))
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        outputs = model.decoder(maps, targets)
        losses = criterion(outputs, targets)
    torch.stack(list(losses.values())).sum().backward()
    return model, outputs, losses


def without_gradient(model: detectors.Detector) -> set[str]:
    """Return the names of the parameters that the step would leave as they are."""
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and ".lab." not in name  # a batch norm behind it undoes it: its gradient is a rounding error
        and (parameter.grad is None or not parameter.grad.any())
    }


@pytest.mark.parametrize("name", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("counts", [(3, 0), (0, 0)], ids=["one image without boxes", "no boxes"])
def test_every_part_learns(name: str, counts: tuple[int, ...]) -> None:
    model, _, losses = step(name, *counts)
    check_finite(losses)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    suffixes = {"", "_aux_0", "_enc_0"} | ({"_pre"} if model.spec.decoder == "dfine" else set())
    if any(counts):
        suffixes |= {"_dn_0", "_dn_1"} | ({"_dn_pre"} if model.spec.decoder == "dfine" else set())
    prefix = f"loss_{model.spec.classification}"
    assert {key.removeprefix(prefix) for key in losses if key.startswith(prefix)} == suffixes
    silent = without_gradient(model)
    if any(counts):
        assert silent == set()
    else:  # classification alone: nothing pulls at boxes, and there are no denoising queries
        assert "decoder.denoising_embedding.weight" in silent
        assert not any(
            "score_head" in parameter or parameter.startswith(("backbone", "encoder")) for parameter in silent
        )


@pytest.mark.parametrize("name", MODELS.values(), ids=MODELS)
def test_a_single_layer_trains(name: str) -> None:
    model, _, losses = step(name, 2, decoder_layers=1)
    check_finite(losses)
    assert without_gradient(model) == set()


@pytest.mark.parametrize("name", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_boxes_and_losses_stay_in_float32(name: str, dtype: torch.dtype) -> None:
    model, outputs, losses = step(name, 3, 0, autocast=dtype)
    check_finite(losses)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    lists = [outputs["aux_outputs"], outputs["enc_aux_outputs"], outputs["dn_outputs"]]
    every = [outputs, *(output for entries in lists for output in entries)]
    assert {output["pred_boxes"].dtype for output in every} == {torch.float32}
    assert outputs["pred_logits"].dtype == dtype, "autocast had no effect"
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("name", "width", "cells"), [("deim_n", 832, 130), ("rtdetrv2_r18", 448, 294)])
def test_queries_from_the_border_stay_finite(name: str, width: int, cells: int) -> None:
    """As many queries as cells of a picture that is so wide that anchors lie within a hundredth of its border."""
    model, outputs, losses = step(name, 3, 0, size=(32, width), num_queries=cells)
    proposals = outputs["enc_aux_outputs"][0]["pred_boxes"]  # type: ignore[index, call-overload]
    assert proposals.shape[1] == cells
    assert (proposals == 1).all(-1).any(), "no border anchor was among them"
    check_finite(losses)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
