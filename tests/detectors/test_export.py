from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.random_weights import randomise
from torch import Tensor

import detectors
from detectors import export, onnx_check, onnx_graph
from detectors.deploy import deploy
from detectors.export import ExportReport, export_onnx
from detectors.onnx_check import prepare
from detectors.onnx_graph import ExportError, OnnxDetector, read_metadata, write_onnx
from vfmdistill.errors import InputError

onnx = pytest.importorskip("onnx", reason="needs the extra [export]")
ort = pytest.importorskip("onnxruntime", reason="needs the extra [export]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
NAMES = ["cat", "dog", "owl"]


def build(name: str = "deim_n", **options: Any) -> detectors.Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = detectors.build(name, class_names=NAMES, num_queries=20, decoder_layers=1, **options)
    randomise(model)
    model.category_ids, model.license = [7, 90, 13], "CC-BY-4.0"
    return model


def run(path: Path, **inputs: Tensor) -> list[NDArray[Any]]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[Any]] = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return outputs


def photographs(size: tuple[int, int], number: int = 2) -> tuple[Tensor, Tensor]:
    """Images and their sizes before resizing."""
    prepared = prepare(sorted(export.PHOTOGRAPHS.glob("*.jpg")) * number, size)[:number]
    return torch.cat([each.image for each in prepared]), torch.cat([each.size for each in prepared])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    """The usual kind of file, of a size that is not square."""
    path = tmp_path_factory.mktemp("onnx") / "new folder" / "model.onnx"
    return path, export_onnx(build(input_size=(480, 832)).train(), path)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    path = tmp_path_factory.mktemp("onnx") / "half.onnx"
    return path, export_onnx(build(), path, (64, 96), precision="fp16", postprocess=False)


def test_report(exported: tuple[Path, ExportReport]) -> None:
    path, report = exported
    assert (report.path, report.model, report.input_size, report.opset) == (path, "deim_n", (480, 832), 18)
    assert (report.inputs, report.outputs) == (("images", "sizes"), ("scores", "labels", "boxes"))
    assert (report.dynamic_batch, report.precision, report.license) == (True, "fp32", "CC-BY-4.0")
    assert (report.file_size, report.images, report.undecided, report.agreement) == (path.stat().st_size, 2, 0, 1.0)
    assert report.differences.keys() == {"scores", "boxes"}
    assert max(report.differences.values()) < 1e-4
    assert report.versions["torch"] == torch.__version__
    assert [other.name for other in path.parent.iterdir()] == ["model.onnx"]


def test_it_detects_what_the_detector_does_for_any_number_of_images(exported: tuple[Path, ExportReport]) -> None:
    images, sizes = photographs((480, 832), 3)
    assert len(set(map(tuple, sizes.tolist()))) == 2
    with torch.no_grad():
        expected = detectors.postprocess(build().eval()(images), [(h, w) for h, w in sizes.tolist()])
    together = run(exported[0], images=images, sizes=sizes)
    for index, one in enumerate(expected):
        alone = run(exported[0], images=images[index, None], sizes=sizes[index, None])
        for name, own, batched in zip(("scores", "labels", "boxes"), alone, together, strict=True):
            assert own.dtype == one[name].numpy().dtype
            np.testing.assert_allclose(own[0], one[name].numpy(), rtol=0, atol=1e-2 if name == "boxes" else 1e-4)
            np.testing.assert_allclose(batched[index], own[0], rtol=0, atol=1e-2 if name == "boxes" else 1e-4)


def test_the_file_says_what_it_is(exported: tuple[Path, ExportReport]) -> None:
    said = read_metadata(exported[0])
    assert (said["format"], said["version"], said["model"]) == ("vfmdistill-onnx", 1, "deim_n")
    assert (said["class_names"], said["category_ids"]) == (NAMES, [7, 90, 13])
    assert (said["input_size"], said["license"], said["precision"]) == ([480, 832], "CC-BY-4.0", "fp32")
    assert (said["postprocess"], said["top_k"]) == (True, 300)
    session = ort.InferenceSession(exported[0], providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == NAMES


def test_other_runtimes_can_read_the_graph(exported: tuple[Path, ExportReport]) -> None:
    model = onnx.load(exported[0])
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""}
    modes = {
        attribute.s
        for node in model.graph.node
        if node.op_type == "GridSample"
        for attribute in node.attribute
        if attribute.name == "mode"
    }
    assert modes == {b"bilinear"}  # "linear" from opset 20 on
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": ["batch", 3, 480, 832], "sizes": ["batch", 2],
        "scores": ["batch", 60], "labels": ["batch", 60], "boxes": ["batch", 60, 4],
    }  # fmt: skip


def test_the_file_does_not_tell_where_it_was_made(exported: tuple[Path, ExportReport]) -> None:
    contents = exported[0].read_bytes()
    for folder in (Path(detectors.__file__).parents[1], Path(torch.__file__).parents[1]):
        assert str(folder).encode() not in contents


def test_openvino_gives_the_same(exported: tuple[Path, ExportReport]) -> None:
    openvino = pytest.importorskip("openvino", reason="a second runtime, if it is there")
    images, sizes = photographs((480, 832))
    compiled = openvino.Core().compile_model(exported[0], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled({"images": images.numpy(), "sizes": sizes.numpy()})
    expected = run(exported[0], images=images, sizes=sizes)
    for name, one, tolerance in zip(("scores", "labels", "boxes"), expected, (1e-4, 0, 1e-2), strict=True):
        np.testing.assert_allclose(found[name], one, rtol=0, atol=tolerance)


def test_half_precision_ends_before_the_boxes(half: tuple[Path, ExportReport]) -> None:
    path, report = half
    assert (report.precision, report.outputs) == ("fp16", ("pred_logits", "pred_boxes"))
    assert report.agreement >= 0.9
    assert report.differences["boxes"] < 1e-2
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    types |= {value.name: value.data_type for value in model.graph.initializer}
    weights = {types[node.input[1]] for node in model.graph.node if node.op_type == "Conv"}
    assert weights == {HALF}
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {FLOAT}
    for kind in ("GridSample", "Log"):  # sampling; the logit of the boxes
        names = [name for node in model.graph.node if node.op_type == kind for name in (*node.input, *node.output)]
        assert {types[name] for name in names} == {FLOAT}


def test_half_precision_is_nearly_the_same(half: tuple[Path, ExportReport]) -> None:
    images, _ = photographs((64, 96))
    found = run(half[0], images=images)
    assert all(np.isfinite(each).all() for each in found)
    with torch.no_grad():
        expected = build().eval()(images)["pred_logits"].sigmoid().amax(dim=-1).sort().values.numpy()
    np.testing.assert_allclose(np.sort(1 / (1 + np.exp(-found[0].max(axis=-1)))), expected, rtol=0, atol=1e-2)


def test_one_image_of_a_resnet_detector_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = build("rtdetrv2_r18", input_size=64)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    path = tmp_path / "raw.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = export_onnx(model, path, dynamic_batch=False, postprocess=False, images=torch.rand(3, 40, 50))
    assert capfd.readouterr() == ("", "")
    assert (report.dynamic_batch, report.inputs, report.images) == (False, ("images",), 1)
    assert report.differences.keys() == {"scores", "boxes", "logits"}
    assert max(report.differences.values()) < 1e-4
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [1, 3, 64, 64]
    assert read_metadata(path)["top_k"] is None
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert model.training


@pytest.fixture
def write(
    exported: tuple[Path, ExportReport], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Any], Any]], None]:
    """Let `export_onnx` write the usual file with a change to its graph."""

    def change(edit: Callable[[Any], Any]) -> None:
        def fake(module: OnnxDetector, size: Any, dynamic: bool, metadata: Any, path: Path) -> None:
            model = onnx.load(exported[0])
            edit(model.graph)
            onnx.save(model, path)

        monkeypatch.setattr(onnx_graph, "write_onnx", fake)

    return change


def scale_weights(graph: Any) -> None:
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.ndim == 4 and values.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(2), tensor.name))


def divide_boxes_by_zero(graph: Any) -> None:
    boxes = next(node for node in graph.node if "boxes" in node.output)
    boxes.output[list(boxes.output).index("boxes")] = "raw_boxes"
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    graph.node.append(onnx.helper.make_node("Div", ["raw_boxes", "zero"], ["boxes"]))


def swap_outputs(graph: Any) -> None:
    for node in graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = {"scores": "labels", "labels": "scores"}.get(name, name)
    for value in graph.output:
        if value.name in ("scores", "labels"):
            kind = value.type.tensor_type
            kind.elem_type = FLOAT if value.name == "labels" else onnx.TensorProto.INT64


def name_another_operator(graph: Any) -> None:
    graph.node[0].op_type = "Unheard"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            scale_weights,
            r"wrong: on picture 1 of 2, only [\d.]+% of its answers differ by 0.001 or less .* expected 99%",
        ),
        (divide_boxes_by_zero, "boxes of the exported graph are not all finite; the detector's own are"),
        (swap_outputs, r"scores of the exported graph is torch.int64 \(1, 60\)"),
        (name_another_operator, "onnxruntime cannot read the exported graph"),
    ],
)
def test_a_wrong_file_is_an_error_and_leaves_no_file(
    edit: Callable[[Any], None],
    message: str,
    write: Callable[..., None],
    tmp_path: Path,
) -> None:
    write(edit)
    (tmp_path / "model.onnx").write_text("an older file")
    with pytest.raises(ExportError, match=message):
        export_onnx(build(input_size=(480, 832)), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "an older file"
    assert len(list(tmp_path.iterdir())) == 1


def test_where_rounding_decides_on_all_pictures_nothing_is_known(
    write: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(onnx_check, "rounding_decides", lambda *_: True)
    write(scale_weights)
    with pytest.raises(ExportError, match=r"could not be checked: .* on all of the 2 pictures .* Give more pictures"):
        export_onnx(build(input_size=(480, 832)), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_picture_on_which_rounding_decides_is_set_aside(
    write: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measure = onnx_check._differences

    def differ(expected: Any, found: Any, size: Tensor, names: Any) -> Tensor:
        return measure(expected, found, size, names) + (1.0 if size[0, 0] == 298 else 0.0)

    write(lambda graph: None)
    monkeypatch.setattr(onnx_check, "_differences", differ)
    monkeypatch.setattr(onnx_check, "rounding_decides", lambda *_: False)
    model = build(input_size=(480, 832))
    with pytest.raises(ExportError, match="wrong: on picture 2 of 2"):
        export_onnx(model, tmp_path / "model.onnx")
    monkeypatch.setattr(onnx_check, "rounding_decides", lambda *_: True)
    report = export_onnx(model, tmp_path / "model.onnx")
    assert (report.images, report.undecided, report.agreement) == (1, 1, 1.0)


def test_a_right_file_replaces_an_older_one(write: Callable[..., None], tmp_path: Path) -> None:
    write(lambda graph: None)
    (tmp_path / "model.onnx").write_text("an older file")
    report = export_onnx(build(input_size=(480, 832)), tmp_path / "model.onnx")
    assert report.file_size == (tmp_path / "model.onnx").stat().st_size > 1e6


def test_what_the_exporter_cannot_take_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no such operator")

    monkeypatch.setattr(onnx_graph, "_trace", fail)
    module = OnnxDetector(deploy(build()), None)
    with pytest.raises(ExportError, match=r"could not export the detector: ValueError: no such operator"):
        write_onnx(module, (64, 64), True, {}, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision is 'int8'; expected 'fp32' or 'fp16'"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"input_size": (60, 96)}, "The nearest sizes that work: 32 × 96 and 64 × 96"),
        ({"images": []}, "images is empty"),
        ({"images": ["missing.jpg"]}, "missing.jpg"),
    ],
)
def test_bad_arguments_are_errors_before_anything_is_written(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        export_onnx(build(), tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder; give a file, for example .*model\.onnx"):
        export_onnx(build(), tmp_path)


def test_missing_packages_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name.startswith("onnx") else name)
    with pytest.raises(InputError, match=r"needs onnx, onnxruntime, onnxscript, .* pip install 'vfmdistill\[export\]'"):
        export_onnx(build(), tmp_path / "model.onnx")


def test_photographs_come_with_the_package() -> None:
    assert len(list(export.PHOTOGRAPHS.glob("*.jpg"))) == 2
