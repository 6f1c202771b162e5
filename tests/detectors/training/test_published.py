"""Every model's recipe, held against the configuration files of its authors.

RT-DETRv4, DEIM and D-FINE: github.com/RT-DETRs/RT-DETRv4, commit df44122, `configs/{rtv4,deim,dfine}`. RT-DETRv2 and
RT-DETR: github.com/lyuwenyu/RT-DETR, commit 068dfde, `rtdetrv2_pytorch/configs/rtdetrv2` and
`rtdetr_pytorch/configs/rtdetr`. The numbers were read from the files after their includes were resolved.
"""

import pytest

from detectors.catalog import list_models
from detectors.data.augmentation import Augmentation
from detectors.training.published import PUBLISHED
from detectors.training.recipe import recipe_for
from detectors.training.schedule import learning_rate_factor

COCO = 118_287  # images of train2017

# epoches; transforms.policy.epoch, which mixup_epochs, flat_epoch, stop_epoch and no_aug_epoch agree with
DENSE = {
    "rtdetrv4_s": (132, (4, 64, 120)),
    "rtdetrv4_m": (102, (4, 49, 90)),
    "rtdetrv4_l": (58, (4, 29, 50)),
    "rtdetrv4_x": (58, (4, 29, 50)),
    "deim_n": (160, (4, 78, 148)),  # flat_epoch is 7800, and the final rate the full one
    "deim_s": (132, (4, 64, 120)),
    "deim_m": (102, (4, 49, 90)),
    "deim_l": (58, (4, 29, 50)),
    "deim_x": (58, (4, 29, 50)),
    "deim_rtdetrv2_r18": (120, (4, 64, 117)),
    "deim_rtdetrv2_r34": (120, (4, 64, 117)),
    "deim_rtdetrv2_r50_m": (60, (4, 34, 58)),
    "deim_rtdetrv2_r50": (60, (4, 34, 58)),
    "deim_rtdetrv2_r101": (60, (4, 34, 58)),
}

# epoches; transforms.policy.epoch. RT-DETR's files have no policy: it augments to the end.
AUGMENTED = {
    "dfine_n": (160, 148),
    "dfine_s": (132, 120),
    "dfine_m": (132, 120),
    "dfine_l": (80, 72),
    "dfine_x": (80, 72),
    "rtdetrv2_r18": (120, 117),
    "rtdetrv2_r34": (120, 117),
    "rtdetrv2_r50_m": (84, 81),
    "rtdetrv2_r50": (72, 71),
    "rtdetrv2_r101": (72, 71),
    "rtdetr_r18": (72, 72),
    "rtdetr_r34": (72, 72),
    "rtdetr_r50_m": (72, 72),
    "rtdetr_r50": (72, 72),
    "rtdetr_r101": (72, 72),
}

# total_batch_size (RT-DETR: four on each of four GPUs), optimizer.lr, lr of the group '^(?=.*backbone)…', weight_decay;
# the full rate where the backbone has no group of its own
RATES = {
    "rtdetrv4_s": (32, 4e-4, 2e-4, 1e-4),
    "rtdetrv4_m": (32, 4e-4, 4e-5, 1e-4),
    "rtdetrv4_l": (32, 5e-4, 2.5e-5, 1.25e-4),
    "rtdetrv4_x": (32, 5e-4, 5e-6, 1.25e-4),
    "deim_n": (128, 8e-4, 4e-4, 1e-4),
    "deim_s": (32, 4e-4, 2e-4, 1e-4),
    "deim_m": (32, 4e-4, 4e-5, 1e-4),
    "deim_l": (32, 5e-4, 2.5e-5, 1.25e-4),
    "deim_x": (32, 5e-4, 5e-6, 1.25e-4),
    "dfine_n": (128, 8e-4, 4e-4, 1e-4),
    "dfine_s": (32, 2e-4, 1e-4, 1e-4),
    "dfine_m": (32, 2e-4, 2e-5, 1e-4),
    "dfine_l": (32, 2.5e-4, 1.25e-5, 1.25e-4),
    "dfine_x": (32, 2.5e-4, 2.5e-6, 1.25e-4),
    "deim_rtdetrv2_r18": (16, 2e-4, 2e-4, 1e-4),
    "deim_rtdetrv2_r34": (16, 2e-4, 1e-4, 1e-4),
    "deim_rtdetrv2_r50_m": (16, 2e-4, 2e-5, 1e-4),
    "deim_rtdetrv2_r50": (16, 2e-4, 2e-5, 1e-4),
    "deim_rtdetrv2_r101": (16, 2e-4, 2e-6, 1e-4),
    "rtdetrv2_r18": (16, 1e-4, 1e-4, 1e-4),
    "rtdetrv2_r34": (16, 1e-4, 5e-5, 1e-4),
    "rtdetrv2_r50_m": (16, 1e-4, 1e-5, 1e-4),
    "rtdetrv2_r50": (16, 1e-4, 1e-5, 1e-4),
    "rtdetrv2_r101": (16, 1e-4, 1e-6, 1e-4),
    "rtdetr_r18": (16, 1e-4, 1e-5, 1e-4),
    "rtdetr_r34": (16, 1e-4, 1e-5, 1e-4),
    "rtdetr_r50_m": (16, 1e-4, 1e-5, 1e-4),
    "rtdetr_r50": (16, 1e-4, 1e-5, 1e-4),
    "rtdetr_r101": (16, 1e-4, 1e-6, 1e-4),
}

# base_size_repeat; RT-DETR and RT-DETRv2: how often 640 stands in `scales`, or in `multi_scale`
MULTI_SCALE = {
    "n": None, "s": 20, "m": 6, "l": 4, "x": 3, "r18": 3, "r34": 3, "r50_m": 3, "r50": 3, "r101": 3,
    "rtdetrv2_r18": None,
    # Its file sets `scales: ~`, RT-DETRv2's word for one size, which its own loader does not know
    "deim_rtdetrv2_r18": None,
}  # fmt: skip

# By family: lr_gamma, how the rate rises (warmup_iter of the flat-cosine schedule; else LinearWarmup) and for how long;
# ema.warmups; whether the solver reloads the best checkpoint at stop_epoch
FAMILIES = {
    "rtdetrv4": (0.5, "quadratic", 2000, 1000, True),
    "deim": (0.5, "quadratic", 2000, 1000, True),
    "dfine": (1.0, "quadratic", 500, 1000, True),
    "deim_rtdetrv2": (0.5, "quadratic", 2000, 2000, True),
    "rtdetrv2": (1.0, "linear", 2000, 2000, False),
    "rtdetr": (1.0, None, 0, 2000, False),
}

MODELS = sorted(RATES)


def family_of(model: str) -> tuple[str, str]:
    """Split "deim_rtdetrv2_r50_m" into "deim_rtdetrv2" and "r50_m"."""
    family = next(name for name in sorted(FAMILIES, key=len, reverse=True) if model.startswith(name + "_"))
    return family, model.removeprefix(family + "_")


def test_every_model_is_pinned() -> None:
    # RT-DETRv4-N is nobody's publication.
    assert set(list_models()) == set(PUBLISHED) == set(MODELS) | {"rtdetrv4_n"}
    assert set(DENSE) | set(AUGMENTED) == set(MODELS)
    assert len(DENSE) + len(AUGMENTED) == len(MODELS) == 29


@pytest.mark.parametrize("model", sorted(DENSE))
def test_stages_of_dense_runs(model: str) -> None:
    recipe = recipe_for(model)
    epochs, (augmented_from, dense_until, plain_from) = DENSE[model]
    assert recipe.epochs == epochs
    assert recipe.stages == (augmented_from, dense_until, dense_until, plain_from)
    strong = Augmentation(strong=True, multi_scale=recipe.multi_scale)
    dense = Augmentation(strong=True, mosaic=0.5, mixup=0.5, multi_scale=recipe.multi_scale)
    expected = (
        [Augmentation(multi_scale=recipe.multi_scale)] * augmented_from
        + [dense] * (dense_until - augmented_from)
        + [strong] * (plain_from - dense_until)
        + [Augmentation()] * (epochs - plain_from)
    )
    assert [recipe.augmentation(epoch) for epoch in range(epochs)] == expected


@pytest.mark.parametrize("model", sorted(AUGMENTED))
def test_stages_of_runs_without_mosaic_and_mixup(model: str) -> None:
    recipe = recipe_for(model)
    epochs, plain_from = AUGMENTED[model]
    assert (recipe.epochs, recipe.stages.plain_from) == (epochs, plain_from)
    strong = Augmentation(strong=True, multi_scale=recipe.multi_scale)
    expected = [strong] * plain_from + [Augmentation()] * (epochs - plain_from)
    assert [recipe.augmentation(epoch) for epoch in range(epochs)] == expected


@pytest.mark.parametrize("model", MODELS)
def test_batch_rates_and_decay(model: str) -> None:
    recipe = recipe_for(model)
    assert (
        recipe.batch_size, recipe.learning_rate, recipe.backbone_learning_rate, recipe.weight_decay
    ) == RATES[model]  # fmt: skip
    assert recipe.accumulate == 1
    assert recipe.clip_norm == 0.1  # clip_max_norm of all


@pytest.mark.parametrize("model", MODELS)
def test_sizes_drawn(model: str) -> None:
    assert recipe_for(model).multi_scale == MULTI_SCALE.get(model, MULTI_SCALE[family_of(model)[1]])


@pytest.mark.parametrize("model", MODELS)
def test_shape_of_the_learning_rate(model: str) -> None:
    recipe = recipe_for(model)
    final, kind, warmup, *_ = FAMILIES[family_of(model)[0]]
    if model == "deim_n":
        final = 1.0  # its own lr_gamma
    steps = COCO // RATES[model][0]
    assert recipe.final_learning_rate == final
    assert recipe.warmup_length(steps * recipe.epochs) == warmup
    if kind is not None:
        assert recipe.warmup == kind
    assert learning_rate_factor(recipe, steps * recipe.epochs - 1, steps) == final


@pytest.mark.parametrize("model", MODELS)
def test_average_of_the_weights(model: str) -> None:
    recipe = recipe_for(model)
    family, size = family_of(model)
    *_, warmup, reload_best = FAMILIES[family]
    assert (recipe.ema_decay, recipe.ema_warmup_steps, recipe.reload_best) == (0.9999, warmup, reload_best)
    if reload_best:
        assert recipe.ema_restart_decay == (0.9998 if size == "x" else 0.9999)


@pytest.mark.parametrize("model", sorted(PUBLISHED))
def test_teacher_of_rtdetrv4_alone(model: str) -> None:
    assert recipe_for(model).teacher == ("dinov3_vitb16" if model.startswith("rtdetrv4_") else None)


def test_rtdetrv4_n_is_the_run_of_deim_n_with_the_injector_of_s() -> None:
    ours, deim, small = (recipe_for(name).model_dump() for name in ("rtdetrv4_n", "deim_n", "rtdetrv4_s"))
    modulation = ("teacher", "distill_weight", "rho", "delta", "distill_default_weight")
    assert {name: ours[name] for name in modulation} == {name: small[name] for name in modulation}
    assert {name for name in ours if ours[name] != deim[name]} <= {"model", *modulation}
