import pytest

from detectors.training.run_text import duration, figure, memory, precision


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.3456, "12.35"), (1234, "1234"), (123456.0, "123456"), (0.0004, "0.0004"), (2.5e-5, "2.5e-5"), (0, "0"),
     (-1.5, "-1.5"), (float("nan"), "nan")],
)  # fmt: skip
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (42, "42 s"), (59.7, "1 min 0 s"), (192, "3 min 12 s"), (3600, "1 h 0 min"),
     (11_549, "3 h 12 min"), (183_600, "2 d 3 h")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_memory_and_precision() -> None:
    assert [memory(size) for size in (5 * 2**20, 900 * 2**20, 3.25 * 2**30)] == ["5 MiB", "900 MiB", "3.2 GiB"]
    assert [precision(value) for value in (0.59381, 0, None)] == ["0.594", "0.000", "–"]
