"""One careful reader of weight files: safe, and clear about what is wrong."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vfmdistill.errors import WeightsError
from vfmdistill.weight_files import read_weights_file


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (Path.touch, (Path("touched"),))  # type: ignore[return-value]


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar"])
def test_reads_what_was_saved(ending: str, tmp_path: Path) -> None:
    weights = {"weight": torch.randn(3, 4), "count": torch.tensor(3)}
    path = tmp_path / f"whole{ending}"
    save_file(weights, path) if ending == ".safetensors" else torch.save(weights, path)
    for given in (path, str(path)):
        read = read_weights_file(given)
        assert read.keys() == weights.keys()
        assert all(torch.equal(read[key], value) for key, value in weights.items())


def test_plain_values_beside_the_tensors(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.ones(1)}, "epoch": 3, "names": ["a"]}, tmp_path / "run.pth")
    assert read_weights_file(tmp_path / "run.pth")["names"] == ["a"]


def test_the_arguments_that_a_training_script_has_saved(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.ones(1)}, "args": argparse.Namespace(lr=0.1)}, tmp_path / "run.pth")
    assert read_weights_file(tmp_path / "run.pth")["args"].lr == 0.1


def test_a_file_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"weight": torch.zeros(1)}, "extra": Evil()}, "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth' could not be read.*weights_only=True") as caught:
        read_weights_file("evil.pth")
    assert not Path("touched").exists()
    assert re.search(r"it holds [\w.]+, which is neither a tensor nor a plain value\.", str(caught.value))
    assert "two options" not in str(caught.value)  # one of which would run it


@pytest.mark.parametrize(
    "text", ["<html>not found</html>", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"]
)
def test_text_in_place_of_weights(text: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_text(text)
    with pytest.raises(WeightsError, match="could not be read: it is not in PyTorch's format"):
        read_weights_file(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["torn.pth", "torn.safetensors", "text.pt", "empty.bin", "head.safetensors"])
@pytest.mark.parametrize("length", [0, 100, 2000])
def test_damaged_files(name: str, length: int, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_file({"a": torch.zeros(1000)}, path)
    else:
        torch.save({"a": torch.zeros(1000)}, path)
    content = {"text.pt": b"<html>not found</html>", "empty.bin": b"", "head.safetensors": b"\xff" * 100}
    path.write_bytes(content.get(name, path.read_bytes())[:length])
    with pytest.raises(WeightsError, match=f"{name}' could not be read.* undamaged"):
        read_weights_file(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for name in ("absent.pth", "absent.safetensors", ""):
        with pytest.raises(WeightsError, match=r"does not exist\. Give the path of a \.safetensors, "):
            read_weights_file(tmp_path / name)
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"ends in '\.npz'; expected one of \.safetensors"):
        read_weights_file(tmp_path / "weights.npz")
