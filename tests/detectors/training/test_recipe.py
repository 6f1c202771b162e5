import pytest
from pydantic import ValidationError

from detectors.data.augmentation import Augmentation
from detectors.training.published import PUBLISHED
from detectors.training.recipe import Recipe, recipe_for
from vfmdistill.errors import InputError, UnknownNameError


# initial λ, ρ, δ, default: RT-DETRv4 (arXiv 2510.25257), configuration files
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("rtdetrv4_s", (5, 11, 1, 20)),
        ("rtdetrv4_m", (5, 3.5, 0.25, 15)),
        ("rtdetrv4_l", (15, 2, 0.1, 15)),
        ("rtdetrv4_x", (20, 2, 0.25, 20)),
    ],
)
def test_published_modulation(model: str, settings: tuple[float, float, float, float]) -> None:
    recipe = recipe_for(model)
    assert (recipe.distill_weight, recipe.rho, recipe.delta, recipe.distill_default_weight) == settings


@pytest.mark.parametrize("model", sorted(PUBLISHED))
@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 12, 30, 200])
def test_every_length_has_ordered_stages(model: str, epochs: int) -> None:
    stages = recipe_for(model, epochs=epochs).stages
    assert 0 <= stages.augmented_from <= stages.plain_from <= epochs
    assert stages.dense_until <= stages.flat_until <= stages.plain_from


def test_boundaries_keep_their_proportions_and_can_be_given() -> None:
    # 4, 64 and 120 of 132
    assert recipe_for("rtdetrv4_s", epochs=33).stages == (1, 16, 16, 30)
    assert recipe_for("rtdetrv4_s", epochs=264).stages == (4, 128, 128, 240)  # a longer warm-up is no use
    assert recipe_for("rtdetrv4_s", epochs=33, dense_until=9, plain_epochs=5).stages == (1, 9, 16, 28)
    assert recipe_for("rtdetrv4_s", epochs=33, augmented_from=0, flat_until=20).stages == (0, 16, 20, 30)
    assert recipe_for("rtdetrv4_s", epochs=33, plain_epochs=30).stages == (1, 3, 3, 3)


def test_augmentation_of_every_stage() -> None:
    recipe = recipe_for("rtdetrv4_s")
    strong = Augmentation(strong=True, multi_scale=20)
    dense = Augmentation(strong=True, mosaic=0.5, mixup=0.5, multi_scale=20)
    expected = {3: Augmentation(multi_scale=20), 4: dense, 63: dense, 64: strong, 119: strong, 120: Augmentation()}
    assert {epoch: recipe.augmentation(epoch) for epoch in expected} == expected
    assert recipe_for("dfine_s").augmentation(0) == strong
    assert recipe_for("deim_n").augmentation(4) == Augmentation(strong=True, mosaic=0.5, mixup=0.5)
    plain = recipe_for("rtdetrv4_s", augment=False)
    assert {plain.augmentation(epoch) for epoch in range(132)} == {Augmentation()}


def test_warmup_is_short_in_short_runs() -> None:
    recipe = recipe_for("rtdetrv4_s")
    assert recipe.warmup_length(488_004) == 2000
    assert recipe.warmup_length(1000) == 50
    assert recipe_for("rtdetrv4_s", warmup_steps=7).warmup_length(1000) == 7


@pytest.mark.parametrize("value", [320, "320", [320], (320, 320), [320, 320]])
def test_input_size_takes_one_number_for_a_square(value: object) -> None:
    assert recipe_for("rtdetrv4_s", input_size=value).input_size == (320, 320)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ((640, 321), "640 × 320 and 640 × 352"),
        (650, "640 × 640 and 672 × 672"),
        ((500, 833), "480 × 832 and 512 × 864"),
    ],
)
def test_size_off_the_stride_names_the_two_nearest(size: object, nearest: str) -> None:
    with pytest.raises(InputError, match=f"input_size: .* must be divisible by 32. .* that work: {nearest}"):
        recipe_for("rtdetrv4_s", input_size=size)


def test_every_wrong_value_is_named() -> None:
    with pytest.raises(InputError) as caught:
        recipe_for("rtdetrv4_s", epochs=0, learning_rate=-1, precision="fp8")
    assert all(word in str(caught.value) for word in ("epochs", "learning_rate", "precision", "'fp8'"))


def test_unknown_field_and_model_name_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="epochs"):
        recipe_for("rtdetrv4_s", epoch=3)
    with pytest.raises(UnknownNameError, match="rtdetrv4_s"):
        recipe_for("rtdetrv4s")
    with pytest.raises(ValidationError, match="rtdetrv4_s"):
        Recipe(model="rtdetrv4s")


def test_a_flag_is_no_share() -> None:
    with pytest.raises(InputError, match="rho: must be a number, 'auto' or 'fixed'"):
        recipe_for("rtdetrv4_s", rho=False)  # what YAML makes of `rho: off`


def test_window_and_stages_that_cannot_be() -> None:
    with pytest.raises(InputError, match="between 0 and 100"):
        recipe_for("rtdetrv4_s", rho=0.5, delta=1)
    with pytest.raises(InputError, match="flat_until is epoch 10, but the last stage begins with epoch 7 of 10"):
        recipe_for("rtdetrv4_s", epochs=10, flat_until=10, plain_epochs=3)
    with pytest.raises(InputError, match="plain_epochs is 11, but there are 10 epochs"):
        recipe_for("rtdetrv4_s", epochs=10, plain_epochs=11)
    with pytest.raises(InputError, match="batch_size 10 cannot be taken in 4 equal parts"):
        recipe_for("rtdetrv4_s", batch_size=10, accumulate=4)
    with pytest.raises(InputError, match="teacher_weights needs a teacher"):
        recipe_for("rtdetrv4_s", teacher="none", teacher_weights="w.pth")


def test_weights_of_the_detector_and_of_its_backbone_exclude_each_other() -> None:
    with pytest.raises(InputError, match="leave out backbone_weights"):
        recipe_for("rtdetrv4_s", weights="detector.pth", backbone_weights="backbone.pth")


def test_one_field_is_one_sentence_whatever_it_may_be() -> None:
    with pytest.raises(InputError) as caught:
        recipe_for("rtdetrv4_s", batch_size=0)
    assert str(caught.value) == "batch_size: Input should be greater than 0 or Input should be 'auto' (given: 0)"
