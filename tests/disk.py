"""A disk that forgets at a power cut whatever was not synced, for programs that are run with `environment`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from random import Random

import pytest

BLOCK = 4096


class Disk:
    """What of the folder `root` is on disk: each file, and each folder's names, as they were when last synced."""

    def __init__(self, work: Path, root: Path) -> None:
        """Make it in `work`; everything below `root` is on disk already. Skips the test where nothing compiles C."""
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler, which the disk that forgets is built with")
        work.mkdir()
        self.root, self._kept, library = root, work / "kept", work / "disk.so"
        self._kept.mkdir()
        source = Path(__file__).with_name("disk.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        self.environment = os.environ | {"LD_PRELOAD": str(library), "CAI_TEST_DISK": str(self._kept)}
        for folder, _, files in os.walk(root):
            with os.scandir(folder) as entries:
                lines = [f"{e.stat(follow_symlinks=False).st_ino} {int(e.is_dir())} {e.name}\n" for e in entries]
            self._of(Path(folder)).write_text("".join(lines))
            for name in files:
                shutil.copyfile(Path(folder, name), self._of(Path(folder, name)))

    def _of(self, path: Path) -> Path:
        return self._kept / str(path.stat().st_ino)

    def restore(self, to: Path, chance: Random | None = None) -> Path:
        """Write below `to` what is left, and return `to`.

        With `chance`, some blocks are as they were written later: until a sync, a disk takes them in any order.
        """
        self._restore(self.root.stat().st_ino, self.root, to, chance)
        return to

    def _restore(self, inode: int, was: Path, to: Path, chance: Random | None) -> None:
        to.mkdir()
        names = self._kept / str(inode)
        for line in names.read_text().splitlines() if names.exists() else ():
            number, is_folder, name = line.split(" ", 2)
            if name in (".", ".."):
                continue
            if is_folder == "1":
                self._restore(int(number), was / name, to / name, chance)
                continue
            kept = self._kept / number
            content = kept.read_bytes() if kept.exists() else b""
            if chance is not None and (was / name).exists():
                content = _either(content, (was / name).read_bytes(), chance)
            (to / name).write_bytes(content)


def _either(kept: bytes, written: bytes, chance: Random) -> bytes:
    size = len(chance.choice((kept, written)))
    starts = range(0, size, BLOCK)
    return b"".join(chance.choice((kept, written))[i : i + BLOCK].ljust(BLOCK, b"\0") for i in starts)[:size]
