from __future__ import annotations

import copy

import pytest
import torch
from support.students import IMAGES, Classifier, Wide, hooks, step

from vfmdistill import Teacher, attach


def test_distillers_on_one_student_do_not_see_each_other(student: Classifier) -> None:
    student.body[2].eval()
    teacher = Teacher(Wide())
    torch.manual_seed(3)
    with attach(student, teacher, tap="body", modulator=1.0) as alone:
        student(IMAGES)
        expected = alone.loss(IMAGES)
    torch.manual_seed(3)
    with attach(student, teacher, tap="body", modulator=1.0) as outer:
        with attach(student, teacher, tap="stem", modulator=1.0) as inner:
            student(IMAGES)
            inner.loss(IMAGES)
            torch.testing.assert_close(outer.loss(IMAGES), expected)
        assert hooks(student) == 1
        student(IMAGES)
        torch.testing.assert_close(outer.loss(IMAGES), expected)
    assert hooks(student) == 0
    with pytest.raises(Exception, match="after detach"):
        inner.loss(IMAGES)


def test_two_students_learn_from_one_teacher_as_from_two(student: Classifier) -> None:
    results = []
    for shared in (True, False):
        torch.manual_seed(0)
        first, second = Classifier().eval(), Classifier().eval()
        first.training = second.training = True
        network = Wide()
        one = Teacher(network)
        other = one if shared else Teacher(copy.deepcopy(network))
        with attach(first, one, tap="body") as left, attach(second, other, tap="stem") as right:
            for _ in range(2):
                losses = (step(first, left), step(second, right))
            results.append((losses, left.update(), right.update()))
    assert results[0] == results[1]
