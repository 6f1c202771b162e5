import math

import pytest
import torch

from detectors.losses.finite import NonFiniteError
from detectors.training.meter import LossMeter


def test_means_by_base_name_and_total() -> None:
    meter = LossMeter()
    meter.add(
        1, {"loss_mal": torch.tensor(1.0), "loss_bbox": torch.tensor(2.0), "loss_bbox_aux_1": torch.tensor(3.0)}, [4]
    )
    meter.add(2, {"loss_mal": torch.tensor(5.0), "loss_bbox_dn_pre": torch.tensor(1.0)}, [5])
    assert meter.read() == {"loss": 6.0, "loss_mal": 5.0, "loss_bbox": 1.0}
    assert meter.read() == {}
    meter.add(3, {"loss_mal": torch.tensor(0.0)}, [6])
    assert meter.means() == {"loss": 4.0, "loss_mal": 2.0, "loss_bbox": 2.0}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_with_its_images(value: float) -> None:
    meter = LossMeter()
    meter.add(7, {"loss_mal": torch.tensor(1.0)}, [1])
    meter.add(8, {"loss_mal": torch.tensor(1.0), "loss_giou_aux_0": torch.tensor(value)}, [31, 12])
    with pytest.raises(
        NonFiniteError, match=r"step 8 \(images with ids \[31, 12\]\) .*: loss_giou_aux_0 = (nan|inf)\."
    ):
        meter.means()


def test_sums_go_on_where_another_meter_stopped() -> None:
    whole, first, second = LossMeter(), LossMeter(), LossMeter()
    for step in range(1, 8):
        losses = {"loss_mal": torch.tensor(step / 3), "loss_bbox": torch.tensor(0.1 * step)}
        whole.add(step, losses, [step])
        if step == 4:
            second.load_state(first.state())
        (first if step < 4 else second).add(step, losses, [step])
    assert second.means() == whole.means()


def test_nothing_was_measured() -> None:
    assert LossMeter().means() == {}
