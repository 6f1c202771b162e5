from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_detector import tiny_detector
from torch import Tensor, nn
from torch.utils.data import DataLoader

import detectors
from detectors.data import CocoDataset, collate, eval_transform, locate_split, write_toy_dataset
from detectors.evaluation import CocoEvaluator
from detectors.predictor import Predictor
from vfmdistill.errors import InputError

RNG = np.random.default_rng(0)
ARRAYS = [RNG.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((40, 60), (97, 31), (64, 96))]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny_detector(), threshold=0.0, top_k=15, batch_size=2)


def same(one: Any, other: Any, tolerance: float = 0.0) -> bool:
    pairs = zip(one.as_dict().values(), other.as_dict().values(), strict=True)
    return all(x.shape == y.shape and torch.allclose(x, y, rtol=0, atol=tolerance) for x, y in pairs)


def test_equals_what_evaluation_sees(tmp_path: Path) -> None:
    split = locate_split(write_toy_dataset(tmp_path / "toy", train_images=1, val_images=5, image_size=80), "val")
    model = tiny_detector()
    data = CocoDataset(*split, eval_transform(model.spec.input_size))
    evaluator = CocoEvaluator(data.annotation_file, data.category_ids)
    for images, targets in DataLoader(data, batch_size=2, collate_fn=collate):  # type: ignore[arg-type]
        with torch.no_grad():
            outputs = model(images)
        sizes = [tuple(target["orig_size"].tolist()) for target in targets]
        evaluator.process([int(target["image_id"]) for target in targets], detectors.postprocess(outputs, sizes))
    predictor = Predictor(model, threshold=0.0, batch_size=2, deploy=False)
    files = sorted(split.images_dir.glob("val_*"))
    results = [result for i, found in enumerate(predictor(files)) for result in found.to_coco(i + 2)]
    assert len(results) == 5 * 100  # 20 queries of 5 classes each
    assert results == evaluator.results()


def test_a_deployed_copy_finds_the_same() -> None:
    model = tiny_detector().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    deployed = Predictor(model, threshold=0.0)
    assert deployed.model.deployed
    assert not deployed.model.training
    plain = Predictor(tiny_detector(), threshold=0.0, deploy=False)
    assert plain.model.deployed is False
    assert all(same(one, other, 1e-4) for one, other in zip(deployed(ARRAYS), plain(ARRAYS), strict=True))
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_takes_all_kinds_of_pictures_mixed_in_any_iterable(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(ARRAYS[0]).save(path)
    tensor = torch.from_numpy(ARRAYS[0]).permute(2, 0, 1)
    expected = predictor(ARRAYS[0])
    assert expected.size == (40, 60)
    assert len(expected) == 15
    kinds = [path, str(path), Image.open(path), ARRAYS[0], tensor]
    for several in (kinds, tuple(kinds), iter(kinds)):
        assert [same(found, expected, 1e-4) for found in predictor(several)] == [True] * 5
    assert [same(found, expected, 1e-4) for found in predictor(torch.stack([tensor] * 3))] == [True] * 3
    assert [same(found, expected, 1e-4) for found in predictor(np.stack([ARRAYS[0]] * 3))] == [True] * 3
    assert predictor([]) == []
    # Not rounded to whole numbers after the resize, and so nearly the same.
    assert (predictor(tensor / 255).scores - expected.scores).abs().max() < 5e-3


def test_boxes_are_in_pixels_of_each_upright_picture(predictor: Predictor) -> None:
    found = predictor(ARRAYS)
    assert [each.size for each in found] == [(40, 60), (97, 31), (64, 96)]
    single = predictor(ARRAYS[1])
    assert single.boxes.dtype == torch.float32
    assert same(found[1], single, 1e-4)
    with torch.no_grad():
        outputs = predictor.model((torch.from_numpy(ARRAYS[2]).permute(2, 0, 1) / 255)[None])
    expected = detectors.postprocess(outputs, [(64, 96)], top_k=15)[0]
    assert torch.allclose(predictor(ARRAYS[2]).boxes, expected["boxes"], atol=1e-3)
    assert torch.equal(predictor(ARRAYS[2]).labels, expected["labels"])


def test_stream_reads_no_more_than_a_batch_ahead(predictor: Predictor) -> None:
    read = 0

    def pictures() -> Iterator[np.ndarray[Any, Any]]:
        nonlocal read
        for number in range(7):
            read += 1
            yield ARRAYS[number % 3]

    stream = predictor.stream(pictures())
    assert read == 0
    assert next(stream).size == (40, 60)
    assert read == 2
    assert [found.size[0] for found in stream] == [97, 64, 40, 97, 64, 40]


def test_threshold_and_number_of_detections() -> None:
    model = tiny_detector()
    scores = Predictor(model, threshold=0.0)(ARRAYS[0]).scores
    assert len(scores) == 100
    limit = float(scores[4])
    assert len(Predictor(model, threshold=limit)(ARRAYS[0])) == int((scores >= limit).sum()) < 20
    assert len(Predictor(model, threshold=1.0)(ARRAYS[0])) == 0
    assert len(Predictor(model, threshold=0.0, top_k=7)(ARRAYS[0])) == 7


def test_classes_without_names_are_numbered_and_category_ids_pass_through(predictor: Predictor) -> None:
    unnamed = Predictor(tiny_detector(num_classes=3), threshold=0.0)
    assert unnamed.class_names == ["class 0", "class 1", "class 2"]
    assert set(unnamed(ARRAYS[0]).names) <= set(unnamed.class_names)
    assert unnamed.category_ids is None
    assert predictor(ARRAYS[0]).to_coco(1)[0]["category_id"] in (3, 7, 11, 20, 42)


def test_input_size_is_the_detectors_own_or_another() -> None:
    model = tiny_detector()
    sizes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    assert Predictor(model, deploy=False).input_size == (64, 96)
    for size in (None, 96, (96, 64)):
        Predictor(model, input_size=size, deploy=False)(ARRAYS[0])
    assert sizes == [(64, 96), (96, 96), (96, 64)]
    with pytest.raises(InputError, match=r"divisible by 32\. The nearest sizes that work: 96 × 96 and 128 × 128"):
        Predictor(model, input_size=100)


def test_draws(predictor: Predictor) -> None:
    drawn = predictor.draw(ARRAYS[0], predictor(ARRAYS[0]))
    assert drawn.size == (60, 40)
    assert (np.asarray(drawn) != ARRAYS[0]).any()


def test_a_missing_gpu_is_an_error_and_never_the_cpu() -> None:
    model = tiny_detector()
    assert Predictor(model).device == torch.device("cpu")
    with pytest.raises(InputError, match="device 'cuda:99' cannot be used here"):
        Predictor(model, device="cuda:99")
    with pytest.raises(InputError, match="device 'gpu' cannot be used here"):
        Predictor(model, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device 'cuda' cannot be used here"):
            Predictor(model, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.01), ("bf16", 0.1), ("fp16", 0.02)])
def test_on_a_gpu(precision: Any, tolerance: float) -> None:
    model = tiny_detector()
    expected = Predictor(model, threshold=0.0, device="cpu")(ARRAYS)
    predictor = Predictor(model, threshold=0.0, device="cuda", precision=precision)
    assert next(model.parameters()).device.type == "cpu"
    for one, other in zip(predictor(ARRAYS), expected, strict=True):
        assert one.boxes.device.type == "cpu"
        assert (one.scores - other.scores).abs().max() < tolerance


def test_bfloat16_is_near_and_float16_is_refused_on_the_cpu(predictor: Predictor) -> None:
    half = Predictor(tiny_detector(), threshold=0.0, top_k=15, precision="bf16")
    assert 0 < (half(ARRAYS[0]).scores - predictor(ARRAYS[0]).scores).abs().max() < 0.1
    assert half(ARRAYS[0]).boxes.dtype == torch.float32
    with pytest.raises(InputError, match="'fp16' needs a GPU"):
        Predictor(tiny_detector(), precision="fp16", device="cpu")


def test_a_network_that_answers_nan_is_an_error() -> None:
    model = tiny_detector()
    next(module for module in model.decoder.modules() if isinstance(module, nn.Linear)).bias.data.fill_(torch.nan)
    with pytest.raises(InputError, match="answer in fp32 is not finite"):
        Predictor(model)(ARRAYS[0])


def test_the_picture_at_fault_is_named(predictor: Predictor) -> None:
    with pytest.raises(InputError, match=r"picture 2, counted from 0: a tensor holds a picture as \(3, H, W\)"):
        predictor([ARRAYS[0], ARRAYS[1], torch.zeros(5, 4, 4)])
    with pytest.raises(InputError, match=r"picture 1, counted from 0: image nowhere\.jpg cannot be read"):
        predictor([ARRAYS[0], "nowhere.jpg"])
    with pytest.raises(InputError, match=r"^image nowhere\.jpg cannot be read"):
        predictor("nowhere.jpg")


def test_settings_out_of_range() -> None:
    model = tiny_detector()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"threshold": 50}, "threshold is 50"),
        ({"top_k": 0}, "top_k is 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"precision": "half"}, "'half'; expected 'fp32', 'bf16' or 'fp16'"),
    ]
    for settings, message in wrong:
        with pytest.raises(InputError, match=message):
            Predictor(model, **settings)
    with pytest.raises(InputError, match="training mode"):
        Predictor(model.train(), deploy=False)


def test_computes_in_the_dtype_of_the_weights() -> None:
    def precise(tensor: Tensor) -> Tensor:
        return tensor.double()

    found = Predictor(tiny_detector().double(), threshold=0.0)(ARRAYS[0])
    assert found.scores.dtype == found.boxes.dtype == torch.float32
    expected = Predictor(tiny_detector(), threshold=0.0)(ARRAYS[0])
    assert torch.allclose(precise(found.scores), precise(expected.scores), atol=1e-5)
