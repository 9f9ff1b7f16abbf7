"""Keeps a server alive no longer than the run that started it.

    python -m cai.engine.keeper PARENT_PID PARENT_START -- COMMAND...

The command runs in a session of its own. When the parent (that process id with that start time) is gone, even by
`kill -9`, the command and everything it started is ended; when this keeper is told to stop, likewise.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_POLL_S = 0.3
_GRACE_S = 8.0
_PR_SET_PDEATHSIG = 1


def start_time(pid: int) -> int | None:
    """Return when a process started (clock ticks since boot, as the kernel tells), or None where there is none.

    A process id alone may be somebody else's by now; with its start time it is not.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def end_group(pid: int) -> None:
    """End a process group: politely, and after a grace period for good."""
    for number, wait_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, 2.0)):
        try:
            os.killpg(pid, number)
        except (ProcessLookupError, PermissionError):
            return
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            if not _group_lives(pid):
                return
            time.sleep(0.05)


def _group_lives(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
    try:
        os.killpg(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _die_with_keeper() -> None:
    """In the child: be told when the keeper itself is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> int:
    """Run the command until it ends, the parent is gone, or this process is told to stop."""
    parent, started, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[4:]
    child = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, preexec_fn=_die_with_keeper)

    def stop(*_: object) -> None:
        end_group(child.pid)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while child.poll() is None:
        if start_time(parent) != started:
            stop()
        time.sleep(_POLL_S)
    end_group(child.pid)  # what the command started may outlive it
    return child.returncode if child.returncode >= 0 else 1


if __name__ == "__main__":
    sys.exit(main())
