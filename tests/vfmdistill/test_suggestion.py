from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from vfmdistill import FixedWeight, GradientModulator, InputError, Update
from vfmdistill.suggestion import suggest_modulator

Line = dict[str, Any]


def line(share: float | None, weight: float = 5.0, after: float | None = None, reason: str | None = None) -> Line:
    after = weight if after is None else after
    reason = reason or ("unchanged" if after == weight else "raised" if after > weight else "lowered")
    return {"epoch": 0, "weight": weight, "share": share, "next_weight": after, "modulation": reason, "AP": 0.1}


def settings(modulator: GradientModulator) -> tuple[float, float | None, float | None, float]:
    return modulator.weight, modulator.rho, modulator.delta, modulator.default_weight


def test_a_fixed_run_gives_the_median_of_its_second_half() -> None:
    log = [line(share) for share in (40.0, 30.0, 20.0, 15.0, 12.0, 10.0, 10.5, 50.0)]
    # second half 12, 10, 10.5, 50: median 11.25; quartiles 10.375 and 21.5
    assert settings(suggest_modulator(log)) == pytest.approx((5.0, 11.25, (21.5 - 10.375) / 2, 5.0))


def test_delta_is_a_tenth_of_rho_where_the_shares_scatter_less() -> None:
    log = [line(share) for share in (90.0, 80.0, 9.9, 10.1)]
    assert settings(suggest_modulator(log)) == pytest.approx((5.0, 10.0, 1.0, 5.0))


def test_an_odd_number_of_epochs_keeps_the_one_in_the_middle() -> None:
    log = [line(30.0), line(10.0), line(12.0)]
    assert settings(suggest_modulator(log)) == pytest.approx((5.0, 11.0, 1.1, 5.0))
    assert settings(suggest_modulator(log[1:])) == pytest.approx((5.0, 12.0, 1.2, 5.0))  # one epoch scatters by 0


def test_epochs_that_moved_the_weight_do_not_count() -> None:
    log = [
        line(2.0, 5.0, 9.0),
        line(8.0, 9.0),
        line(11.0, 9.0),
        line(30.0, 9.0, 6.0),
        line(10.0, 6.0),
        line(10.4, 7.0),
        line(90.0, 6.0, 3.0),
    ]
    # left unchanged: 8, 11, 10 and 10.4; of these the last two
    assert settings(suggest_modulator(log)) == pytest.approx((6.5, 10.2, 1.02, 6.5))


def test_where_the_weight_always_moved_all_epochs_count() -> None:
    log = [line(2.0, 5.0, 9.0), line(3.0, 9.0, 12.0), line(5.0, 12.0, 13.0), line(6.0, 13.0, 14.0), line(6.2, 14.0)]
    # 5, 6 and 6.2 at 12, 13 and 14; quartiles 5.5 and 6.1
    assert settings(suggest_modulator(log)) == pytest.approx((13.0, 6.0, 0.6, 13.0))


def test_the_last_stage_gives_the_default_weight_and_nothing_else() -> None:
    log = [line(11.0), line(11.0), line(70.0, 5.0, 20.0, "final_phase"), line(70.0, 20.0, 20.0, "final_phase")]
    assert settings(suggest_modulator(log)) == pytest.approx((5.0, 11.0, 1.1, 20.0))
    log[2:] = [line(None, 5.0, 17.0, "final_phase")]
    assert suggest_modulator(log).default_weight == 17
    log[2:] = [{"share": 11.0, "modulation": "final_phase"}]  # does not say what λ it was
    assert suggest_modulator(log).default_weight == 5


def test_epochs_without_a_share_do_not_count() -> None:
    useless = [line(None), line(math.nan), line(math.inf), line(0.0), line(9e-7), line(40.0, 0.0), {"epoch": 3}]
    log = [line(60.0), *useless, line(10.0)]
    assert settings(suggest_modulator(log)) == pytest.approx((5.0, 10.0, 1.0, 5.0))


@pytest.mark.parametrize(
    ("shares", "delta"),
    [
        ([1.0, 1.0, 1.0, 0.02, 0.1, 90.0], 0.05),  # quartiles 0.06 and 45.05: ends above 0
        ([1.0, 1.0, 1.0, 98.0, 98.0, 98.0], 1.0),  # a tenth of 98 is too much: ends below 100
    ],
)
def test_the_window_always_fits(shares: list[float], delta: float) -> None:
    suggested = suggest_modulator([line(share) for share in shares])
    assert suggested.rho == shares[4]
    assert suggested.delta == pytest.approx(delta)
    assert eval(repr(suggested)).state_dict() == suggested.state_dict()


def test_updates_and_lines_and_files_say_the_same(tmp_path: Path) -> None:
    modulators: list[GradientModulator | FixedWeight] = [GradientModulator(7.0, calibration_updates=1), FixedWeight(4)]
    for modulator in modulators:
        updates = []
        for step, share in enumerate((9.0, 8.5, 14.0, 9.2, None, 8.7, 9.1)):
            if share is not None:
                modulator.observe(share)
            if step == 6:
                modulator.finish_adapting()
            updates.append(modulator.update())
        lines = [line(update.share, update.previous, update.weight, update.reason) for update in updates]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines) + '{"epoch": 9, "sh')
        suggested = suggest_modulator(tmp_path / "metrics.jsonl")
        for log in (str(tmp_path / "metrics.jsonl"), updates, iter(updates), lines, tuple(lines)):
            assert settings(suggest_modulator(log)) == settings(suggested)
    # The fixed weight has no last stage, so all but the one without a share count: of 9, 8.5, 14, 9.2, 8.7, 9.1
    assert settings(suggested) == pytest.approx((4.0, 9.1, 0.91, 4.0))


def test_too_few_epochs() -> None:
    log = [line(11.0), line(None), line(12.0, 5.0, 20.0, "final_phase")]
    with pytest.raises(
        InputError, match=r"a log of 3 epochs: 2 have a share of 1e-06 % or more .* 1 of these before .* expected 2"
    ):
        suggest_modulator(log)
    with pytest.raises(InputError, match="a log of 0 epochs"):
        suggest_modulator([])


def test_a_tap_with_all_of_the_gradient() -> None:
    with pytest.raises(InputError, match="the median share is 100 %"):
        suggest_modulator([line(100.0)] * 4)


def test_logs_that_are_none(tmp_path: Path) -> None:
    update = Update(5.0, 5.0, 11.0, "unchanged")
    for one in (update, line(11.0), 3):
        with pytest.raises(InputError, match=r"expected a path, or the lines of a log or updates in a list"):
            suggest_modulator(one)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a log with a float in it"):
        suggest_modulator([11.0, 12.0])  # type: ignore[list-item]
    several = Update(5.0, 5.0, 11.0, "by_teacher", {"dinov2": update, "siglip": update})
    with pytest.raises(InputError, match=r"for dinov2, siglip; .*update\.teachers\[name\]"):
        suggest_modulator([several, several])
    with pytest.raises(InputError, match=r"cannot read .*nowhere"):
        suggest_modulator(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cannot read .*Expected the metrics\.jsonl"):
        suggest_modulator(tmp_path)  # a folder
    (tmp_path / "log").write_text('{"epoch": 0}\n[1, 2]\n')
    with pytest.raises(InputError, match=r"line 2 of .*log is '\[1, 2\]'"):
        suggest_modulator(tmp_path / "log")
