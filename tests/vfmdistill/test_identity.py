"""Who a teacher is: what its identity follows from, and what it does not."""

from __future__ import annotations

from importlib import metadata

import torch
from torch import Tensor, nn

from vfmdistill.teachers.identity import Identity, as_bytes, fingerprint, identify
from vfmdistill.teachers.readout import Readout
from vfmdistill.teachers.spec import TeacherSpec

SPEC = TeacherSpec(name="tiny", family="tiny", backend="module", model_id="tiny", patch_size=4, embed_dim=3)


def identity(network: nn.Module, readout: Readout | None = None, **changes: object) -> Identity:
    return identify(network, SPEC.model_copy(update=changes), readout or Readout(), torch.float32)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 4), nn.BatchNorm2d(3), nn.Softmax(dim=1))


def test_it_follows_from_all_that_decides_the_features() -> None:
    touched, renamed, other = network(), network(), network()
    touched[1].running_var[2] += 1e-6
    renamed.add_module("head", renamed.pop(0))
    other[2] = nn.Softmax(dim=2)  # without parameters, and seen in its structure alone
    prints = [
        fingerprint(of)
        for of in (
            identity(network()),
            identity(touched),
            identity(renamed),
            identity(other),
            identity(network(), Readout(blocks=(1, 2))),
            identity(network(), mean=(0.5, 0.5, 0.5)),
            identity(network(), patch_size=8),
            identity(network(), name="tinier"),
        )
    ]
    assert len(set(prints)) == len(prints)


def test_it_does_not_follow_from_anything_else() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = lambda tensor: tensor

        def extra_repr(self) -> str:
            return str(self.act)  # holds an address

    own = identity(network())
    assert identity(network(), license="mit", params=1) == own
    assert identity(network().to(memory_format=torch.channels_last)) == own
    kept = [Named(), Named()]
    assert str(kept[0]) != str(kept[1])
    assert identity(kept[0]) == identity(kept[1])


def test_the_versions_of_the_code_that_reads_features_belong_to_it() -> None:
    versions = identity(network(), backend="timm")["versions"]
    assert versions["timm"] == metadata.version("timm")
    assert set(identity(network())["versions"]) == {"vfmdistill"}


def test_bytes_follow_the_indices() -> None:
    def check(tensor: Tensor, expected: Tensor) -> None:
        assert bytes(as_bytes(tensor)) == expected.numpy().tobytes()

    table = torch.arange(6.0).view(2, 3)
    check(table.T, torch.tensor([0.0, 3, 1, 4, 2, 5]))
    check(table[:, 1:], torch.tensor([1.0, 2, 4, 5]))
    check(torch.tensor(7), torch.tensor([7]))
    check(torch.tensor([True, False]), torch.tensor([1, 0], dtype=torch.uint8))
    check(torch.empty(0), torch.empty(0))
    check(torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([16256], dtype=torch.int16))
    check(torch.ones(2, requires_grad=True), torch.ones(2))
