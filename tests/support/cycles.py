"""What many attachments leave behind, for a test that runs this as a program.

cycles.py NUMBER does so many cycles, after some to warm up, and prints as JSON what there was in the process before and
after them: counts, bytes traced by Python, and resident bytes (null where the system does not tell).
"""

from __future__ import annotations

import copy
import gc
import json
import resource
import sys
import threading
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.students import Classifier, Narrow, Wide, hooks
from torch import Tensor

import vfmdistill

IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
WARMUP = 40
_STATUS, _TASKS = Path("/proc/self/statm"), Path("/proc/self/task")


def train(student: Classifier, distiller: vfmdistill.Distiller) -> None:
    optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-3)
    loss = student(IMAGES).logsumexp(1).mean() + distiller.loss(IMAGES)
    loss.backward()
    distiller.observe()
    optimizer.step()
    optimizer.zero_grad()
    distiller.update()


def plain(student: Classifier, wide: vfmdistill.Teacher, narrow: vfmdistill.Teacher) -> None:
    with vfmdistill.attach(student, wide, tap="body", probe=IMAGES) as distiller:
        train(student, distiller)


def several(student: Classifier, wide: vfmdistill.Teacher, narrow: vfmdistill.Teacher) -> None:
    with vfmdistill.attach(student, {wide: 1, narrow: 2}, tap=["stem", "body"], probe=IMAGES) as distiller:
        train(student, distiller)
        student(IMAGES)  # captured, and never taken


def inspected(student: Classifier, wide: vfmdistill.Teacher, narrow: vfmdistill.Teacher) -> None:
    with vfmdistill.attach(student, wide, modulator=2.0, probe=IMAGES) as distiller:
        train(student, distiller)


def copied(student: Classifier, wide: vfmdistill.Teacher, narrow: vfmdistill.Teacher) -> None:
    with vfmdistill.attach(student, wide, tap="body", probe=IMAGES) as distiller:
        train(student, distiller)
        average = copy.deepcopy(student)
        average(IMAGES)
        distiller.load_state_dict(distiller.state_dict())


def failing(student: Classifier, wide: vfmdistill.Teacher, narrow: vfmdistill.Teacher) -> None:
    try:
        with vfmdistill.attach(student, wide, tap="body", probe=IMAGES) as distiller:
            train(student, distiller)
            distiller.loss(student(IMAGES))
    except vfmdistill.InputError:
        return
    raise AssertionError("logits were taken for images")


CYCLES: list[Callable[[Classifier, vfmdistill.Teacher, vfmdistill.Teacher], None]]
CYCLES = [plain, several, inspected, copied, failing]


def present(student: Classifier) -> dict[str, Any]:
    """Return what there is in the process now."""
    gc.collect()
    traced = tracemalloc.get_traced_memory()[0]
    objects = gc.get_objects()
    ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/vfmdistill/*")])
    return {
        "tensors": sum(issubclass(type(thing), Tensor) for thing in objects),
        "distillers": sum(type(thing) is vfmdistill.Distiller for thing in objects),
        "threads": threading.active_count(),
        "native_threads": len(list(_TASKS.iterdir())) if _TASKS.exists() else None,
        "hooks": hooks(student),
        "traced": traced,
        "traced_ours": sum(trace.size for trace in ours.traces),
        "resident": int(_STATUS.read_text().split()[1]) * resource.getpagesize() if _STATUS.exists() else None,
    }


def main(number: int) -> None:
    warnings.simplefilter("ignore")  # that a tap was chosen
    torch.manual_seed(0)
    torch.set_num_threads(1)
    student, wide, narrow = Classifier(), vfmdistill.Teacher(Wide()), vfmdistill.Teacher(Narrow())
    found = []
    for cycles in (WARMUP, WARMUP, number):  # the first ones import what is imported when it is used
        for index in range(cycles):
            CYCLES[index % len(CYCLES)](student, wide, narrow)
        if not tracemalloc.is_tracing():
            tracemalloc.start()
        found.append(present(student))
    print(json.dumps(found[1:]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
