from __future__ import annotations

import json
import math

import pytest
from scipy import stats

from detectors.ablation.comparison import compare
from detectors.ablation.statistics import holm, seeds_needed
from vfmdistill.errors import InputError

from .conftest import Ablation

OFF = [40.0, 44.0, 42.0, 41.0, 43.0]
VIT = [41.2, 44.9, 43.3, 41.8, 44.1]
CNN = [40.3, 43.8, 42.4, 41.1, 42.7]
SHUFFLED = [39.9, 44.2, 41.8, 41.3, 42.9]


def test_arms_are_summed_up_in_points(ablation: Ablation) -> None:
    off, *_ = compare(ablation({"off": OFF, "vit+gam": VIT})).summaries
    assert off.arm.name == "off"
    assert off.seeds == (0, 1, 2, 3, 4)
    assert off.means == pytest.approx({"AP": 42.0, "AP50": 62.0, "AP75": 47.0})
    assert off.deviations["AP"] == pytest.approx(2.5**0.5)
    assert off.per_class["ace"] == pytest.approx(52.0)
    assert off.per_class["joker"] is None
    assert off.step_seconds == 3.0
    assert off.peak_memory == 3000.0


def test_arms_are_compared_with_off_and_methods_with_their_controls(ablation: Ablation) -> None:
    found = compare(ablation({"off": OFF, "vit+gam": VIT, "cnn+gam": CNN, "shuffled:vit+gam": SHUFFLED}))
    assert [(one.arm, one.other) for one in found.contrasts] == [
        ("vit+gam", "off"),
        ("cnn+gam", "off"),
        ("shuffled:vit+gam", "off"),
    ]
    assert [(one.arm, one.other) for one in found.controls] == [("vit+gam", "shuffled:vit+gam")]
    vit = found.contrasts[0]
    assert vit.differences["AP"].mean == pytest.approx(1.06)
    assert vit.per_class == pytest.approx({"ace": 1.06, "king": 1.06})
    tested = [stats.ttest_rel(values, OFF).pvalue for values in (VIT, CNN, SHUFFLED)]
    assert [one.p_holm for one in found.contrasts] == pytest.approx(holm(tested), rel=1e-9)
    # Over one pair of method and control, there is nothing to correct.
    assert found.controls[0].p_holm == pytest.approx(stats.ttest_rel(VIT, SHUFFLED).pvalue, rel=1e-9)
    deviation = vit.differences["AP"].deviation
    assert deviation is not None
    assert vit.seeds_needed == seeds_needed(deviation, 0.3)
    assert vit.verdict.startswith("A gain: +1.06 AP")
    assert found.contrasts[1].verdict.startswith("No evidence of a gain")


def test_only_common_seeds_are_compared(ablation: Ablation) -> None:
    found = compare(ablation({"off": {0: 40.0, 1: 44.0, 2: 42.0}, "vit+gam": {1: 45.0, 2: 42.5, 7: 90.0}}))
    difference = found.contrasts[0].differences["AP"]
    assert difference.values == pytest.approx({1: 1.0, 2: 0.5})
    assert found.contrasts[0].verdict.startswith("Too few seeds to say")
    assert found.summaries[1].seeds == (1, 2, 7)


def test_one_seed_has_no_interval_and_no_p(ablation: Ablation) -> None:
    found = compare(ablation({"off": [40.0], "vit+gam": [41.0]}))
    (contrast,) = found.contrasts
    assert (contrast.p_holm, contrast.seeds_needed, contrast.differences["AP"].t) == (None, None, None)
    assert contrast.verdict == "Too few seeds to say: +1.00 AP (1 seed)."
    assert found.summaries[0].deviations["AP"] is None


def test_what_is_not_there_yet_is_left_out(ablation: Ablation) -> None:
    record = ablation({"off": OFF, "vit+gam": {9: 41.0}, "cnn+gam": {}}, missing=[("cnn+gam", 0), ("off", 9)])
    found = compare(record)
    assert [summary.arm.name for summary in found.summaries] == ["off", "vit+gam"]
    assert found.contrasts == ()  # off has no seed 9
    assert found.headline == "No method was compared. 2 runs are missing."


def test_a_figure_that_one_run_lacks_is_compared_over_the_others(ablation: Ablation) -> None:
    record = ablation({"off": OFF, "vit+gam": VIT})
    del record.records[0].figures["AP75"]
    found = compare(record)
    assert list(found.contrasts[0].differences["AP75"].values) == [1, 2, 3, 4]
    assert found.summaries[0].means["AP75"] == pytest.approx(47.5)


def test_a_class_is_compared_over_the_seeds_that_measured_it(ablation: Ablation) -> None:
    record = ablation({"off": OFF, "vit+gam": VIT})
    record.records[0].per_class["ace"] = None
    assert compare(record).contrasts[0].per_class["ace"] == pytest.approx((0.9 + 1.3 + 0.8 + 1.1) / 4)


def test_the_record_comes_back_from_json(ablation: Ablation) -> None:
    record = ablation({"off": OFF, "vit+gam": VIT})
    again = type(record).model_validate(json.loads(record.model_dump_json()))
    assert compare(again) == compare(record)


def test_a_figure_that_is_not_finite_is_refused(ablation: Ablation) -> None:
    with pytest.raises(InputError, match="expected finite numbers"):
        compare(ablation({"off": OFF, "vit+gam": [*VIT[:4], math.nan]}))
