"""Whether there is room for a run before it begins: how much it may keep, how much is free, and on what."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from cai.config import Phase, RunConfig
from cai.constitution import Principle
from cai.pipeline import judges
from cai.stages.judge.counting import calls_of, canary_readers

BYTES_PER_CALL = 1_500
"""What a call takes in the store beside the text it brought, decisions included; rough."""
BYTES_PER_TOKEN = 12
"""What a generated token takes in the store: it is kept as reply, record and text."""
NETWORKED = frozenset("nfs nfs4 cifs smb3 smbfs 9p fuse.sshfs afs ceph fuse.glusterfs lustre".split())
"""File systems on which SQLite's shared memory and locks do not hold between machines."""


def needed(config: RunConfig, n_train: int, n_held_out: int, principles: Sequence[Principle]) -> int:
    """Return about how many bytes a run's store takes at most; checkpoints come on top."""
    pair = _of_pair(config, principles)
    n_calls = n_tokens = 0
    for phase in config.phases:
        calls, tokens = _of_prompt(phase, config, pair)
        n_calls += config.rounds * n_train * calls
        n_tokens += config.rounds * n_train * tokens
    if config.evaluate.samples and any(phase.train != "none" for phase in config.phases):
        n_samples, longest = config.evaluate.samples, config.evaluate.max_tokens or config.respond.max_tokens
        n_calls += n_held_out * (n_samples * (2 + pair[0]) + 3)
        n_tokens += n_held_out * n_samples * (2 * longest + pair[1])
    return n_calls * BYTES_PER_CALL + n_tokens * BYTES_PER_TOKEN


def _of_pair(config: RunConfig, principles: Sequence[Principle]) -> tuple[int, int]:
    """Return the calls and the tokens that judging one comparison takes at most; a check decided counts as a call."""
    seats = judges.unasked(config)
    judged = calls_of(principles, seats, config.judge)
    n_checks = sum(principle.check is not None for principle in principles)
    n_canaries = 2 * len(canary_readers(seats, config.judge))
    n_calls = judged.most + 2 * judged.reward_models + n_checks + n_canaries
    return n_calls, judged.written * config.judge.cot.max_tokens


def _of_prompt(phase: Phase, config: RunConfig, pair: tuple[int, int]) -> tuple[int, int]:
    """Return the calls and the tokens that one prompt asks for at most."""
    rounds = phase.samples * phase.revisions
    n_pairs = min(phase.samples * (phase.samples - 1) // 2, phase.max_pairs) if "samples" in phase.pairs else 0
    n_pairs += phase.samples if "revision" in phase.pairs and phase.revisions else 0
    written = phase.samples * config.respond.max_tokens
    written += rounds * (config.critique.max_tokens + config.revise.max_tokens)
    return phase.samples + 2 * rounds + n_pairs * pair[0], written + n_pairs * pair[1]


def warnings(folder: Path, needs: int) -> list[str]:
    """Return a sentence for each reason why a run that keeps `needs` more bytes in `folder` may not come to its end."""
    found, free = [], shutil.disk_usage(folder).free
    if free < needs:
        found.append(
            f"{folder}: {free:,} bytes are free, and the run may keep {needs:,} more; "
            "where the disk fills up the run stops, and goes on by the same command once there is room"
        )
    kind = file_system(folder)
    if kind in NETWORKED:
        found.append(f"{folder} lies on a network file system ({kind}); the store needs a local disk: set run.dir=…")
    return found


def file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """Return the type of the file system that `folder` lies on, as Linux names it; None where that is not told."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    place, best, kind = os.path.realpath(folder) + "/", "", None
    for _, point, name, *_ in (line.split(" ") for line in lines if line.count(" ") > 2):
        point = point.replace("\\040", " ").rstrip("/") + "/"
        if place.startswith(point) and len(point) >= len(best):
            best, kind = point, name
    return kind
