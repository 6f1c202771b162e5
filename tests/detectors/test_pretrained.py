from __future__ import annotations

import json
import pydoc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import detectors
from detectors.checkpoints import load_reference_checkpoint
from detectors.deploy import deploy
from detectors.detector import Detector
from detectors.pretrained import from_pretrained, save_pretrained
from vfmdistill.errors import InputError, WeightsError

OPTIONS: dict[str, Any] = {"decoder_layers": 2, "num_queries": 20}


def build(class_names: list[str] | None = None, **options: Any) -> Detector:
    count = None if class_names else 3
    return detectors.build("deim_n", count, class_names, **{**OPTIONS, **options})


def same_weights(one: Detector, other: Detector) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def edit(directory: Path, **changes: Any) -> None:
    """Change fields of config.json; the value None removes one."""
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_everything_survives(tmp_path: Path) -> None:
    model = build(["a", "b", "c"], input_size=(96, 64))
    model.category_ids, model.license = [7, 90, 13], "Apache-2.0"
    save_pretrained(model, tmp_path / "new" / "folder")
    state = torch.get_rng_state()
    loaded = from_pretrained(str(tmp_path / "new" / "folder"))
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(model, loaded)
    assert loaded.spec == model.spec
    assert (loaded.class_names, loaded.category_ids, loaded.license) == (["a", "b", "c"], [7, 90, 13], "Apache-2.0")
    assert not loaded.training
    assert not loaded.deployed
    images = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images)["pred_boxes"], model.eval()(images)["pred_boxes"])


def test_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    model = build(["a", "b", "c"])
    save_pretrained(model, tmp_path, license="CC-BY-4.0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert len(config.pop("sha256")) == 64
    assert config == {
        "format": "vfmdistill-detector",
        "version": 1,
        "model": "deim_n",
        "options": {"input_size": [640, 640], "decoder_layers": 2, "num_queries": 20},
        "num_classes": 3,
        "class_names": ["a", "b", "c"],
        "category_ids": None,
        "license": "CC-BY-4.0",
        "deployed": False,
    }
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    assert model.license is None


@pytest.mark.parametrize("name", ["rtdetr_r18", "dfine_n"])
def test_other_kinds(name: str, tmp_path: Path) -> None:
    model = detectors.build(name, num_classes=3, num_denoising=0, decoder_layers=1)
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert same_weights(model, loaded)
    assert (loaded.class_names, loaded.num_classes) == (None, 3)


def test_deployed(tmp_path: Path) -> None:
    model = deploy(build(["a", "b", "c"]))
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.deployed
    assert same_weights(model, loaded)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images)["pred_logits"], model(images)["pred_logits"])


def test_the_precision_survives(tmp_path: Path) -> None:
    model = build().double()
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}
    assert same_weights(model, loaded)


def test_a_fine_tune_keeps_the_rows_of_the_classes_it_knows(tmp_path: Path) -> None:
    """From the category ids {7: a, 90: b, 13: c} to {13: c, 4: d}."""
    trained = build(["a", "b", "c"])
    trained.category_ids, trained.license = [7, 90, 13], "Apache-2.0"
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.uniform_(-1, 1)
    save_pretrained(trained, tmp_path)

    model = build(["c", "d"], num_queries=30, num_denoising=20)
    model.category_ids = [13, 4]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_reference_checkpoint(model, tmp_path)
    given = trained.state_dict()
    rows = [
        key for key in before if key.endswith(("score_head.weight", "score_head.bias", "denoising_embedding.weight"))
    ]
    assert len(rows) == 2 + 2 * 2 + 1
    for key, value in model.state_dict().items():
        if key in rows:
            assert torch.equal(value[0], given[key][2]), key
            assert torch.equal(value[1], before[key][1]), key
            assert len(value) == 2 or torch.equal(value[2], given[key][3]), key
        else:
            assert torch.equal(value, given[key]), key
    assert (report.classes.kept, report.classes.new, report.classes.dropped) == (("c",), ("d",), ("a", "b"))
    assert (model.class_names, model.category_ids, model.license) == (["c", "d"], [13, 4], "Apache-2.0")
    save_pretrained(model, tmp_path)
    assert from_pretrained(tmp_path).category_ids == [13, 4]


def test_starting_from_a_folder_checks_how_it_was_built(tmp_path: Path) -> None:
    save_pretrained(build(), tmp_path)
    other = detectors.build("dfine_n", num_classes=3, **OPTIONS)
    with pytest.raises(WeightsError, match=r"'deim_n' in .* this 'dfine_n': it has activation='silu' instead of"):
        load_reference_checkpoint(other, tmp_path)
    load_reference_checkpoint(detectors.build("rtdetrv4_n", num_classes=3, **OPTIONS), tmp_path)
    save_pretrained(deploy(build()), tmp_path)
    with pytest.raises(WeightsError, match="holds a deployed detector"):
        load_reference_checkpoint(build(), tmp_path)


def test_unnamed_classes_of_a_folder_are_not_coco(tmp_path: Path) -> None:
    save_pretrained(detectors.build("deim_n", num_classes=80, **OPTIONS), tmp_path)
    with pytest.raises(WeightsError, match=r"unknown: the checkpoint's"):
        load_reference_checkpoint(build(["dog"]), tmp_path)


class StoppedError(Exception):
    """Stands for whatever goes wrong."""


def stop_at(patch: pytest.MonkeyPatch, function: str, count: int) -> None:
    """Let the n-th call of a function that a save makes fail."""
    owner, name = function.rsplit(".", 1)
    original = pydoc.locate(function)
    assert callable(original)
    calls: list[Any] = []

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == count:
            raise StoppedError
        return original(*arguments, **options)

    patch.setattr(pydoc.locate(owner), name, failing)


SAVE_STEPS = [
    ("safetensors.torch.save_file", 1),
    ("detectors.pretrained._digest", 1),
    ("pathlib.Path.write_text", 1),
    ("detectors.pretrained.flush", 2),
    ("pathlib.Path.replace", 1),  # of config.json
]


@pytest.mark.parametrize(("function", "count"), SAVE_STEPS)
def test_a_failed_save_leaves_what_was_there(
    function: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = build(["a", "b", "c"])
    save_pretrained(old, tmp_path)
    with monkeypatch.context() as patch:
        stop_at(patch, function, count)
        with pytest.raises(StoppedError):
            save_pretrained(build(["x"]), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert same_weights(from_pretrained(tmp_path), old)


@pytest.mark.parametrize(("function", "count"), [*SAVE_STEPS, ("pathlib.Path.replace", 2)])
def test_a_killed_save_leaves_one_whole_detector(
    function: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the replacement of config.json the new one is there, before it the old one; either can be saved over."""
    old, new = build(["a", "b"]), build(["x"])
    save_pretrained(old, tmp_path)
    with monkeypatch.context() as patch:
        stop_at(patch, function, count)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # who is killed does not tidy up
        with pytest.raises(StoppedError):
            save_pretrained(new, tmp_path)
    expected = new if count == 2 and function.endswith("replace") else old
    assert same_weights(from_pretrained(tmp_path), expected)
    assert from_pretrained(tmp_path).class_names == expected.class_names

    with monkeypatch.context() as patch:  # nor does a second save that fails do harm
        stop_at(patch, "safetensors.torch.save_file", 1)
        with pytest.raises(StoppedError):
            save_pretrained(old, tmp_path)
    assert same_weights(from_pretrained(tmp_path), expected)
    save_pretrained(old, tmp_path)
    assert same_weights(from_pretrained(tmp_path), old)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; give a folder"):
        save_pretrained(build(), tmp_path / "file")
    with pytest.raises(InputError, match=r"takes a detector, got DataParallel; unwrap it \(model\.module"):
        save_pretrained(torch.nn.DataParallel(build()), tmp_path)  # type: ignore[arg-type]
    model = build(["a", "b", "c"])
    model.category_ids = [1, 2]
    with pytest.raises(InputError, match=r"cannot be saved: .*category_ids holds 2 values for 3 classes"):
        save_pretrained(model, tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []


def damage_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def truncate_weights(folder: Path) -> None:
    edit(folder, sha256=None)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])


def drop_a_tensor(folder: Path) -> None:
    edit(folder, sha256=None)
    tensors = load_file(folder / "model.safetensors")
    tensors["surplus"] = tensors.pop("decoder.up").clone()
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"no file .*config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is damaged"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), r"config\.json is damaged"),
        (lambda folder: edit(folder, format="other"), "format 'other', not 'vfmdistill-detector'"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "d_fine"}'), "load_reference_checkpoint"),
        (lambda folder: edit(folder, version=2), "version 2 of the format, and this vfmdistill reads version 1"),
        (lambda folder: edit(folder, model="deim_q"), "unknown model 'deim_q'; nearest: deim_"),
        (lambda folder: edit(folder, options={"layers": 3}), "unknown model option 'layers'"),
        (lambda folder: edit(folder, options={"input_size": [100, 100]}), "divisible by 32"),
        (lambda folder: edit(folder, class_names=["a", "b"]), "class_names holds 2 values for 3 classes"),
        (lambda folder: edit(folder, class_names=["a", "b", "a"]), "class_names holds the same value twice"),
        (lambda folder: edit(folder, category_ids=[1, "2", 3]), r"category_ids\.1: .* valid integer"),
        (lambda folder: edit(folder, num_classes=None), "num_classes: Field required"),
        (lambda folder: edit(folder, colour="red"), "colour: Extra inputs"),
        (lambda folder: edit(folder, options={}), r"do not fit the 'deim_n'.*missing \(first: \['decoder\.stages\.2"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors' does not exist"),
        (damage_weights, r"model\.safetensors is damaged or was replaced"),
        (truncate_weights, r"model\.safetensors' could not be read"),
        (drop_a_tensor, r"1 tensors are missing \(first: \['decoder\.up'\]\), 1 left over \(first: \['surplus'\]\)"),
    ],
)
def test_unreadable_folders(spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    save_pretrained(build(["a", "b", "c"]), tmp_path)
    spoil(tmp_path)
    with pytest.raises(WeightsError, match=message):
        from_pretrained(tmp_path)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there is no folder .*absent; give one that"):
        from_pretrained(tmp_path / "absent")


def test_weights_may_be_replaced_on_purpose(tmp_path: Path) -> None:
    save_pretrained(build(), tmp_path)
    other = build()
    save_file(other.state_dict(), tmp_path / "model.safetensors")
    edit(tmp_path, sha256=None)
    assert same_weights(from_pretrained(tmp_path), other)
