"""Parity with the authors' code: weights that follow from their names give their numbers, with either decoder.

All expected numbers come from the authors' code (RT-DETRv4, commit df44122) on a CPU in float64, with the weights,
images and targets that this file makes. Batch norm statistics are those of one batch: 2 images of 640 × 640, seed 100.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Iterable
from typing import NamedTuple

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


class Outputs(NamedTuple):
    """Of one image in evaluation mode."""

    size: tuple[int, int]
    seed: int
    encoder: tuple[float, ...]
    """Mean |x| of each encoder map."""
    logits: tuple[float, ...]
    """Mean and deviation of the logits, mean of the best logit of each query."""
    boxes: tuple[float, ...]
    """Mean box."""
    best: tuple[int, float, tuple[float, ...]]
    """Class, logit and box of the best query."""


class Numbers(NamedTuple):
    """What the authors' code gives."""

    parameters: list[int]
    outputs: list[Outputs]
    losses: dict[str, float]
    """Weighted, of a training step."""
    semantic_loss: float | None
    """The same, with λ = 5; None for a family without a teacher."""
    gradient_norms: dict[str, float]
    """L2; the projector counts to the encoder."""
    share: float
    """Percent."""


AUTHORS = {
    "rtdetrv4_s": Numbers(
        [1_850_396, 4_021_504, 4_449_977],
        [
            Outputs(
                (640, 640), 200,
                (0.38663167, 0.38991484, 0.39996580),
                (-0.07303522, 1.07964265, 2.56425090),
                (0.46844830, 0.43998255, 0.07400826, 0.08609839),
                (38, 3.99548316, (0.61661601, 0.01476594, 0.05254081, 0.06150852)),
            ),
            Outputs(
                (320, 480), 201,
                (0.38027579, 0.38278845, 0.39205586),
                (-0.10647118, 1.04824064, 2.47346528),
                (0.50789889, 0.47898174, 0.07229437, 0.08417932),
                (25, 4.03192997, (0.12386433, 0.32835150, 0.05252598, 0.06153291)),
            ),
        ],
        {
            "loss_mal": 6324.464465022498, "loss_bbox": 2.357968229888166, "loss_giou": 1.997814429000243,
            "loss_fgl": 0.26858495537033167,
            "loss_mal_aux_0": 5730.845421389429, "loss_bbox_aux_0": 2.3556384116671936,
            "loss_giou_aux_0": 1.996305355888663, "loss_fgl_aux_0": 0.26825424914610707,
            "loss_ddf_aux_0": 0.013694473657414228,
            "loss_mal_aux_1": 6285.9347113581925, "loss_bbox_aux_1": 2.3625211739684575,
            "loss_giou_aux_1": 2.0000426057511502, "loss_fgl_aux_1": 0.26794885860424605,
            "loss_ddf_aux_1": 0.006936935557188481,
            "loss_mal_pre": 6721.191052876485, "loss_bbox_pre": 2.3592924657171963,
            "loss_giou_pre": 2.0002737372729964,
            "loss_mal_enc_0": 7015.402693759824, "loss_bbox_enc_0": 2.3584708556461678,
            "loss_giou_enc_0": 2.0371813122856532,
        },
        4.992951424050808,
        {"backbone": 32245.80273988169, "encoder": 3651.885217754886, "decoder": 24198.67438557898},
        1.5942705560979689,
    ),
    "rtdetrv2_r18": Numbers(
        [11_199_968, 4_965_120, 4_019_376],
        [
            Outputs(
                (640, 640), 200,
                (0.39750088, 0.41419683, 0.47608333),
                (0.02490737, 1.03886514, 2.38475655),
                (0.47569653, 0.45975207, 0.07351282, 0.05407618),
                (52, 3.74742198, (0.87939054, 0.67004532, 0.10690723, 0.07895514)),
            ),
            Outputs(  # all 80 cells at the border are among the chosen
                (320, 480), 201,
                (0.40745780, 0.41541691, 0.45760082),
                (0.03469189, 1.04483239, 2.47451131),
                (0.45606227, 0.44118422, 0.07141348, 0.05247109),
                (38, 3.97478890, (0.24398661, 0.98477066, 0.05371612, 0.03896640)),
            ),
        ],
        {
            "loss_vfl": 4333.897918445756, "loss_bbox": 2.0982571839319064, "loss_giou": 1.766236539407738,
            "loss_vfl_aux_0": 3904.587021459911, "loss_bbox_aux_0": 2.6896414119619925,
            "loss_giou_aux_0": 2.2379345103151516,
            "loss_vfl_aux_1": 4614.228560420504, "loss_bbox_aux_1": 2.0234585714009667,
            "loss_giou_aux_1": 1.6737507107052572,
            "loss_vfl_enc_0": 4580.098966808964, "loss_bbox_enc_0": 3.0846906815363284,
            "loss_giou_enc_0": 2.240173543686744,
        },
        None,
        {"backbone": 14645.983000230455, "encoder": 3818.507425182493, "decoder": 14279.20354049933},
        0.9892893196264713,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=AUTHORS)
def model(request: pytest.FixtureRequest) -> Detector:
    model = detectors.build(request.param, num_classes=80)
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
    assert parts == AUTHORS[model.spec.name].parameters
    assert sum(p.numel() for p in model.parameters()) == sum(parts)


@pytest.mark.parametrize("index", [0, 1], ids=["square", "oblong"])
@torch.no_grad()
def test_outputs(model: Detector, index: int) -> None:
    model.eval()
    expected = AUTHORS[model.spec.name].outputs[index]
    features = model.encoder(model.backbone(smooth_images(1, *expected.size, seed=expected.seed)))
    outputs = model.decoder(features)
    assert [x.abs().mean().item() for x in features] == pytest.approx(expected.encoder, rel=1e-5)

    scores, found = outputs["pred_logits"][0], outputs["pred_boxes"][0]
    top = scores.amax(dim=1)
    assert scores.shape == (300, 80)
    assert [scores.mean().item(), scores.std().item(), top.mean().item()] == pytest.approx(expected.logits, abs=1e-4)
    assert found.mean(dim=0).tolist() == pytest.approx(expected.boxes, abs=1e-5)
    query = top.argmax()
    label, logit, box = expected.best
    assert scores[query].argmax() == label
    assert top[query].item() == pytest.approx(logit, abs=2e-4)
    assert found[query].tolist() == pytest.approx(box, abs=1e-5)


def test_training_step(model: Detector) -> None:
    """Every loss, the gradient norms and the share, to 0.1 %."""
    model = copy.deepcopy(model).train()
    expected = AUTHORS[model.spec.name]
    (tap,) = model.taps(model)
    f5: list[Tensor] = []
    hook = tap.module.register_forward_hook(lambda _module, _inputs, output: f5.append(output))
    images = smooth_images(2, 320, 320, seed=300)
    outputs = model(images)  # no targets: the numbers are those without denoising
    hook.remove()
    losses = detectors.build_criterion(model.spec, num_classes=80)(outputs, TARGETS)
    total = torch.stack(list(losses.values())).sum()
    injector = SemanticInjector(256, 768)
    if expected.semantic_loss is not None:
        with torch.no_grad():
            for leaf, parameter in injector.projector.named_parameters():
                name = f"encoder.feature_projector.0.{leaf.split('.')[-1]}"
                parameter.copy_(weights_named(name, parameter.shape))
        semantic = 5.0 * injector(model.feature_map(tap, f5[0], images), weights_named("teacher", (2, 768, 10, 10)))
        assert semantic.item() == pytest.approx(expected.semantic_loss, rel=1e-3)
        total = total + semantic
    total.backward()
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected.losses, rel=1e-3)

    def gradients(*modules: nn.Module) -> list[Tensor]:
        return [p.grad.double() for module in modules for p in module.parameters() if p.grad is not None]

    norms = {
        "backbone": gradients(model.backbone),
        "encoder": gradients(model.encoder, injector),
        "decoder": gradients(model.decoder),
    }
    measured = {part: torch.stack([g.norm() for g in grads]).norm().item() for part, grads in norms.items()}
    assert measured == pytest.approx(expected.gradient_norms, rel=1e-3)

    tapped, everything = (
        sum(g.abs().sum() for g in grads) for grads in (gradients(tap.module), gradients(model, injector))
    )
    assert (100 * tapped / everything).item() == pytest.approx(expected.share, rel=1e-3)
