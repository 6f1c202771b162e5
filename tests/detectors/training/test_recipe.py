import pytest

from detectors.training.recipe import PUBLISHED, recipe_for
from vfmdistill.errors import InputError, UnknownNameError


# epochs, first augmented, cosine from, last stage: the policy epochs of the authors' configuration files
@pytest.mark.parametrize(
    ("model", "boundaries"),
    [
        ("rtdetrv4_n", (160, 4, 78, 148)),
        ("rtdetrv4_s", (132, 4, 64, 120)),
        ("rtdetrv4_m", (102, 4, 49, 90)),
        ("rtdetrv4_l", (58, 4, 29, 50)),
        ("rtdetrv4_x", (58, 4, 29, 50)),
    ],
)
def test_stages_of_the_published_runs(model: str, boundaries: tuple[int, int, int, int]) -> None:
    recipe = recipe_for(model)
    assert (recipe.epochs, recipe.first_augmented, recipe.flat_until, recipe.last_stage) == boundaries


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
    recipe = recipe_for(model, epochs=epochs)
    assert 0 <= recipe.first_augmented <= recipe.flat_until <= recipe.last_stage <= epochs


def test_last_stage_and_first_epochs_are_plain() -> None:
    recipe = recipe_for("rtdetrv4_s")
    assert [epoch for epoch in range(132) if recipe.is_augmented(epoch)] == list(range(4, 120))
    assert not any(recipe_for("rtdetrv4_s", augment=False).is_augmented(epoch) for epoch in range(132))


def test_warmup_is_short_in_short_runs() -> None:
    recipe = recipe_for("rtdetrv4_s")
    assert recipe.warmup(488_004) == 2000
    assert recipe.warmup(1000) == 50
    assert recipe_for("rtdetrv4_s", warmup_steps=7).warmup(1000) == 7


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
    with pytest.raises(InputError, match="no published recipe for 'dfine_n' yet; there is one for rtdetrv4_n"):
        recipe_for("dfine_n")


def test_a_flag_is_no_share() -> None:
    with pytest.raises(InputError, match="rho: must be a number, 'auto' or 'fixed'"):
        recipe_for("rtdetrv4_s", rho=False)  # what YAML makes of `rho: off`


def test_window_and_stages_that_cannot_be() -> None:
    with pytest.raises(InputError, match="between 0 and 100"):
        recipe_for("rtdetrv4_s", rho=0.5, delta=1)
    with pytest.raises(InputError, match="out of order"):
        recipe_for("rtdetrv4_s", epochs=10, flat_epochs=10, plain_epochs=3)
    with pytest.raises(InputError, match="teacher_weights needs a teacher"):
        recipe_for("rtdetrv4_s", teacher="none", teacher_weights="w.pth")


def test_weights_of_the_detector_and_of_its_backbone_exclude_each_other() -> None:
    with pytest.raises(InputError, match="leave out backbone_weights"):
        recipe_for("rtdetrv4_s", weights="detector.pth", backbone_weights="backbone.pth")
