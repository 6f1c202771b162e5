from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detectors.decoders.dfine import DFINEDecoder, LocationQuality

CLASSES, DIM, LAYERS = 5, 16, 3
TARGETS = [
    {"labels": torch.tensor([0, 4]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.4]])},
    {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
]


def small_decoder(*, random_heads: bool = True, **options: Any) -> DFINEDecoder:
    torch.manual_seed(0)
    defaults = {"dim": DIM, "num_heads": 2, "feedforward": 32, "num_layers": LAYERS, "num_points": (2, 1)}
    decoder = DFINEDecoder((DIM, 8), CLASSES, **{**defaults, "num_queries": 12, "num_denoising": 6, **options})
    if random_heads:  # as after some training: heads that start at zero hide mistakes
        for name, parameter in decoder.named_parameters():
            if "head" in name or "perceptron" in name:
                nn.init.normal_(parameter, std=0.2)
    return decoder


def features(count: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = ((DIM, 8, 6), (8, 4, 3))
    return [torch.randn(count, *size, generator=generator).to(dtype) for size in sizes]


def test_training_outputs() -> None:
    """Names, nesting and shapes of everything that the criterion reads."""
    outputs = small_decoder()(features(), TARGETS)
    assert set(outputs) == {
        "pred_logits", "pred_boxes", "pred_corners", "ref_points", "up", "reg_scale", "aux_outputs", "enc_aux_outputs",
        "enc_meta", "pre_outputs", "dn_outputs", "dn_pre_outputs", "dn_meta",
    }  # fmt: skip
    refined = {"pred_logits": CLASSES, "pred_boxes": 4, "pred_corners": 4 * 33, "ref_points": 4}
    taught = {**refined, "teacher_corners": 4 * 33, "teacher_logits": CLASSES}
    plain = {"pred_logits": CLASSES, "pred_boxes": 4}

    def widths(prediction: dict[str, Tensor], queries: int) -> dict[str, int]:
        assert all(x.shape[:2] == (2, queries) for x in prediction.values())
        return {name: x.shape[2] for name, x in prediction.items()}

    assert widths({name: outputs[name] for name in refined}, 12) == refined
    assert [widths(x, 12) for x in outputs["aux_outputs"]] == [taught] * (LAYERS - 1)
    assert [widths(x, 12) for x in outputs["enc_aux_outputs"]] == [plain]
    assert widths(outputs["pre_outputs"], 12) == plain
    assert outputs["enc_meta"] == {"class_agnostic": False}
    # 6 denoising queries and at most 2 objects: 3 groups of 2 positives and 2 negatives
    assert outputs["dn_meta"]["dn_num_split"] == [12, 12]
    assert [widths(x, 12) for x in outputs["dn_outputs"]] == [taught] * LAYERS
    assert widths(outputs["dn_pre_outputs"], 12) == plain
    for auxiliary in outputs["aux_outputs"]:
        assert auxiliary["teacher_corners"] is outputs["pred_corners"]
        assert auxiliary["teacher_logits"] is outputs["pred_logits"]
    torch.testing.assert_close(outputs["ref_points"], outputs["pre_outputs"]["pred_boxes"])
    assert not outputs["ref_points"].requires_grad


def test_outside_training_only_logits_and_boxes() -> None:
    decoder = small_decoder().eval()
    outputs = decoder(features(), TARGETS)
    assert set(outputs) == {"pred_logits", "pred_boxes"}
    assert all(torch.equal(outputs[key], x) for key, x in decoder(features()).items())


@pytest.mark.parametrize("index", range(LAYERS))
def test_the_answering_layer_can_be_chosen(index: int) -> None:
    decoder = small_decoder(eval_index=index)
    for module in decoder.modules():  # batch statistics would differ
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        trained = decoder(features())
        answer = decoder.eval()(features())
    chosen = [*trained["aux_outputs"], trained][index]
    torch.testing.assert_close(answer["pred_boxes"], chosen["pred_boxes"])
    torch.testing.assert_close(answer["pred_logits"], chosen["pred_logits"])


def test_matching_queries_see_no_denoising_query() -> None:
    decoder = small_decoder()
    torch.testing.assert_close(
        decoder(features(), TARGETS)["pred_boxes"], decoder(features())["pred_boxes"], atol=1e-5, rtol=1e-5
    )


def test_a_new_decoder_gives_the_same_box_in_every_layer() -> None:
    """Equal weights on all bins mean no offset, so after initialisation refinement changes nothing."""
    outputs = small_decoder(random_heads=False)(features())
    selected = outputs["enc_aux_outputs"][0]["pred_boxes"]
    for prediction in (*outputs["aux_outputs"], outputs, outputs["pre_outputs"]):
        torch.testing.assert_close(prediction["pred_boxes"], selected, atol=1e-5, rtol=1e-5)


def test_a_new_decoder_believes_in_no_class() -> None:
    decoder = small_decoder(random_heads=False)
    for head in (decoder.selection.score_head, *(stage.score_head for stage in decoder.stages)):
        torch.testing.assert_close(head.bias.sigmoid(), torch.full((CLASSES,), 0.01))


def test_gradients_do_not_flow_through_boxes_between_layers() -> None:
    """The last layer's boxes reach the first layer's corner head, whose logits they contain, but not the selection."""
    decoder = small_decoder()
    decoder(features())["pred_boxes"].sum().backward()
    assert decoder.stages[0].corner_head.layers[-1].weight.grad.abs().sum() > 0
    assert decoder.selection.box_head.layers[-1].weight.grad is None
    assert decoder.first_box_head.layers[-1].weight.grad is None


def test_fewer_cells_than_queries() -> None:
    decoder = small_decoder(num_queries=300)
    outputs = decoder(features(), TARGETS)
    cells = 8 * 6 + 4 * 3
    assert outputs["pred_logits"].shape == (2, cells, CLASSES)
    assert outputs["dn_meta"]["dn_num_split"] == [12, cells]


@pytest.mark.parametrize("targets", [None, [TARGETS[1], TARGETS[1]]], ids=["no targets", "no boxes"])
def test_without_objects_there_is_no_denoising(targets: Any) -> None:
    outputs = small_decoder()(features(), targets)
    assert not [name for name in outputs if name.startswith("dn_")]


def test_without_denoising_there_is_no_embedding() -> None:
    decoder = small_decoder(num_denoising=0)
    assert decoder.denoising_embedding is None
    assert "dn_meta" not in decoder(features(), TARGETS)


def test_the_embedding_of_padding_is_zero() -> None:
    embedding = small_decoder(random_heads=False).denoising_embedding
    assert embedding is not None
    assert embedding.weight.shape == (CLASSES + 1, DIM)
    assert embedding.weight[-1].abs().max() == 0


def boxes_of(outputs: Any) -> list[Tensor]:
    """Return every tensor about boxes, however deep."""
    if isinstance(outputs, dict):
        direct = [x for name, x in outputs.items() if name in ("pred_boxes", "pred_corners", "ref_points")]
        return direct + [x for value in outputs.values() for x in boxes_of(value)]
    return [x for value in outputs for x in boxes_of(value)] if isinstance(outputs, list) else []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_boxes_are_float32_under_autocast(dtype: torch.dtype) -> None:
    decoder = small_decoder()
    with torch.autocast("cpu", dtype):
        outputs = decoder(features(), TARGETS)
    found = boxes_of(outputs)
    assert len(found) == 3 * (1 + 2 + 3) + 3
    assert {x.dtype for x in found} == {torch.float32}
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_precision_of_converted_decoders(dtype: torch.dtype, expected: torch.dtype) -> None:
    outputs = small_decoder().to(dtype)(features(dtype=dtype), TARGETS)
    assert {x.dtype for x in boxes_of(outputs)} == {expected}
    assert outputs["pred_logits"].dtype == dtype


def test_quality_starts_neutral_and_then_follows_the_sharpness() -> None:
    quality = LocationQuality(4, nn.ReLU, top=2, hidden=3)
    logits, corners = torch.randn(1, 2, CLASSES), torch.zeros(1, 2, 4 * 5)
    torch.testing.assert_close(quality(logits, corners), logits)
    for parameter in quality.parameters():
        nn.init.constant_(parameter, 0.1)
    corners[0, 1, ::5] = 5.0  # the second query is sure about all four edges
    gain = (quality(logits, corners) - logits)[0]
    assert (gain[1] > gain[0]).all()
    torch.testing.assert_close(gain[:, :1].expand(-1, CLASSES), gain)
