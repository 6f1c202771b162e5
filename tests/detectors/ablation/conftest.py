from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from detectors.ablation.arms import Arm
from detectors.ablation.record import AblationRecord, Missing, TrialRecord

Ablation = Callable[..., AblationRecord]

ARMS = [
    Arm(name="off", kind="off", settings={"teacher": None}),
    Arm(name="vit+gam", kind="method", settings={"teacher": "vit"}, baseline="off"),
    Arm(name="cnn+gam", kind="method", settings={"teacher": "cnn"}, baseline="off"),
    Arm(name="shuffled:vit+gam", kind="control", settings={}, baseline="off", control_of="vit+gam"),
]


@pytest.fixture(scope="session")
def ablation() -> Ablation:
    """Make an ablation from the AP of each arm by seed, in points; other figures follow from it."""

    def make(
        points: Mapping[str, Mapping[int, float] | Sequence[float]], missing: Sequence[tuple[str, int]] = ()
    ) -> AblationRecord:
        records = []
        for arm, values in points.items():
            by_seed = values if isinstance(values, Mapping) else dict(enumerate(values))
            for seed, ap in by_seed.items():
                records.append(
                    TrialRecord(
                        arm=arm,
                        seed=seed,
                        folder=f"{arm}/seed_{seed}",
                        figures={"AP": ap / 100, "AP50": (ap + 20) / 100, "AP75": (ap + 5) / 100},
                        per_class={"ace": (ap + 10) / 100, "king": (ap - 10) / 100, "joker": None},
                        step_seconds=1.0 + seed,
                        peak_memory={"bytes": 1000 * (seed + 1), "of": "process"},
                    )
                )
        arms = [arm for arm in ARMS if arm.name in points]
        reasons = [Missing(arm=arm, seed=seed, reason="waiting") for arm, seed in missing]
        return AblationRecord(name="test", arms=arms, recipe={}, records=records, missing=reasons)

    return make
