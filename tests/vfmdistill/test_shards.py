"""Weights in several files, and folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vfmdistill.errors import WeightsError
from vfmdistill.teachers.files import read_state_dict

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2), "b.weight": torch.zeros(1)}
INDEX = "model.safetensors.index.json"


def write(folder: Path, parts: dict[str, dict[str, Tensor]], **extra: str) -> Path:
    """Save the parts and, beside them, an index as transformers writes it."""
    for name, part in parts.items():
        save_file(part, folder / name) if name.endswith(".safetensors") else torch.save(part, folder / name)
    places = {key: name for name, part in parts.items() for key in part} | extra
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": places}))
    return folder / INDEX


@pytest.fixture
def index(tmp_path: Path) -> Path:
    first, second = dict(list(STATE.items())[:1]), dict(list(STATE.items())[1:])
    return write(tmp_path, {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": second})


def assert_is_state(found: dict[str, Tensor]) -> None:
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in STATE.items())


def test_an_index(index: Path) -> None:
    assert_is_state(read_state_dict(index))
    assert_is_state(read_state_dict(str(index)))


def test_a_folder_with_an_index(index: Path) -> None:
    assert_is_state(read_state_dict(index.parent))


def test_pytorchs_own_format(tmp_path: Path) -> None:
    assert_is_state(read_state_dict(write(tmp_path, {"pytorch_model-00001-of-00001.bin": STATE})))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"])
def test_a_folder_with_one_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    save_file(STATE, path) if name.endswith(".safetensors") else torch.save(STATE, path)
    (tmp_path / "config.json").write_text("{}")
    assert_is_state(read_state_dict(tmp_path))


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds no weights; expected one of model\.safetensors, .*Give the path"):
        read_state_dict(tmp_path)


def test_an_index_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"index\.json' does not exist"):
        read_state_dict(tmp_path / INDEX)


def test_a_file_that_is_not_there(index: Path) -> None:
    (index.parent / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"do not lie beside it: model-00002-of-00002\.safetensors\. Put all"):
        read_state_dict(index)


def test_files_of_two_saves(tmp_path: Path) -> None:
    index = write(tmp_path, {"model-00001-of-00001.safetensors": STATE}, other="model-00001-of-00001.safetensors")
    with pytest.raises(WeightsError, match=r"lack 1 of its tensors: other\. They are not from the same save"):
        read_state_dict(index)


def test_a_file_that_is_no_part_of_a_state_dict(tmp_path: Path) -> None:
    index = write(tmp_path, {"pytorch_model-00001-of-00001.bin": STATE})
    torch.save([1, 2], tmp_path / "pytorch_model-00001-of-00001.bin")
    with pytest.raises(WeightsError, match=r"00001\.bin' holds no state dict; copy it again"):
        read_state_dict(index)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "deeper/model.safetensors"])
def test_an_index_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    index = write(tmp_path, {"model-00001-of-00001.safetensors": STATE}, other=name)
    with pytest.raises(WeightsError, match=f"must name files that lie beside it; it names {name}"):
        read_state_dict(index)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": 3}', "null"])
def test_an_index_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(WeightsError, match="could not be read as an index of weights"):
        read_state_dict(tmp_path / INDEX)


def test_an_index_of_nothing(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text('{"weight_map": {}}')
    with pytest.raises(WeightsError, match="it names none"):
        read_state_dict(tmp_path / INDEX)
