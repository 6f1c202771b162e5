"""What has been written stays, also when the power fails."""

from __future__ import annotations

import os
from pathlib import Path


def flush(path: Path) -> None:
    """Make the operating system write a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
