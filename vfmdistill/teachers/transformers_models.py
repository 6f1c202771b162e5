"""Vision models of transformers: built with random weights, and filled strictly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from vfmdistill.errors import InputError, WeightsError

_LISTED = 6


def build(config: Any, name: str) -> Any:
    """Build a vision model with random weights.

    Raises:
        InputError: transformers has none for this configuration.
    """
    import transformers

    auto: Any = transformers.AutoModel
    try:
        network = auto.from_config(config)
    except ValueError as error:
        raise InputError(f"{name} has no vision model in this version of transformers: {error}") from error
    _without_dense_pooler(network)
    return network


def filled(network: Any, state: dict[str, Tensor], name: str, path: Path) -> Any:
    """Return a network of the same kind with weights; transformers itself translates the names of its older versions.

    Tensors of what does not see (a text tower, a decoder, a classifier) are left aside.

    Args:
        network: a network as `build` returns it.
        state: names and tensors.
        name: the teacher, for the message.
        path: where the state comes from, for the message.

    Raises:
        WeightsError: some tensors are missing, left over, or of another shape; they are listed.
    """
    with _quietly():
        full, found = type(network).from_pretrained(
            None, config=network.config, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True
        )
    _without_dense_pooler(full)
    own = full.state_dict()
    roots = {key.split(".")[0] for key in own}
    missing = sorted(key for key in found["missing_keys"] if key in own)
    left_over = sorted(key for key in found["unexpected_keys"] if key.split(".")[0] in roots)
    misshapen = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found["mismatched_keys"])
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:_LISTED])}{', …' if len(keys) > _LISTED else ''}"
        for what, keys in (("missing", missing), ("left over", left_over), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        raise WeightsError(
            f"the weights in {str(path)!r} do not fit teacher {name!r}: {'; '.join(problems)}. "
            "Give the file that belongs to this teacher, or the teacher that belongs to this file."
        )
    return full


def _without_dense_pooler(network: Any) -> None:
    """Drop the layer that BERT had behind its class token: it is not needed, and absent from many files."""
    if getattr(getattr(network, "pooler", None), "dense", None) is not None:
        network.pooler = None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers from printing what is reported as an error here."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
