"""vfmdistill: lends the semantics of vision foundation models to any PyTorch student, during training only."""

from __future__ import annotations

from vfmdistill.adapters import ByPathAdapter, ForegroundAdapter, StudentAdapter, Tap, register_adapter
from vfmdistill.attach import attach
from vfmdistill.calibration import Calibration
from vfmdistill.distiller import Distiller
from vfmdistill.errors import CaptureError, DistillError, InputError, UnknownNameError, WeightsError
from vfmdistill.feature_cache import FeatureCache
from vfmdistill.fixed_weight import FixedWeight
from vfmdistill.gradients import gradient_share
from vfmdistill.injector import SemanticInjector
from vfmdistill.inspection import Candidate, Inspection, inspect
from vfmdistill.layer_shares import layer_shares
from vfmdistill.modulator import GradientModulator
from vfmdistill.suggestion import suggest_modulator
from vfmdistill.teacher import Teacher, TeacherFeatures
from vfmdistill.teachers.catalog import TeacherSpec, list_teachers, register_teacher, teacher_spec
from vfmdistill.update import Update
from vfmdistill.version import __version__

__all__ = [
    "attach",
    "inspect",
    "Distiller",
    "Teacher",
    "TeacherFeatures",
    "FeatureCache",
    "TeacherSpec",
    "list_teachers",
    "teacher_spec",
    "register_teacher",
    "Inspection",
    "Candidate",
    "SemanticInjector",
    "GradientModulator",
    "FixedWeight",
    "Update",
    "Calibration",
    "suggest_modulator",
    "gradient_share",
    "layer_shares",
    "StudentAdapter",
    "ForegroundAdapter",
    "Tap",
    "ByPathAdapter",
    "register_adapter",
    "DistillError",
    "UnknownNameError",
    "WeightsError",
    "CaptureError",
    "InputError",
    "__version__",
]
