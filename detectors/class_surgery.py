"""Which class of a checkpoint a class of the detector continues, and moving the rows of the heads accordingly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vfmdistill.errors import WeightsError

# Ours that have one row per class; the embedding has one more at its end, which pads.
SCORE_HEADS = re.compile(r"^decoder\.(selection|stages\.\d+)\.score_head\.(weight|bias)$")
EMBEDDING = "decoder.denoising_embedding.weight"


@dataclass(frozen=True)
class ClassMatch:
    """Where the rows of a detector's classes come from."""

    rows: tuple[int | None, ...]
    """For each class of the detector the checkpoint's row; None for a class that is new."""
    source_count: int
    """Classes of the checkpoint."""
    kept: tuple[str, ...] = ()
    """Names of the classes whose rows come from the checkpoint, in the detector's order; empty if unknown."""
    new: tuple[str, ...] = ()
    """Names of the classes that the checkpoint does not have; their rows stay as they are."""
    dropped: tuple[str, ...] = ()
    """Names of the checkpoint's classes that the detector does not have, in the checkpoint's order."""

    @property
    def in_order(self) -> bool:
        """Whether the detector's classes are the checkpoint's, one for one."""
        return self.rows == tuple(range(self.source_count))

    def __str__(self) -> str:
        if self.in_order:
            return f"all {len(self.rows)} rows are kept in their order"
        listed = {"kept": self.kept, "new": self.new, "dropped": self.dropped}
        return "matched by name; " + "; ".join(
            f"{len(names)} {what}{': ' if names else ''}{', '.join(names)}" for what, names in listed.items()
        )


def match_classes(
    num_classes: int, class_names: Sequence[str] | None, source_count: int, source_names: Sequence[str] | None
) -> ClassMatch:
    """Find the checkpoint's row for every class of a detector.

    Where both sides know their names, names decide: exactly equal ones first, then those that are equal but for case
    and surrounding space, if that is unambiguous. Synonyms ("sofa", "couch") are different classes. Where a side does
    not know its names, the numbers of classes must agree, and the rows are taken in order.

    Args:
        num_classes: classes of the detector.
        class_names: their names, or None.
        source_count: classes of the checkpoint.
        source_names: their names, or None.

    Raises:
        WeightsError: `source_names` are not as many as the checkpoint's classes, or the numbers of classes differ and
            the names of a side are unknown.
    """
    if source_names is not None and len(source_names) != source_count:
        raise WeightsError(
            f"{len(source_names)} source_class_names for a checkpoint with {source_count} classes; give one name per "
            "class, in the order of its logits."
        )
    if class_names is None or source_names is None:
        if num_classes != source_count:
            raise WeightsError(_not_known(num_classes, class_names, source_count, source_names))
        return ClassMatch(tuple(range(num_classes)), source_count, kept=tuple(class_names or source_names or ()))
    rows = _rows(class_names, source_names)
    return ClassMatch(
        rows,
        source_count,
        kept=tuple(name for name, row in zip(class_names, rows, strict=True) if row is not None),
        new=tuple(name for name, row in zip(class_names, rows, strict=True) if row is None),
        dropped=tuple(name for row, name in enumerate(source_names) if row not in rows),
    )


def has_class_rows(key: str) -> bool:
    """Return whether a tensor of ours has one row per class."""
    return key == EMBEDDING or SCORE_HEADS.fullmatch(key) is not None


def move_rows(key: str, given: Tensor, ours: Tensor, match: ClassMatch) -> Tensor:
    """Return the checkpoint's tensor with the rows of the detector's classes; new classes have the rows of `ours`.

    Tensors without class rows, and such whose other sizes are not those of `ours`, come back as given.

    Raises:
        WeightsError: the tensor has another number of rows than the checkpoint has classes.
    """
    if not has_class_rows(key) or given.shape[1:] != ours.shape[1:]:
        return given
    padding = int(key == EMBEDDING)
    if len(given) != match.source_count + padding:
        raise WeightsError(
            f"the checkpoint contradicts itself: it scores {match.source_count} classes, but the tensor for {key} has "
            f"{len(given)} rows."
        )
    moved = ours.detach().clone()
    sources = [*match.rows, *[match.source_count] * padding]
    kept = [row for row, source in enumerate(sources) if source is not None]
    moved[kept] = given.to(moved)[[source for source in sources if source is not None]]
    return moved


def _rows(names: Sequence[str], source_names: Sequence[str]) -> tuple[int | None, ...]:
    rows: list[int | None] = [source_names.index(name) if source_names.count(name) == 1 else None for name in names]
    free = [row for row in range(len(source_names)) if row not in rows]
    folded = [source_names[row].strip().casefold() for row in free]
    waiting = [name.strip().casefold() for name, row in zip(names, rows, strict=True) if row is None]
    for index, (name, row) in enumerate(zip(names, rows, strict=True)):
        plain = name.strip().casefold()
        if row is None and folded.count(plain) == 1 and waiting.count(plain) == 1:
            rows[index] = free[folded.index(plain)]
    return tuple(rows)


def _not_known(
    num_classes: int, class_names: Sequence[str] | None, source_count: int, source_names: Sequence[str] | None
) -> str:
    missing = []
    if class_names is None:
        missing.append("the detector's (build it with class_names=[...])")
    if source_names is None:
        missing.append("the checkpoint's (give source_class_names=[...] in the order of its logits)")
    return (
        f"the checkpoint knows {source_count} classes, the detector {num_classes}. Rows are then kept by class name, "
        f"but these names are unknown: {' and '.join(missing)}. To take the rows in order, build the detector with "
        f"num_classes={source_count}."
    )
