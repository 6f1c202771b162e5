import torch

from detectors.training.rng_state import RngState

CPU = torch.device("cpu")


def test_restored_generators_draw_the_same_numbers_again() -> None:
    torch.manual_seed(3)
    torch.rand(5)
    state = RngState.take(CPU)
    first = torch.rand(4), torch.randn(3)
    torch.rand(100)
    state.restore(CPU)
    again = torch.rand(4), torch.randn(3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_state_survives_its_way_through_a_file() -> None:
    torch.manual_seed(4)
    state = RngState.of(RngState.take(CPU).tensors())
    first = torch.rand(4)
    state.restore(CPU)
    assert torch.equal(torch.rand(4), first)
    assert state.accelerator is None
