import torch
from torch import nn

from detectors.training.ema import WeightAverage
from detectors.training.schedule import ema_decay


def test_average_follows_the_recurrence_and_copies_counters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = WeightAverage(model, decay=0.9, warmup=2)
    expected = {key: value.double().clone() for key, value in model.state_dict().items()}
    for update in range(1, 6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(8, 3))  # moves the running statistics and the counter
        average.update(model)
        d = ema_decay(update, decay=0.9, warmup=2)
        for key, value in model.state_dict().items():
            expected[key] = (
                expected[key] * d + value.double() * (1 - d) if value.is_floating_point() else value.double()
            )
    for key, value in average.model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)
    assert average.updates == 5


def test_average_is_apart_from_the_model() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model)
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert all(
        a.data_ptr() != b.data_ptr() for a, b in zip(average.model.parameters(), model.parameters(), strict=True)
    )


def test_state_is_the_decay_and_the_number_of_updates() -> None:
    average = WeightAverage(nn.Linear(2, 2), decay=0.9)
    average.update(nn.Linear(2, 2))
    average.decay -= 0.1
    other = WeightAverage(nn.Linear(2, 2), decay=0.9)
    other.load_state(average.state())
    assert (other.decay, other.updates) == (average.decay, 1)
