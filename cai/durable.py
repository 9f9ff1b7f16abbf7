"""Files that outlive a power cut: content and name are on disk only once the file and the folder that holds it are."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def sync_file(path: Path) -> int:
    """Wait until what a file holds is on disk, and return its size in bytes."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk. A file system that cannot sync folders is taken at its word."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and wait until their names are on disk; one that exists is left as it is."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
