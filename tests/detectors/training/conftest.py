from pathlib import Path

import pytest
from support.tiny_run import register_tiny_teacher

from detectors.data.toy import write_toy_dataset


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen training and five validation images of 64 × 64."""
    register_tiny_teacher()
    return write_toy_dataset(tmp_path_factory.mktemp("toy") / "data", train_images=13, val_images=5, image_size=64)
