"""The rule by which a tap is chosen where no adapter knows one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vfmdistill.tap_findings import Finding

_FINEST, _COARSEST = 16, 32  # strides
_MOST = 0.8  # of the student's parameters: the share of such a tap is large, whatever λ is
_WHICH = (
    "has no trainable parameters (for a fixed λ only)",
    "has trainable parameters, though it holds finer maps or most of the student",
    "has trainable parameters",
    "has trainable weights and covers no more than a stage",
)


def choose_tap(student: nn.Module, findings: Mapping[str, Finding], images: Tensor) -> tuple[Finding | None, str]:
    """Return the tap for a student that no adapter knows, and why it is that one.

    Args:
        student: the network.
        findings: its maps by path, in the order of the forward.
        images: (N, 3, H, W), those of the maps.
    """
    fitting = [finding for finding in findings.values() if not finding.fixed and _is_deep(finding.grid, images)]
    if not fitting:
        return None, _why_none(findings, images)
    fitting = [finding for finding in fitting if not (finding.predicts or finding.passed_on)] or fitting
    cells = min(_cells(finding) for finding in fitting)
    deepest = [finding for finding in fitting if _cells(finding) == cells]
    long_ways = ways_there(student, findings, images)
    ranks = [_rank(finding.module, finding.path in long_ways) for finding in deepest]
    best = max(ranks)
    taken = [finding for finding, rank in zip(deepest, ranks, strict=True) if rank == best][-1]
    reason = f"the deepest map of stride {_FINEST} to {_COARSEST}"
    if len(deepest) == 1:
        return taken, f"{reason}; its module {_WHICH[best]}."
    return taken, f"{reason}; of {len(deepest)} modules with such a map the last to finish that {_WHICH[best]}."


def ways_there(student: nn.Module, findings: Mapping[str, Finding], images: Tensor) -> set[str]:
    """Return the paths of modules that are most of the student, or hold maps of more than twice their own rows."""
    finest: dict[str, int] = {}
    for path, finding in findings.items():
        rows = finding.grid[0] if not finding.fixed and _is_regular(finding.grid, images) else 0
        while path:
            path = path.rpartition(".")[0]
            finest[path] = max(finest.get(path, 0), rows)
    most = _MOST * _size(student)
    return {
        path
        for path, finding in findings.items()
        if _size(finding.module) > most or finest.get(path, 0) > 2 * finding.grid[0] + 1
    }


def _rank(module: nn.Module, is_long_way: bool) -> int:
    """Return the index in _WHICH; norms have parameters, but few, none of which mixes channels."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained or is_long_way:
        return min(len(trained), 1)
    return 3 if any(parameter.ndim > 1 for parameter in trained) else 2


def _is_deep(grid: tuple[int, int], images: Tensor) -> bool:
    """Whether a stride of 16 to 32 gives so many rows and columns, rounded up or down at the border."""
    return all(
        _fewest(side) <= count <= -(-side // _FINEST) for side, count in zip(images.shape[-2:], grid, strict=True)
    )


def _fewest(side: int) -> int:
    """Return how many cells the coarsest stride leaves of a side, one less where that is no sign of a coarser stride.

    Convolutions without padding cost that one.
    """
    coarser = -(-side // (2 * _COARSEST))
    return min(side // _COARSEST, max(side // _COARSEST - 1, coarser + 1))


def _is_regular(grid: tuple[int, int], images: Tensor) -> bool:
    """Whether one whole stride gives rows and columns, as it does not where the numbers are, say, attention weights."""
    sides = tuple(zip(images.shape[-2:], grid, strict=True))
    height, rows = sides[0]
    strides = range(max(1, height // (rows + 1)), height // max(1, rows - 1) + 2)
    return any(all(side // stride - 1 <= count <= -(-side // stride) for side, count in sides) for stride in strides)


def _why_none(findings: Mapping[str, Finding], images: Tensor) -> str:
    size = " × ".join(map(str, images.shape[-2:]))
    reason = f"no module gives a map of stride {_FINEST} to {_COARSEST} for images of {size}"
    following = [finding for finding in findings.values() if not finding.fixed]
    if not following:
        return f"{reason}, nor any other map. Pass an adapter that reads the student's outputs."
    rows, columns = min(following, key=_cells).grid
    return f"{reason}; the deepest has {rows} × {columns} cells. Inspect it at another size, or pass tap=."


def _cells(finding: Finding) -> int:
    rows, columns = finding.grid
    return rows * columns


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
