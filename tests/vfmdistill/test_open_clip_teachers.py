"""Teachers on open_clip, against open_clip's own forward. Nothing here uses a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmdistill.errors import InputError, UnknownNameError, WeightsError
from vfmdistill.teachers import open_clip_backend
from vfmdistill.teachers.catalog import loader_for, teacher_spec
from vfmdistill.teachers.open_clip_features import OpenClipFeatures
from vfmdistill.teachers.readout import Readout

open_clip = pytest.importorskip("open_clip")
from open_clip.transformer import VisionTransformer  # noqa: E402

TINY = "open_clip:ViT-B-32/laion2b_s34b_b79k"
SMALL: dict[str, Any] = {
    "layers": 3,
    "width": 64,
    "head_width": 32,
    "patch_size": 8,
    "image_size": 48,
    "mlp_ratio": 2.0,
}


def tower_with(**options: Any) -> VisionTransformer:
    """A small tower whose norms and biases are not what they begin with."""
    settings: dict[str, Any] = {"mlp_ratio": 2.0, "output_dim": 24, "output_tokens": True} | options
    tower = VisionTransformer(image_size=48, patch_size=8, width=64, layers=3, heads=2, **settings)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.3)
    return tower.eval()


def features(tower: VisionTransformer, images: Tensor, readout: Readout | None = None) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        found: tuple[Tensor, Tensor] = OpenClipFeatures(tower, readout, "small")(images)
    return found


def as_tokens(feature_map: Tensor) -> Tensor:
    return feature_map.flatten(2).mT


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's ViT-B-32, made small."""
    monkeypatch.setattr(open_clip, "get_model_config", lambda model: {"embed_dim": 24, "vision_cfg": dict(SMALL)})


@pytest.mark.parametrize(
    "options",
    [{}, {"act_layer": open_clip.transformer.QuickGELU}, {"no_ln_pre": True}, {"pool_type": "avg"}],
    ids=["clip", "quick", "no_ln_pre", "avg"],
)
def test_tokens_equal_those_of_open_clip(options: dict[str, Any]) -> None:
    tower = tower_with(**options)
    images = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        pooled, tokens = tower(images)
    feature_map, summary = features(tower, images)
    torch.testing.assert_close(as_tokens(feature_map), tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(summary @ tower.proj, pooled, rtol=1e-4, atol=1e-4)


def test_clipa_normalises_each_cell_although_it_pools_first() -> None:
    tower = tower_with(pool_type="avg", final_ln_after_pool=True, no_ln_pre=True)
    images = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        pooled, tokens = tower(images)
        feature_map, summary = features(tower, images)
        torch.testing.assert_close(as_tokens(feature_map), tower.ln_post(tokens), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(summary @ tower.proj, pooled, rtol=1e-4, atol=1e-4)


def test_coca_has_no_norm_in_front_of_its_pooling() -> None:
    tower = tower_with(attentional_pool=True, attn_pooler_queries=5)
    images = torch.rand(1, 3, 48, 48)
    raw: list[Tensor] = []
    handle = tower.transformer.resblocks[-1].register_forward_hook(lambda module, args, output: raw.append(output))
    with torch.no_grad():
        pooled, _ = tower(images)
    handle.remove()
    feature_map, summary = features(tower, images)
    torch.testing.assert_close(as_tokens(feature_map), raw[0][:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(summary @ tower.proj, pooled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [(4, 9), (10, 15)])
def test_positions_are_resampled_as_open_clip_resamples_a_checkpoint(grid: tuple[int, int]) -> None:
    tower = tower_with()
    resized = VisionTransformer(
        image_size=(8 * grid[0], 8 * grid[1]), patch_size=8, width=64, layers=3, heads=2, mlp_ratio=2.0, output_dim=24
    )
    table = tower.positional_embedding.detach()
    resampled = F.interpolate(table[1:].T.reshape(1, 64, 6, 6), grid, mode="bicubic", antialias=True)
    positions = torch.cat([table[:1], resampled[0].flatten(1).T])
    resized.load_state_dict(tower.state_dict() | {"positional_embedding": positions})
    resized.output_tokens = True
    images = torch.rand(1, 3, 8 * grid[0], 8 * grid[1])
    with torch.no_grad():
        _, tokens = resized.eval()(images)
    feature_map, _ = features(tower, images)
    assert feature_map.shape == (1, 64, *grid)
    torch.testing.assert_close(as_tokens(feature_map), tokens, rtol=1e-4, atol=1e-5)


def test_blocks_are_concatenated_in_the_order_given_or_averaged() -> None:
    tower = tower_with()
    images = torch.rand(1, 3, 48, 48)
    first, last = (features(tower, images, Readout(blocks=(block,)))[0] for block in (1, 3))
    assert torch.equal(last, features(tower, images)[0])
    both, _ = features(tower, images, Readout(blocks=(3, 1)))
    assert torch.equal(both, torch.cat([last, first], dim=1))
    mean, _ = features(tower, images, Readout(blocks=(3, 1), merge="mean"))
    torch.testing.assert_close(mean, (first + last) / 2)
    with pytest.raises(InputError, match="has 3 blocks"):
        OpenClipFeatures(tower, Readout(blocks=(4,)), "small")


def test_the_value_path_is_what_maskclip_computes() -> None:
    tower = tower_with()
    block: Any = tower.transformer.resblocks[-1]
    entering: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    images = torch.rand(2, 3, 48, 48)
    found, summary = features(tower, images, Readout(dense="value"))
    handle.remove()
    attention = block.attn
    values = F.linear(block.ln_1(entering[0][:, 1:]), attention.in_proj_weight[-64:], attention.in_proj_bias[-64:])
    expected = tower.ln_post(attention.out_proj(values))
    torch.testing.assert_close(as_tokens(found), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(summary, features(tower, images)[1])


@pytest.mark.usefixtures("small")
class TestFiles:
    def checkpoint(self, path: Path) -> VisionTransformer:
        tower = tower_with()
        state = {f"visual.{key}": tensor for key, tensor in tower.state_dict().items()}
        torch.save({"state_dict": state | {"logit_scale": torch.ones(()), "transformer.x": torch.ones(2)}}, path)
        return tower

    def test_a_checkpoint_is_loaded(self, tmp_path: Path) -> None:
        given = self.checkpoint(tmp_path / "open_clip.pt")
        spec = teacher_spec(TINY)
        before = torch.random.get_rng_state()
        network = loader_for(spec)(spec, True, tmp_path / "open_clip.pt", Readout())
        assert torch.equal(torch.random.get_rng_state(), before)
        images = torch.rand(1, 3, 24, 40)
        with torch.no_grad():
            assert torch.equal(network.eval()(images)[0], features(given, images)[0])

    def test_what_does_not_fit_is_listed(self, tmp_path: Path) -> None:
        state = {f"visual.{key}": tensor for key, tensor in tower_with().state_dict().items()}
        state["visual.extra"] = state.pop("visual.ln_post.weight")
        torch.save(state, tmp_path / "open_clip.pt")
        with pytest.raises(WeightsError, match=r"1 missing: ln_post.weight; 1 left over: extra"):
            open_clip_backend.load(teacher_spec(TINY), True, tmp_path / "open_clip.pt")

    def test_a_file_of_something_else(self, tmp_path: Path) -> None:
        torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
        with pytest.raises(WeightsError, match="None of their names is known here"):
            open_clip_backend.load(teacher_spec(TINY), True, tmp_path / "other.pt")


def test_any_model_has_a_spec() -> None:
    spec = teacher_spec(TINY)
    assert (spec.backend, spec.model_id, spec.family) == ("open_clip", "ViT-B-32/laion2b_s34b_b79k", "vit")
    assert (spec.patch_size, spec.embed_dim, spec.dense) == (32, 768, "value")
    assert spec.mean == open_clip.OPENAI_DATASET_MEAN


def test_weights_trained_with_quick_gelu_are_run_with_it() -> None:
    spec = teacher_spec("open_clip:ViT-B-32/openai")
    with torch.device("meta"):
        network: Any = open_clip_backend.load(spec, False, None)
        plain: Any = open_clip_backend.load(teacher_spec(TINY), False, None)
    assert isinstance(network.tower.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)
    assert isinstance(plain.tower.transformer.resblocks[0].mlp.gelu, nn.GELU)


def test_towers_from_timm_are_built_on_timm() -> None:
    spec = teacher_spec("open_clip:ViT-B-16-SigLIP/webli")
    same = teacher_spec("siglip_base_224")
    assert (spec.patch_size, spec.embed_dim, spec.params) == (same.patch_size, same.embed_dim, same.params)
    assert (spec.mean, spec.std, spec.dense) == (same.mean, same.std, "tokens")
    with torch.device("meta"):
        network = open_clip_backend.load(spec, False, None)
        assert type(network).__name__ == "TimmFeatures"
        assert network(torch.rand(1, 3, 160, 240))[0].shape == (1, 768, 10, 15)


def test_models_that_cannot_be_teachers() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown open_clip model 'ViT-B-17'; nearest: .*ViT-B-16"):
        teacher_spec("open_clip:ViT-B-17/openai")
    with pytest.raises(UnknownNameError, match=r"nearest: .*ViT-B-16/openai"):
        teacher_spec("open_clip:ViT-B-16/opnai")
    with pytest.raises(InputError, match="expected open_clip:MODEL/TAG"):
        teacher_spec("open_clip:ViT-B-16")
    with pytest.raises(InputError, match="timm:resnet50_clip"):
        teacher_spec("open_clip:RN50/openai")


def test_weights_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    published = {"mean": (0, 0, 0), "std": (1, 1, 1), "url": "https://somewhere/x.pt", "hf_hub": ""}
    monkeypatch.setattr(open_clip_backend, "_pretrained_config", lambda model, tag: published)
    with pytest.raises(WeightsError, match=r"the hub has none for .*Download https://somewhere/x\.pt"):
        open_clip_backend.load(teacher_spec(TINY), True, None)
