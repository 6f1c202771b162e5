from pathlib import Path

import pytest
import torch
from torch import nn

from detectors.training import checkpoint
from vfmdistill.errors import InputError


def test_round_trip_is_exact(tmp_path: Path) -> None:
    tensors = {"model": {"a": torch.randn(3, 4), "b": torch.tensor(7)}, "ema": {"a": torch.randn(2).double()}}
    path = checkpoint.write_checkpoint(tmp_path, "epoch_0001", tensors, {"share": 0.1 + 0.2, "epoch": 1})
    read, state = checkpoint.read_checkpoint(path)
    assert state == {"format": checkpoint.FORMAT, "parts": ["ema", "model"], "share": 0.1 + 0.2, "epoch": 1}
    for part, values in tensors.items():
        assert read[part].keys() == values.keys()
        assert all(torch.equal(read[part][key], value) for key, value in values.items())


def test_a_failed_write_leaves_nothing_and_keeps_the_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.write_checkpoint(tmp_path, "epoch_0001", {"m": {"a": torch.ones(1)}}, {})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    for name in ("epoch_0001", "epoch_0002"):
        with pytest.raises(OSError, match="No space left"):
            checkpoint.write_checkpoint(tmp_path, name, {"m": {"a": torch.zeros(1)}}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_0001"]
    assert checkpoint.read_checkpoint(tmp_path / "epoch_0001")[0]["m"]["a"].item() == 1


def test_newest_ignores_what_is_unfinished_or_not_a_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest_checkpoint(tmp_path / "nowhere") is None
    for name in ("epoch_9999", "epoch_10000", ".unfinished_epoch_0011", "best_0012"):
        (tmp_path / name).mkdir()
    newest = checkpoint.newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "epoch_10000"
    checkpoint.prune_checkpoints(tmp_path, keep=1)
    assert not (tmp_path / "epoch_9999").exists()
    assert (tmp_path / "best_0012").exists()


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = checkpoint.write_checkpoint(tmp_path, "epoch_0001", {"m": {"a": torch.ones(100)}}, {})
    file = path / "m.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(InputError, match="epoch_0001 is not a complete checkpoint"):
        checkpoint.read_checkpoint(path)
    file.unlink()
    with pytest.raises(InputError, match=r"not a complete checkpoint: .*m\.safetensors"):
        checkpoint.read_checkpoint(path)


def test_optimizer_state_by_parameter_name() -> None:
    def build() -> tuple[nn.Linear, torch.optim.AdamW]:
        layer = nn.Linear(2, 2)
        return layer, torch.optim.AdamW([{"params": [layer.weight, layer.bias], "names": ["w", "b"]}])

    layer, optimizer = build()
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tensors = checkpoint.optimizer_tensors(optimizer)
    assert set(tensors) == {f"{name}/{slot}" for name in "wb" for slot in ("step", "exp_avg", "exp_avg_sq")}
    other, restored = build()
    checkpoint.load_optimizer_tensors(restored, tensors)
    for ours, theirs in zip(other.parameters(), layer.parameters(), strict=True):
        for slot, value in optimizer.state[theirs].items():
            assert torch.equal(restored.state[ours][slot], value)
    with pytest.raises(InputError, match="other parameters"):
        checkpoint.load_optimizer_tensors(restored, {"nobody/step": torch.zeros(())})
