"""Which published weights are on this machine already."""

from __future__ import annotations

from pathlib import Path

from vfmdistill.errors import WeightsError
from vfmdistill.teachers.catalog import TeacherSpec
from vfmdistill.teachers.packages import packaged_weights

_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# What a cache that holds anything for open_clip holds at least one of; its own table is slow to import.
_SIGNS_OF_OPEN_CLIP = ("open_clip_*", "*.pt", "pytorch_model.bin")


def weights_on_disk(spec: TeacherSpec) -> Path | None:
    """Return where the published weights of a teacher lie: in an installed package or in the hub's cache.

    No server is asked and no network is built.

    Returns:
        The file, for weights in several files their index, or None if they are not on this machine.
    """
    if spec.package is not None:
        try:
            return packaged_weights(spec.package, spec.name)
        except WeightsError:
            return None
    if spec.backend == "timm":
        return _cached(spec.repository or f"timm/{spec.model_id}", _FILES)
    if spec.backend == "open_clip":
        repository, file = (spec.repository, "") if spec.repository else _open_clip_repository(spec.model_id)
        return _cached(repository, (file,) if file else _OPEN_CLIP_FILES)
    if spec.backend == "transformers":
        folder = Path(spec.model_id).expanduser()
        if folder.is_dir():
            return next((folder / file for file in _FILES if (folder / file).is_file()), None)
        return _cached(spec.model_id, _FILES)
    return None


def _cached(repository: str, files: tuple[str, ...]) -> Path | None:
    import huggingface_hub

    repo_id, _, revision = repository.partition("@")
    for file in files if repo_id else ():
        path = huggingface_hub.try_to_load_from_cache(repo_id, file, revision=revision or None)
        if isinstance(path, str):
            return Path(path)
    return None


def _open_clip_repository(model_id: str) -> tuple[str, str]:
    """Return the hub's repository for MODEL/TAG and the file in it, each empty where open_clip names none."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    if not any(path for sign in _SIGNS_OF_OPEN_CLIP for path in cache.glob(f"models--*/snapshots/*/{sign}")):
        return "", ""
    from open_clip.pretrained import get_pretrained_cfg

    model, _, tag = model_id.partition("/")
    repository, _, file = str(get_pretrained_cfg(model, tag).get("hf_hub", "")).rpartition("/")
    return repository, file
