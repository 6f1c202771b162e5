from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

import detectors
from detectors.detector import Detector
from vfmdistill.adapters.protocol import StudentAdapter
from vfmdistill.errors import InputError

TARGETS = [
    {"labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.4]])},
    {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
]


@pytest.fixture(scope="module")
def trained() -> Detector:
    """A detector whose heads are not zero any more."""
    torch.manual_seed(0)
    model = detectors.build("rtdetrv4_n", num_classes=3, num_queries=50).eval()
    with torch.no_grad():
        for name, parameter in model.decoder.named_parameters():
            if "head" in name or "perceptron" in name:
                parameter.normal_(std=0.1)
    return model


@pytest.fixture
def model(trained: Detector) -> Detector:
    return copy.deepcopy(trained)


def images(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height + width))


@pytest.mark.parametrize(
    ("height", "width", "queries"),
    [(32, 32, 5), (32, 64, 10), (128, 128, 50), (96, 32, 15), (160, 320, 50), (32, 1664, 50)],
)
def test_any_size_divisible_by_32(model: Detector, height: int, width: int, queries: int) -> None:
    """Boxes are finite, and there are never more queries than cells at strides 16 and 32."""
    with torch.no_grad():
        outputs = model(images(2, height, width))
    assert outputs["pred_logits"].shape == (2, queries, 3)
    assert outputs["pred_boxes"].shape == (2, queries, 4)
    assert all(x.isfinite().all() for x in outputs.values())
    losses = detectors.build_criterion(model.spec, 3)(model.train()(images(2, height, width), TARGETS), TARGETS)
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_every_trained_parameter_gets_a_gradient(model: Detector) -> None:
    losses = detectors.build_criterion(model.spec, 3)(model.train()(images(2, 64, 64), TARGETS), TARGETS)
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["decoder.up", "decoder.reg_scale"]


def test_other_sizes_name_the_nearest_that_work(model: Detector) -> None:
    with pytest.raises(InputError, match=r"100 × 640: .* divisible by 32\. .*work: 96 × 640 and 128 × 640"):
        model(images(1, 100, 640))
    with pytest.raises(InputError, match=r"20 × 33: .*work: 32 × 32 and 32 × 64"):
        model(images(1, 20, 33))


def test_images_have_to_be_batches_of_rgb_in_floating_point(model: Detector) -> None:
    with pytest.raises(InputError, match=r"\(N, 3, H, W\), got \(3, 64, 64\)"):
        model(torch.rand(3, 64, 64))
    with pytest.raises(InputError, match=r"got \(1, 1, 64, 64\)"):
        model(torch.rand(1, 1, 64, 64))
    with pytest.raises(InputError, match=r"torch.uint8; divide by 255"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_targets_have_to_match_the_images(model: Detector) -> None:
    with pytest.raises(InputError, match="2 targets for 1 images"):
        model(images(1, 64, 64), TARGETS)


def test_training_without_targets_or_boxes(model: Detector) -> None:
    model.train()
    assert "dn_outputs" in model(images(2, 64, 64), TARGETS)
    assert "dn_outputs" not in model(images(2, 64, 64))
    assert "dn_outputs" not in model(images(2, 64, 64), [TARGETS[1]] * 2)


def test_images_of_a_batch_do_not_mix(model: Detector) -> None:
    batch = images(3, 64, 96)
    with torch.no_grad():
        together, alone = model(batch), model(batch[1:2])
    for key, value in alone.items():
        torch.testing.assert_close(together[key][1:2], value, atol=1e-4, rtol=1e-4)


def test_other_sizes_in_between_change_nothing(model: Detector) -> None:
    with torch.no_grad():
        first = model(images(1, 64, 96))
        model(images(1, 96, 64))
        again = model(images(1, 64, 96))
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_copies_and_pickles_give_the_same(model: Detector) -> None:
    batch = images(1, 64, 64)
    with torch.no_grad():
        expected = model(batch)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert other.state_dict().keys() == model.state_dict().keys()
            assert all(torch.equal(other(batch)[key], value) for key, value in expected.items())


def test_inference_mode_does_not_spoil_training(model: Detector) -> None:
    with torch.inference_mode():
        model(images(1, 64, 64))
    model.train()(images(2, 64, 64), TARGETS)["pred_boxes"].sum().backward()
    assert all(parameter.grad is not None for parameter in model.encoder.aifi.parameters())


def test_is_its_own_adapter(model: Detector) -> None:
    """The tap is AIFI, and what it gives is F5, the map at stride 32."""
    assert isinstance(model, StudentAdapter)
    (tap,) = model.taps(model)
    assert (tap.path, tap.module) == ("encoder.aifi", model.encoder.aifi)
    seen: list[Tensor] = []
    tap.module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    batch = images(2, 64, 96)
    model(batch)
    assert model.feature_map(tap, seen[0], batch).shape == (2, 128, 2, 3)


def test_exports_as_one_graph(model: Detector) -> None:
    batch = images(1, 64, 64)
    exported = torch.export.export(model, (batch,)).module()
    with torch.no_grad():
        for key, value in model(batch).items():
            torch.testing.assert_close(exported(batch)[key], value)
    assert len(model.encoder.aifi._positions) == 1  # what was traced did not stay in the cache
