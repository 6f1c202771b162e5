"""The published runs: the settings of every model, as its authors trained it on COCO.

RT-DETRv4 (arXiv 2510.25257), DEIM (arXiv 2412.04234) and D-FINE (arXiv 2410.13842): configuration files of
github.com/RT-DETRs/RT-DETRv4. RT-DETRv2 (arXiv 2407.17140) and RT-DETR (arXiv 2304.08069): github.com/lyuwenyu/RT-DETR.
Where the files say one thing and their regular expressions do another, these are the values that ran: in D-FINE and
DEIM N and in the sizes L and X the expression that should leave the backbone's batch norms out of its group does not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .stages import Stages


class PublishedRun(NamedTuple):
    """How a model was trained: its epochs, their stages, and whatever else differs from `Recipe`'s defaults."""

    epochs: int
    stages: Stages
    settings: dict[str, Any]


def _dense(epochs: int, dense_until: int, plain: int) -> tuple[int, Stages]:
    """DEIM's four stages (section 3.1, "Dense O2O"); the cosine starts where mosaic and mixup end."""
    return epochs, Stages(4, dense_until, dense_until, epochs - plain)


def _augmented(epochs: int, plain: int) -> tuple[int, Stages]:
    """Without Dense O2O: augmentation from the start, a constant learning rate."""
    return epochs, Stages(0, 0, epochs - plain, epochs - plain)


# λ, ρ, δ and the default λ, section 4 of RT-DETRv4 and its files
_GAM_S = {"distill_weight": 5, "rho": 11, "delta": 1, "distill_default_weight": 20}
_GAM_M = {"distill_weight": 5, "rho": 3.5, "delta": 0.25, "distill_default_weight": 15}
_GAM_L = {"distill_weight": 15, "rho": 2, "delta": 0.1, "distill_default_weight": 15}
_GAM_X = {"distill_weight": 20, "rho": 2, "delta": 0.25, "distill_default_weight": 20}

_ALONE = {"teacher": None}
_CONSTANT = {"final_learning_rate": 1.0, "mosaic": 0.0, "mixup": 0.0}

_N = {
    "batch_size": 128, "learning_rate": 8e-4, "backbone_learning_rate": 4e-4, "multi_scale": None,
    "undecayed": "norms_and_biases", "backbone_norms": "as_backbone", "final_learning_rate": 1.0,
}  # fmt: skip
_S = {"backbone_learning_rate": 2e-4, "multi_scale": 20}
_M = {"backbone_learning_rate": 4e-5, "multi_scale": 6}
_L = {
    "learning_rate": 5e-4, "backbone_learning_rate": 2.5e-5, "weight_decay": 1.25e-4,
    "backbone_norms": "as_backbone", "multi_scale": 4,
}  # fmt: skip
_X = {**_L, "backbone_learning_rate": 5e-6, "multi_scale": 3, "ema_restart_decay": 0.9998}

_DFINE = {**_ALONE, **_CONSTANT, "warmup_steps": 500, "backbone_norms": "as_backbone"}
_DFINE_SMALL = {**_DFINE, "learning_rate": 2e-4, "undecayed": "norms_and_biases"}
_DFINE_LARGE = {**_DFINE, "learning_rate": 2.5e-4, "weight_decay": 1.25e-4}

_RESNET = {"batch_size": 16, "ema_warmup_steps": 2000, "multi_scale": 3}
_DEIM_RESNET = {**_ALONE, **_RESNET, "learning_rate": 2e-4}
_RTDETR = {
    **_ALONE, **_RESNET, **_CONSTANT, "learning_rate": 1e-4, "backbone_learning_rate": 1e-5,
    "backbone_norms": "as_backbone", "reload_best": False,
}  # fmt: skip
_RTDETRV2 = {**_RTDETR, "warmup": "linear"}
_RTDETRV1 = {**_RTDETR, "warmup_steps": 0, "undecayed": "norms_and_biases"}

_STAGES_N, _STAGES_S, _STAGES_M = _dense(160, 78, 12), _dense(132, 64, 12), _dense(102, 49, 12)
_STAGES_L = _dense(58, 29, 8)

PUBLISHED: dict[str, PublishedRun] = {
    # Not in the paper: DEIM-N's run with the injector settings of S
    "rtdetrv4_n": PublishedRun(*_STAGES_N, {**_N, **_GAM_S}),
    "rtdetrv4_s": PublishedRun(*_STAGES_S, {**_S, **_GAM_S}),
    "rtdetrv4_m": PublishedRun(*_STAGES_M, {**_M, **_GAM_M}),
    "rtdetrv4_l": PublishedRun(*_STAGES_L, {**_L, **_GAM_L}),
    "rtdetrv4_x": PublishedRun(*_STAGES_L, {**_X, **_GAM_X}),
    "deim_n": PublishedRun(*_STAGES_N, {**_N, **_ALONE}),
    "deim_s": PublishedRun(*_STAGES_S, {**_S, **_ALONE}),
    "deim_m": PublishedRun(*_STAGES_M, {**_M, **_ALONE}),
    "deim_l": PublishedRun(*_STAGES_L, {**_L, **_ALONE}),
    "deim_x": PublishedRun(*_STAGES_L, {**_X, **_ALONE}),
    "dfine_n": PublishedRun(*_augmented(160, 12), {**_N, **_DFINE}),
    "dfine_s": PublishedRun(*_augmented(132, 12), {**_DFINE_SMALL, "backbone_learning_rate": 1e-4, "multi_scale": 20}),
    "dfine_m": PublishedRun(*_augmented(132, 12), {**_DFINE_SMALL, "backbone_learning_rate": 2e-5, "multi_scale": 6}),
    "dfine_l": PublishedRun(*_augmented(80, 8), {**_DFINE_LARGE, "backbone_learning_rate": 1.25e-5, "multi_scale": 4}),
    "dfine_x": PublishedRun(
        *_augmented(80, 8),
        {**_DFINE_LARGE, "backbone_learning_rate": 2.5e-6, "multi_scale": 3, "ema_restart_decay": 0.9998},
    ),
    "rtdetrv2_r18": PublishedRun(
        *_augmented(120, 3),
        {**_RTDETRV2, "backbone_learning_rate": 1e-4, "backbone_norms": "as_norms", "multi_scale": None},
    ),
    "rtdetrv2_r34": PublishedRun(
        *_augmented(120, 3),
        {
            **_RTDETRV2, "backbone_learning_rate": 5e-5, "backbone_norms": "undecayed",
            "undecayed": "norms_and_biases",
        },
    ),
    "rtdetrv2_r50_m": PublishedRun(*_augmented(84, 3), _RTDETRV2),
    "rtdetrv2_r50": PublishedRun(*_augmented(72, 1), _RTDETRV2),
    "rtdetrv2_r101": PublishedRun(*_augmented(72, 1), {**_RTDETRV2, "backbone_learning_rate": 1e-6}),
    "rtdetr_r18": PublishedRun(*_augmented(72, 0), {**_RTDETRV1, "backbone_norms": "undecayed"}),
    "rtdetr_r34": PublishedRun(*_augmented(72, 0), {**_RTDETRV1, "backbone_norms": "undecayed"}),
    "rtdetr_r50_m": PublishedRun(*_augmented(72, 0), _RTDETRV1),
    "rtdetr_r50": PublishedRun(*_augmented(72, 0), _RTDETRV1),
    # Its file replaces the list of groups by the backbone's alone
    "rtdetr_r101": PublishedRun(
        *_augmented(72, 0), {**_RTDETRV1, "backbone_learning_rate": 1e-6, "undecayed": "nothing"}
    ),
    # Its file asks for one size by the option of RT-DETRv2's loader, which DEIM's does not have
    "deim_rtdetrv2_r18": PublishedRun(
        *_dense(120, 64, 3), {**_DEIM_RESNET, "backbone_learning_rate": 2e-4, "multi_scale": None}
    ),
    "deim_rtdetrv2_r34": PublishedRun(*_dense(120, 64, 3), {**_DEIM_RESNET, "backbone_learning_rate": 1e-4}),
    "deim_rtdetrv2_r50_m": PublishedRun(*_dense(60, 34, 2), {**_DEIM_RESNET, "backbone_learning_rate": 2e-5}),
    "deim_rtdetrv2_r50": PublishedRun(*_dense(60, 34, 2), {**_DEIM_RESNET, "backbone_learning_rate": 2e-5}),
    "deim_rtdetrv2_r101": PublishedRun(*_dense(60, 34, 2), {**_DEIM_RESNET, "backbone_learning_rate": 2e-6}),
}  # fmt: skip
