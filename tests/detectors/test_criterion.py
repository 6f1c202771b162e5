from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from detectors.decoders.denoising import contrastive_denoising
from detectors.losses import Criterion, HungarianMatcher, NonFiniteError, check_finite
from vfmdistill.errors import InputError, UnknownNameError

CLASSES, QUERIES, LAYERS, REG_MAX = 6, 12, 3, 32


def targets_with(*counts: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "labels": torch.randint(0, CLASSES, (count,), generator=generator),
            "boxes": 0.2 + 0.4 * torch.rand(count, 4, generator=generator),
        }
        for count in counts
    ]


def example(*counts: int, edges: bool = True, queries: int = QUERIES) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """Return outputs with the nesting of a detector's, all numbers drawn, and targets."""
    targets = targets_with(*counts)
    generator = torch.Generator().manual_seed(1)
    images = len(counts)

    def head(size: int) -> dict[str, Tensor]:
        return {
            "pred_logits": (2 * torch.randn(images, size, CLASSES, generator=generator) - 2).requires_grad_(),
            "pred_boxes": (0.2 + 0.4 * torch.rand(images, size, 4, generator=generator)).requires_grad_(),
        }

    def decoder(size: int) -> list[dict[str, Tensor]]:
        layers = [head(size) for _ in range(LAYERS)]
        if edges:
            reference = 0.2 + 0.4 * torch.rand(images, size, 4, generator=generator)
            for layer in layers:
                bins = torch.randn(images, size, 4 * (REG_MAX + 1), generator=generator)
                layer.update(pred_corners=bins.requires_grad_(), ref_points=reference)
        return layers

    def with_teacher(layers: list[dict[str, Tensor]], final: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        teacher = {"teacher_corners": final["pred_corners"], "teacher_logits": final["pred_logits"]} if edges else {}
        return [{**layer, **{key: value.detach() for key, value in teacher.items()}} for layer in layers]

    *before, final = decoder(queries)
    outputs: dict[str, Any] = {**final, "aux_outputs": with_teacher(before, final)}
    outputs |= {"enc_aux_outputs": [head(queries)], "enc_meta": {"class_agnostic": False}}
    if edges:
        outputs |= {"up": torch.tensor([0.5]), "reg_scale": torch.tensor([4.0]), "pre_outputs": head(queries)}
    group = contrastive_denoising(targets, CLASSES, queries, torch.nn.Embedding(CLASSES + 1, 2), num_denoising=7)
    if group is not None:
        size = group.content.shape[1]
        layers = decoder(size)
        outputs |= {"dn_outputs": with_teacher(layers, layers[-1]), "dn_meta": group.meta}
        if edges:
            outputs["dn_pre_outputs"] = head(size)
    return outputs, targets


def converted(value: Any, **kwargs: Any) -> Any:
    """Return nested outputs with every floating tensor sent through `Tensor.to(**kwargs)`."""
    if isinstance(value, Tensor):
        return value.to(**kwargs) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: converted(item, **kwargs) for key, item in value.items()}
    if isinstance(value, list):
        return [converted(item, **kwargs) for item in value]
    return value


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [leaf for item in items for leaf in leaves(item)]


# The authors' code (RT-DETRv4 commit df44122) on `example(...)`, float32: for each suffix the losses of classification,
# bbox, giou, fgl and ddf.
PINNED: dict[str, tuple[tuple[int, ...], dict[str, Any], dict[str, tuple[float, ...]]]] = {
    "RT-DETRv4": (
        (3, 0, 2),
        {},
        {
            "": (7.605967, 2.379846, 1.657782, 0.6559076),
            "_aux_0": (9.790308, 1.996915, 1.429029, 0.8370858, 0.6786609),
            "_aux_1": (8.322411, 2.149086, 1.475799, 0.8350052, 0.6950502),
            "_pre": (8.791142, 2.493497, 1.797878),
            "_enc_0": (10.12642, 2.410279, 1.693084),
            "_dn_0": (3.47622, 2.787866, 1.953546, 0.4079728, 0.590587),
            "_dn_1": (5.458243, 2.86186, 1.952072, 0.4980218, 0.605961),
            "_dn_2": (3.271602, 2.603956, 1.898183, 0.6086432),
            "_dn_pre": (5.436284, 2.468866, 1.612136),
        },
    ),
    "D-FINE": (
        (3, 0, 2),
        {"classification": "vfl"},
        {
            "": (4.236952, 2.379846, 1.657782, 0.6559076),
            "_aux_0": (6.448497, 1.996915, 1.429029, 0.8370858, 0.6786609),
            "_aux_1": (4.795952, 2.149086, 1.475799, 0.8350052, 0.6950502),
            "_pre": (4.95934, 2.493497, 1.797878),
            "_enc_0": (6.345159, 2.410279, 1.693084),
            "_dn_0": (1.984228, 2.787866, 1.953546, 0.4079728, 0.590587),
            "_dn_1": (3.390399, 2.86186, 1.952072, 0.4980218, 0.605961),
            "_dn_2": (1.98889, 2.603956, 1.898183, 0.6086432),
            "_dn_pre": (3.455657, 2.468866, 1.612136),
        },
    ),
    "RT-DETRv2": (
        (3, 0, 2),
        {"classification": "vfl", "union_matching": False},
        {
            "": (4.236952, 1.730962, 1.374573),
            "_aux_0": (6.448497, 1.209942, 1.125522),
            "_aux_1": (4.795952, 1.753885, 1.333007),
            "_enc_0": (2.871267, 1.328162, 1.024404),
            "_dn_0": (2.340765, 3.360045, 1.977051),
            "_dn_1": (1.940506, 2.615831, 1.773419),
            "_dn_2": (2.200603, 2.477301, 1.68827),
        },
    ),
    "no boxes": (
        (0, 0),
        {},
        {
            "": (17.55777, 0.0, 0.0, 0.0),
            "_aux_0": (27.09899, 0.0, 0.0, 0.0, 0.7936147),
            "_aux_1": (20.06386, 0.0, 0.0, 0.0, 0.841117),
            "_pre": (27.21894, 0.0, 0.0),
            "_enc_0": (34.7845, 0.0, 0.0),
        },
    ),
}


@pytest.mark.parametrize("case", PINNED)
def test_pinned_losses(case: str):
    counts, settings, expected = PINNED[case]
    outputs, targets = example(*counts, edges=case != "RT-DETRv2")
    criterion = Criterion(CLASSES, **settings)
    losses = criterion(outputs, targets)
    names = (criterion.classification, "bbox", "giou", "fgl", "ddf")
    pinned = {
        f"loss_{name}{suffix}": value
        for suffix, values in expected.items()
        for name, value in zip(names, values, strict=False)
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(pinned, rel=2e-5, abs=1e-7)


def test_every_output_gets_a_gradient():
    outputs, targets = example(3, 0, 2)
    sum(Criterion(CLASSES)(outputs, targets).values()).backward()
    for leaf in leaves(outputs):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.any()


def test_a_batch_without_objects_trains():
    outputs, targets = example(0, 0)
    assert "dn_outputs" not in outputs
    losses = Criterion(CLASSES)(outputs, targets)
    sum(losses.values()).backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves(outputs))
    assert losses["loss_bbox"].item() == losses["loss_giou_enc_0"].item() == losses["loss_fgl_aux_1"].item() == 0


def test_boxes_from_infinite_logits_stay_finite():
    """Coordinates are exactly 0 or 1 then, as those of the anchors at the border are."""
    outputs, targets = example(3, 0, 2, edges=False)
    logits = torch.tensor([[math.inf] * 4, [-math.inf] * 4, [math.inf, -math.inf, 0.0, -math.inf]])
    logits = logits.repeat(3, QUERIES // 3, 1).requires_grad_()
    outputs["enc_aux_outputs"][0]["pred_boxes"] = logits.sigmoid()
    criterion = Criterion(CLASSES, classification="vfl", union_matching=False)
    losses = criterion(outputs, targets)
    check_finite(losses)
    sum(losses.values()).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_more_objects_than_queries():
    """Six of twenty objects find a query, and the sums are still divided by the number of all objects."""
    outputs, targets = example(20, 3, edges=False, queries=6)
    losses = Criterion(CLASSES, classification="vfl", union_matching=False)(outputs, targets)
    # The authors' code (RT-DETRv4 commit df44122), float32.
    expected = {"loss_vfl": 0.310293, "loss_bbox": 0.5505762, "loss_giou": 0.4314565}
    assert {name: losses[name].item() for name in expected} == pytest.approx(expected, rel=2e-5)

    outputs, targets = example(20, 3, queries=6)
    losses = Criterion(CLASSES)(outputs, targets)
    check_finite(losses)
    sum(losses.values()).backward()


def test_an_image_without_objects_counts_as_background_only():
    """Appending one changes no box loss (they are sums over matches), and adds its negatives to the classification."""
    outputs, targets = example(3, 0, 2)
    with_empty = Criterion(CLASSES)(outputs, targets)
    keep = torch.tensor([0, 2])

    def without_empty(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[keep] if value.ndim > 1 else value
        if isinstance(value, dict):
            return {key: without_empty(item) for key, item in value.items()}
        return [without_empty(item) for item in value] if isinstance(value, list) else value

    matched = {key: without_empty(value) for key, value in outputs.items() if not key.startswith("dn_")}
    without = Criterion(CLASSES)(matched, [targets[0], targets[2]])
    for name in ("loss_bbox", "loss_giou_aux_0", "loss_fgl", "loss_bbox_enc_0"):
        torch.testing.assert_close(with_empty[name], without[name])
    assert with_empty["loss_mal"] > without["loss_mal"]


def test_the_final_layer_teaches_and_does_not_learn():
    outputs, targets = example(3, 0, 2)
    losses = Criterion(CLASSES)(outputs, targets)
    distilled = {name for name in losses if "ddf" in name}
    assert distilled == {"loss_ddf_aux_0", "loss_ddf_aux_1", "loss_ddf_dn_0", "loss_ddf_dn_1"}
    (final,) = torch.autograd.grad(losses["loss_ddf_aux_0"], outputs["pred_corners"])
    assert not final.any()


def test_a_layer_that_agrees_with_its_teacher_has_no_distillation_loss():
    outputs, targets = example(3, 0, 2)
    outputs["aux_outputs"][0]["pred_corners"] = outputs["pred_corners"]
    assert Criterion(CLASSES)(outputs, targets)["loss_ddf_aux_0"].item() == pytest.approx(0, abs=1e-6)


def test_weights():
    outputs, targets = example(3, 0, 2)
    default = Criterion(CLASSES)(outputs, targets)
    weighted = Criterion(CLASSES, weights={"mal": 2, "fgl": 0.3})(outputs, targets)
    torch.testing.assert_close(weighted["loss_mal_aux_0"], 2 * default["loss_mal_aux_0"])
    torch.testing.assert_close(weighted["loss_fgl_dn_1"], 2 * default["loss_fgl_dn_1"])
    assert torch.equal(weighted["loss_giou_pre"], default["loss_giou_pre"])


def test_classification_settings_reach_the_loss():
    outputs, targets = example(2, 1, edges=False)
    plain = Criterion(CLASSES, classification="vfl", union_matching=False)
    flat = Criterion(CLASSES, classification="vfl", gamma=0.0, alpha=1.0, union_matching=False)
    assert flat(outputs, targets)["loss_vfl"] > 2 * plain(outputs, targets)["loss_vfl"]
    assert "loss_focal" in Criterion(CLASSES, classification="focal", union_matching=False)(outputs, targets)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1, 2000], ids=["usual", "near the end of fp16"])
def test_half_precision_is_raised(dtype: torch.dtype, scale: int):
    outputs, targets = example(3, 0, 2)
    for output in (outputs, *outputs["aux_outputs"], *outputs["dn_outputs"]):
        output["pred_logits"] = output["pred_logits"] * scale
        output["pred_corners"] = output["pred_corners"] * scale
    half = converted(outputs, dtype=dtype)
    raised = Criterion(CLASSES)(half, targets)
    expected = Criterion(CLASSES)(converted(half, dtype=torch.float32), targets)
    with torch.autocast("cpu", dtype=dtype):
        autocast = Criterion(CLASSES)(half, targets)
    check_finite(raised)
    for name, loss in raised.items():
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected[name]), name
        assert torch.equal(loss, autocast[name]), name


def test_float64_is_kept():
    outputs, targets = example(3, 0, 2)
    double = Criterion(CLASSES)(converted(outputs, dtype=torch.float64), targets)
    assert {loss.dtype for loss in double.values()} == {torch.float64}
    single = Criterion(CLASSES)(outputs, targets)
    torch.testing.assert_close(converted(double, dtype=torch.float32), single, rtol=1e-5, atol=1e-6)


def test_the_numbers_of_objects_are_means_over_processes(monkeypatch: pytest.MonkeyPatch):
    """The other of two processes has 7 objects and 19 pairs in its union, among 40 queries."""
    outputs, targets = example(3, 0, 2)
    alone = Criterion(CLASSES)(outputs, targets)
    seen = []

    def all_reduce(counts: Tensor) -> None:
        seen.append(counts.tolist())
        counts += torch.tensor([7.0, 19.0, 19.0, 40.0])

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    together = Criterion(CLASSES)(outputs, targets)
    ((objects, pairs, matched, queries),) = seen
    assert objects == 5
    assert 5 <= pairs <= 15 * 5
    assert matched == pairs
    assert queries == outputs["pred_logits"].shape[:2].numel()
    torch.testing.assert_close(together["loss_mal"], alone["loss_mal"] * 5 / 6)
    torch.testing.assert_close(together["loss_bbox_dn_0"], alone["loss_bbox_dn_0"] * 5 / 6)
    torch.testing.assert_close(together["loss_giou"], alone["loss_giou"] * pairs / ((pairs + 19) / 2))
    assert together["loss_ddf_aux_0"] != alone["loss_ddf_aux_0"]


@pytest.mark.parametrize("union_matching", [True, False])
def test_parts_of_a_batch_with_its_counts_have_the_losses_of_the_whole(union_matching: bool):
    outputs, targets = example(4, 0, 2, 1)
    outputs = {key: value for key, value in outputs.items() if not key.startswith("dn_")}
    criterion = Criterion(CLASSES, union_matching=union_matching)
    parts = [(images_of(outputs, slice(i, i + 2)), targets[i : i + 2]) for i in (0, 2)]
    counts = torch.stack([criterion.match(*part).counts for part in parts]).mean(0)
    whole = criterion(outputs, targets)
    losses = [criterion(*part, counts=counts) for part in parts]
    assert losses[0].keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close((losses[0][name] + losses[1][name]) / 2, value, rtol=1e-5, atol=1e-7)
    assert any(not torch.isclose(losses[0][name], criterion(*parts[0])[name]) for name in whole)


def images_of(outputs: Any, images: slice) -> Any:
    """Return some images of a detector's outputs."""
    if isinstance(outputs, dict):
        return {key: images_of(value, images) for key, value in outputs.items()}
    if isinstance(outputs, list):
        return [images_of(value, images) for value in outputs]
    return outputs[images] if isinstance(outputs, Tensor) and outputs.ndim >= 3 else outputs


def test_a_non_finite_prediction_raises_and_a_non_finite_loss_stays():
    outputs, targets = example(3, 0, 2)
    outputs["pre_outputs"]["pred_boxes"] = outputs["pre_outputs"]["pred_boxes"].detach().clone()
    outputs["pre_outputs"]["pred_boxes"][2, 0] = math.nan
    with pytest.raises(NonFiniteError, match="output pre in image 2"):
        Criterion(CLASSES)(outputs, targets)

    outputs, targets = example(3, 0, 2)
    outputs["dn_outputs"][1]["pred_logits"] = outputs["dn_outputs"][1]["pred_logits"] * math.nan
    losses = Criterion(CLASSES)(outputs, targets)
    assert losses["loss_mal_dn_1"].isnan()
    with pytest.raises(NonFiniteError, match=r"1 of 37 losses of this batch are not finite: loss_mal_dn_1 = nan\."):
        check_finite(losses)


def test_bad_arguments():
    outputs, targets = example(1)
    with pytest.raises(InputError, match="the outputs have 6 classes, the criterion 7"):
        Criterion(7)(outputs, targets)
    uneven = [{**targets[0], "boxes": targets[0]["boxes"][1:]}, *targets[1:]]
    with pytest.raises(InputError, match=r"images \[0\] of the batch have other numbers of labels than of boxes"):
        Criterion(CLASSES)(outputs, uneven)
    with pytest.raises(UnknownNameError, match="unknown classification loss 'mall'; nearest: mal"):
        Criterion(CLASSES, classification="mall")
    with pytest.raises(UnknownNameError, match="unknown loss 'loss_giou'; nearest: giou"):
        Criterion(CLASSES, weights={"loss_giou": 2})


def test_the_matcher_can_be_chosen():
    outputs, targets = example(3, 2, edges=False)
    cheap = Criterion(CLASSES, HungarianMatcher(class_cost=0, giou_cost=0), union_matching=False)(outputs, targets)
    usual = Criterion(CLASSES, union_matching=False)(outputs, targets)
    assert cheap["loss_bbox"] <= usual["loss_bbox"]


def test_it_has_no_state():
    assert not Criterion(CLASSES).state_dict()
