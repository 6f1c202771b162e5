import torch
from torch import nn

from detectors.training.buffer_guard import BufferGuard


def test_statistics_that_a_nan_spoiled_come_back_bit_for_bit() -> None:
    torch.manual_seed(0)
    modules = [nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.BatchNorm2d(3)]
    images = torch.rand(2, 3, 5, 5)
    for module in modules:
        module(images)
    guard = BufferGuard(*modules)
    for module in modules:
        module(images)
    guard.save()
    before = [buffer.clone() for module in modules for buffer in module.buffers()]
    images[0, 0, 0, 0] = torch.nan
    for module in modules:
        module(images)
    assert modules[1].running_mean.isnan().any()
    guard.restore()
    after = [buffer for module in modules for buffer in module.buffers()]
    assert len(after) == 6
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert modules[1].num_batches_tracked == 2


def test_modules_without_buffers_need_no_guarding() -> None:
    module = nn.Linear(2, 2)
    guard = BufferGuard(module)
    guard.save()
    with torch.no_grad():
        module.weight.fill_(3.0)
    guard.restore()
    assert (module.weight == 3.0).all()
