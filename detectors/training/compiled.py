"""compile_parts: torch.compile on those parts of a detector that it pays for."""

from __future__ import annotations

from torch import nn


def compile_parts(model: nn.Module, *, dynamic: bool | None, backend: str = "inductor") -> None:
    """Compile backbone and encoder in place, each when it first runs; names stay, and copies are not compiled.

    What is hooked to a part by then, as a distiller's tap is, runs inside its compiled code. What comes behind the
    encoder depends on how many objects a batch has, and would be compiled anew for batch after batch.

    Args:
        model: a detector.
        dynamic: as for `torch.compile`: True for maps of any size, None for one size as long as no other comes.
        backend: as for `torch.compile`.
    """
    for name in ("backbone", "encoder"):
        model.get_submodule(name).compile(dynamic=dynamic, backend=backend)
