from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detectors.decoders.rtdetr import RTDETRDecoder
from detectors.losses.criterion import Criterion

CLASSES, DIM, LAYERS = 5, 16, 3
TARGETS = [
    {"labels": torch.tensor([0, 4]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.4]])},
    {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
]


def small_decoder(**options: Any) -> RTDETRDecoder:
    """Return a decoder with heads as after some training: heads that start at zero hide mistakes."""
    torch.manual_seed(0)
    defaults = {"dim": DIM, "num_heads": 2, "feedforward": 32, "num_layers": LAYERS, "num_points": (2, 1)}
    decoder = RTDETRDecoder((DIM, 8), CLASSES, **{**defaults, "num_queries": 12, "num_denoising": 6, **options})
    for name, parameter in decoder.named_parameters():
        if "head" in name:
            nn.init.normal_(parameter, std=0.2)
    return decoder


def features(count: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, *size, generator=generator).to(dtype) for size in ((DIM, 8, 6), (8, 4, 3))]


def test_training_outputs() -> None:
    """Names, nesting and shapes of everything that the criterion reads."""
    outputs = small_decoder()(features(), TARGETS)
    assert set(outputs) == {
        "pred_logits", "pred_boxes", "aux_outputs", "enc_aux_outputs", "enc_meta", "dn_outputs", "dn_meta",
    }  # fmt: skip

    def shapes(prediction: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(x.shape) for name, x in prediction.items()}

    plain = {"pred_logits": (2, 12, CLASSES), "pred_boxes": (2, 12, 4)}
    assert shapes({name: outputs[name] for name in plain}) == plain
    assert [shapes(x) for x in outputs["aux_outputs"]] == [plain] * (LAYERS - 1)
    assert [shapes(x) for x in outputs["enc_aux_outputs"]] == [plain]
    # 6 denoising queries and at most 2 objects: 3 groups of 2 positives and 2 negatives, as many as there are queries
    assert outputs["dn_meta"]["dn_num_split"] == [12, 12]
    assert [shapes(x) for x in outputs["dn_outputs"]] == [plain] * LAYERS


@pytest.mark.parametrize("options", [{"num_denoising": 0}, {}], ids=["switched off", "no boxes"])
def test_without_denoising(options: dict[str, Any]) -> None:
    targets = TARGETS if options else [TARGETS[1], TARGETS[1]]
    outputs = small_decoder(**options)(features(), targets)
    assert not [name for name in outputs if name.startswith("dn_")]


def test_denoising_does_not_reach_the_other_queries() -> None:
    decoder = small_decoder()
    with_denoising, without = decoder(features(), TARGETS), decoder(features())
    torch.testing.assert_close(with_denoising["pred_boxes"], without["pred_boxes"])
    torch.testing.assert_close(with_denoising["pred_logits"], without["pred_logits"])


@pytest.mark.parametrize(("index", "layer"), [(-1, 2), (0, 0), (1, 1)])
def test_outside_training_one_layer_answers_and_later_ones_are_not_run(index: int, layer: int) -> None:
    decoder = small_decoder(eval_index=index)
    decoder.input_projections.eval()  # the same norms in both modes
    trained = decoder(features())
    layers = [*trained["aux_outputs"], trained]
    for stage in list(decoder.stages)[layer + 1 :]:
        stage.register_forward_hook(lambda *_: pytest.fail("a layer behind the answering one was run"))
    answered = decoder.eval()(features())
    assert set(answered) == {"pred_logits", "pred_boxes"}
    for name, value in answered.items():
        torch.testing.assert_close(value, layers[layer][name])


def test_boxes_teach_the_layer_before_and_no_other() -> None:
    """Look forward twice (DINO, arXiv 2203.03605): the last layer's boxes reach back one box head."""
    decoder = small_decoder()
    decoder(features())["pred_boxes"].sum().backward()
    reached = [any(p.grad is not None for p in stage.box_head.parameters()) for stage in decoder.stages]
    assert reached == [False, True, True]


@pytest.mark.parametrize(("widths", "linears"), [((2,), [(4, 32), (32, 16)]), ((1, 1), [(4, 16), (16, 16), (16, 16)])])
def test_position_heads(widths: tuple[int, ...], linears: list[tuple[int, int]]) -> None:
    layers = small_decoder(position_widths=widths).position_head.layers
    assert [(layer.in_features, layer.out_features) for layer in layers] == linears


def test_border_cells_among_the_chosen_leave_everything_finite() -> None:
    """The outermost anchors of rows of 104 and 52 cells are unusable; with queries for every cell all are taken."""
    decoder = small_decoder(num_queries=1000, num_layers=1, eval_index=0)
    maps = [torch.randn(1, DIM, 2, 104), torch.randn(1, 8, 1, 52)]
    outputs = decoder(maps, TARGETS[:1])
    assert (outputs["enc_aux_outputs"][0]["pred_boxes"] == 1).all(dim=-1).sum() == 2 * 2 + 2 * 1
    losses = Criterion(CLASSES, classification="vfl", union_matching=False)(outputs, TARGETS[:1])
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in decoder.parameters() if p.grad is not None)


def test_boxes_are_float32_in_half_precision() -> None:
    decoder = small_decoder().bfloat16().eval()
    outputs = decoder(features(dtype=torch.bfloat16))
    assert outputs["pred_boxes"].dtype == torch.float32
    assert outputs["pred_logits"].dtype == torch.bfloat16
