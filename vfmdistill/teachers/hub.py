"""Weights from the Hugging Face Hub: from its cache, else downloaded; without a network, a quick and clear error."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from pathlib import Path

from vfmdistill.errors import WeightsError
from vfmdistill.teachers.catalog import nearest_ungated
from vfmdistill.teachers.spec import TeacherSpec

_PATIENCE = 2.5  # seconds for a first answer of the hub; its own client would retry for half a minute
_FILES = ("model.safetensors", "pytorch_model.bin")
_AUTHORS_FILES = {"dinov2": "dinov2_*_pretrain.pth", "dinov3": "dinov3_*_pretrain_*.pth"}


def hub_weights(spec: TeacherSpec, repository: str, filename: str | tuple[str, ...] | None = None) -> Path:
    """Return a file of a hub repository on this machine, downloading it if need be.

    Args:
        spec: the teacher that it is for.
        repository: ``owner/name`` or ``owner/name@revision``.
        filename: the file to take, or several of which the first that there is; by default weights as safetensors,
            else in PyTorch's format.

    Raises:
        WeightsError: the file is not in the cache and cannot be had: offline, gated or absent.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError

    repo_id, _, revision = repository.partition("@")
    candidates = (filename,) if isinstance(filename, str) else filename or _FILES
    for candidate in candidates:
        cached = huggingface_hub.try_to_load_from_cache(repo_id, candidate, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(_advice(spec, repo_id, candidates, "and HF_HUB_OFFLINE forbids downloading it"))
    if not _answers(constants.ENDPOINT):
        raise WeightsError(_advice(spec, repo_id, candidates, f"and {constants.ENDPOINT} cannot be reached"))
    for candidate in candidates:
        try:
            return Path(huggingface_hub.hf_hub_download(repo_id, candidate, revision=revision or None))
        except LocalEntryNotFoundError as error:
            raise WeightsError(_advice(spec, repo_id, candidates, "and the connection to the hub failed")) from error
        except EntryNotFoundError:
            continue
        except GatedRepoError as error:
            reason = "and the hub gives it only to who is logged in and has accepted the licence"
            raise WeightsError(_advice(spec, repo_id, candidates, reason, gated=True)) from error
        except Exception as error:  # the HTTP library behind the hub's client differs between its versions
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WeightsError(_advice(spec, repo_id, candidates, f"and the download failed ({reason})")) from error
    raise WeightsError(_advice(spec, repo_id, candidates, "and the repository has no such file"))


def _answers(endpoint: str) -> bool:
    """Whether a server answers in time. Looking up its name can block without limit, hence the thread."""
    answered = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            with urllib.request.urlopen(request, timeout=_PATIENCE):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except OSError as error:
            # A refused certificate is an answer too: the hub's client may know the one of a company's proxy.
            if "CERTIFICATE" in str(error):
                answered.set()

    thread = threading.Thread(target=ask, name="vfmdistill-hub", daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return answered.is_set()


def _advice(
    spec: TeacherSpec, repo_id: str, candidates: tuple[str, ...], reason: str, gated: bool | None = None
) -> str:
    """What a user can do: from where, how without a network, and what to take instead."""
    page = f"https://huggingface.co/{repo_id}"
    gate = ""
    if spec.gated if gated is None else gated:
        other = nearest_ungated(spec)
        gate = (
            f" The repository is gated: accept its licence at {page} and log in, or take {other.name!r} "
            f"(licence {other.license}), the nearest teacher that is not."
        )
    if spec.backend == "transformers":
        way = f"Give a local folder with what {page} has: Teacher('hf:FOLDER')."
    else:
        authors = _AUTHORS_FILES.get(spec.family)
        theirs = f" or the authors’ own {authors}" if authors else ""
        way = (
            f"Give a local file: Teacher({spec.name!r}, weights=PATH) with {' or '.join(candidates)} from {page}"
            f"{theirs}. For random weights on purpose, pass pretrained=False."
        )
    what = candidates[0] if candidates[0].endswith("config.json") else "weights"
    missing = (
        f"no {what} for teacher {spec.name!r} (licence {spec.license}): {repo_id} is not in the hub's cache {reason}."
    )
    return f"{missing}{gate} {way}"
