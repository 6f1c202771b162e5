"""Parity with the authors' code: RT-DETRv4-S with weights that follow from their names gives their numbers.

All expected numbers come from the authors' code (RT-DETRv4, commit df44122) on a CPU in float64, with the weights,
images and targets that this file makes. Batch norm statistics are those of one batch: 2 images of 640 × 640, seed 100.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import detectors
from detectors.detector import Detector
from detectors.key_maps import reference_key
from vfmdistill.injector import SemanticInjector

TARGETS = [
    {
        "labels": torch.tensor([0, 17, 79]),
        "boxes": torch.tensor([[0.30, 0.40, 0.20, 0.30], [0.65, 0.55, 0.50, 0.40], [0.52, 0.21, 0.06, 0.08]]),
    },
    {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
]


def weights_named(name: str, shape: Iterable[int]) -> Tensor:
    """Return the weights that a tensor of this name and shape has in both implementations."""
    shape = tuple(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    last = name.split(".")[-1]
    if "bias" in last and (len(shape) == 1 or last == "bias"):
        return 0.1 * torch.randn(shape, generator=generator)
    if len(shape) <= 1:
        return 0.8 + 0.4 * torch.rand(shape, generator=generator)
    gain = 0.05 if "sampling_offsets" in name else 0.1 if "bbox" in name else 1.0
    return gain * torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5


def smooth_images(count: int, height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, height // 32, width // 32, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return (0.8 * smooth + 0.2 * torch.rand(count, 3, height, width, generator=generator)).clamp(0, 1)


@pytest.fixture(scope="module")
def model() -> Detector:
    model = detectors.build("rtdetrv4_s", num_classes=80)
    constants = ("decoder.up", "decoder.reg_scale")
    state = {}
    for key, value in model.state_dict().items():
        drawn = value.is_floating_point() and "running_" not in key and key not in constants
        state[reference_key(key)] = weights_named(reference_key(key), value.shape) if drawn else value
    detectors.load_reference_checkpoint(model, state)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(smooth_images(2, 640, 640, seed=100))
    for norm in norms:
        norm.momentum = 0.1
    return model


def test_number_of_parameters(model: Detector) -> None:
    parts = [sum(p.numel() for p in part.parameters()) for part in (model.backbone, model.encoder, model.decoder)]
    assert parts == [1_850_396, 4_021_504, 4_449_977]
    assert sum(p.numel() for p in model.parameters()) == 10_321_877


@pytest.mark.parametrize(
    ("size", "seed", "encoder", "logits", "boxes", "best"),
    [
        (
            (640, 640), 200,
            (0.38663167, 0.38991484, 0.39996580),
            (-0.07303522, 1.07964265, 2.56425090),
            (0.46844830, 0.43998255, 0.07400826, 0.08609839),
            (38, 3.99548316, (0.61661601, 0.01476594, 0.05254081, 0.06150852)),
        ),
        (
            (320, 480), 201,
            (0.38027579, 0.38278845, 0.39205586),
            (-0.10647118, 1.04824064, 2.47346528),
            (0.50789889, 0.47898174, 0.07229437, 0.08417932),
            (25, 4.03192997, (0.12386433, 0.32835150, 0.05252598, 0.06153291)),
        ),
    ],
)  # fmt: skip
@torch.no_grad()
def test_outputs(
    model: Detector,
    size: tuple[int, int],
    seed: int,
    encoder: tuple[float, ...],
    logits: tuple[float, ...],
    boxes: tuple[float, ...],
    best: tuple[int, float, tuple[float, ...]],
) -> None:
    """Mean |x| of each encoder map; mean and deviation of the logits and mean best logit; mean box; the best query."""
    model.eval()
    features = model.encoder(model.backbone(smooth_images(1, *size, seed=seed)))
    outputs = model.decoder(features)
    assert [x.abs().mean().item() for x in features] == pytest.approx(encoder, rel=1e-5)

    scores, found = outputs["pred_logits"][0], outputs["pred_boxes"][0]
    top = scores.amax(dim=1)
    assert scores.shape == (300, 80)
    assert [scores.mean().item(), scores.std().item(), top.mean().item()] == pytest.approx(logits, abs=1e-4)
    assert found.mean(dim=0).tolist() == pytest.approx(boxes, abs=1e-5)
    query = top.argmax()
    label, logit, box = best
    assert scores[query].argmax() == label
    assert top[query].item() == pytest.approx(logit, abs=2e-4)
    assert found[query].tolist() == pytest.approx(box, abs=1e-5)


LOSSES = {
    "loss_mal": 6324.464465022498, "loss_bbox": 2.357968229888166, "loss_giou": 1.997814429000243,
    "loss_fgl": 0.26858495537033167,
    "loss_mal_aux_0": 5730.845421389429, "loss_bbox_aux_0": 2.3556384116671936, "loss_giou_aux_0": 1.996305355888663,
    "loss_fgl_aux_0": 0.26825424914610707, "loss_ddf_aux_0": 0.013694473657414228,
    "loss_mal_aux_1": 6285.9347113581925, "loss_bbox_aux_1": 2.3625211739684575, "loss_giou_aux_1": 2.0000426057511502,
    "loss_fgl_aux_1": 0.26794885860424605, "loss_ddf_aux_1": 0.006936935557188481,
    "loss_mal_pre": 6721.191052876485, "loss_bbox_pre": 2.3592924657171963, "loss_giou_pre": 2.0002737372729964,
    "loss_mal_enc_0": 7015.402693759824, "loss_bbox_enc_0": 2.3584708556461678, "loss_giou_enc_0": 2.0371813122856532,
}  # fmt: skip
SEMANTIC_LOSS = 4.992951424050808  # weighted with λ = 5
GRADIENT_NORMS = {"backbone": 32245.80273988169, "encoder": 3651.885217754886, "decoder": 24198.67438557898}
SHARE = 1.5942705560979689  # percent


def test_training_step(model: Detector) -> None:
    """Every loss, the L2 gradient norms (the projector counts to the encoder) and the share, to 0.1 %."""
    model = copy.deepcopy(model).train()
    injector = SemanticInjector(256, 768)
    with torch.no_grad():
        for leaf, parameter in injector.projector.named_parameters():
            parameter.copy_(weights_named(f"encoder.feature_projector.0.{leaf.split('.')[-1]}", parameter.shape))

    (tap,) = model.taps(model)
    f5: list[Tensor] = []
    hook = tap.module.register_forward_hook(lambda _module, _inputs, output: f5.append(output))
    images = smooth_images(2, 320, 320, seed=300)
    outputs = model(images)  # no targets: the numbers are those without denoising
    hook.remove()
    losses = detectors.build_criterion("rtdetrv4_s", num_classes=80)(outputs, TARGETS)
    semantic = 5.0 * injector(model.feature_map(tap, f5[0], images), weights_named("teacher", (2, 768, 10, 10)))
    (torch.stack(list(losses.values())).sum() + semantic).backward()

    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(LOSSES, rel=1e-3)
    assert semantic.item() == pytest.approx(SEMANTIC_LOSS, rel=1e-3)

    def gradients(*modules: nn.Module) -> list[Tensor]:
        return [p.grad.double() for module in modules for p in module.parameters() if p.grad is not None]

    norms = {
        "backbone": gradients(model.backbone),
        "encoder": gradients(model.encoder, injector),
        "decoder": gradients(model.decoder),
    }
    measured = {part: torch.stack([g.norm() for g in grads]).norm().item() for part, grads in norms.items()}
    assert measured == pytest.approx(GRADIENT_NORMS, rel=1e-3)

    tapped, everything = (
        sum(g.abs().sum() for g in grads) for grads in (gradients(tap.module), gradients(model, injector))
    )
    assert (100 * tapped / everything).item() == pytest.approx(SHARE, rel=1e-3)
