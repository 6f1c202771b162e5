from __future__ import annotations

import subprocess
import sys

import vfmdistill
from vfmdistill.version import __version__

PUBLIC = {
    "attach",
    "ByPathAdapter",
    "Calibration",
    "Candidate",
    "CaptureError",
    "DistillError",
    "Distiller",
    "FeatureCache",
    "FixedWeight",
    "GradientModulator",
    "InputError",
    "Inspection",
    "SemanticInjector",
    "StudentAdapter",
    "ForegroundAdapter",
    "Tap",
    "Teacher",
    "TeacherFeatures",
    "TeacherSpec",
    "UnknownNameError",
    "Update",
    "WeightsError",
    "__version__",
    "gradient_share",
    "inspect",
    "layer_shares",
    "list_teachers",
    "register_adapter",
    "register_teacher",
    "suggest_modulator",
    "teacher_spec",
}


def test_public_names() -> None:
    assert set(vfmdistill.__all__) == PUBLIC
    assert len(vfmdistill.__all__) == len(PUBLIC)
    assert all(getattr(vfmdistill, name) is not None for name in PUBLIC)
    assert vfmdistill.__version__ == __version__


def test_import_loads_no_model_library() -> None:
    heavy = {
        "timm",
        "open_clip",
        "transformers",
        "matplotlib",
        "torchvision",
        "scipy",
        "accelerate",
        "detectors",
        "PIL",
    }
    code = "import sys, torch; before = set(sys.modules); import vfmdistill; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "vfmdistill" in loaded
    assert not loaded & heavy


def test_import_does_not_touch_the_random_state() -> None:
    code = "import torch; s = torch.get_rng_state(); import vfmdistill; assert torch.equal(s, torch.get_rng_state())"
    subprocess.run([sys.executable, "-c", code], check=True)
