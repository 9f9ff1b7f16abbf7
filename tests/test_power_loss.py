"""A power cut takes everything that was not synced; nothing that was acknowledged is among it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from random import Random

from cai.engine.scripted import ScriptedProcess
from cai.store import ledger, schema
from cai.templates import FENCE_KEY
from tests import runs
from tests.acknowledging import a_judgment, a_prompt
from tests.disk import Disk

STORE = "runs/mine/store.sqlite"
LIVES = (125, 15)
"""Rows that are acknowledged before the power goes: past a checkpoint of SQLite's, and soon after the restart."""
N_MIXES = 4
ROOT = Path(__file__).parents[1]


def cut_off(disk: Disk, first: int, n_rows: int, synchronous: str = "as it is") -> int:
    """Keep rows from number `first` on, kill what keeps them after `n_rows`, and return how many are acknowledged."""
    command = [sys.executable, "-m", "tests.acknowledging", disk.root / STORE, str(first), synchronous]
    with subprocess.Popen(command, env=disk.environment, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(n_rows)]
        process.kill()
        said += [int(line) for line in process.stdout if line.endswith("\n")]  # what it had said by then holds too
    assert process.returncode == -signal.SIGKILL and said == list(range(first, first + len(said)))
    return first + len(said)


def n_missing(path: Path, n_rows: int) -> int:
    """Return how many of the first rows are not in a store, which must be sound."""
    if not path.exists():
        return n_rows
    assert schema.faults(path) == []
    with closing(schema.connect(path)) as connection:
        assert list(ledger.verify(connection)) == []
        found = {
            (n, prompt, decision)
            for n, prompt, decision in connection.execute(
                "SELECT position, prompts.prompt_id, ledger.id FROM prompts JOIN records "
                "ON records.id = prompts.prompt_id JOIN walks ON walks.prompt_id = CAST(position AS TEXT) "
                "JOIN ledger ON subject = 'c' || position"
            )
        }
    return sum((n, a_prompt(n).id, a_judgment(n).id) not in found for n in range(n_rows))


def test_no_acknowledged_row_is_lost(tmp_path: Path) -> None:
    root, n_rows = tmp_path / "disk-0", 0
    root.mkdir()
    for life, n_more in enumerate(LIVES, 1):
        disk = Disk(tmp_path / f"work-{life}", root)
        n_rows = cut_off(disk, n_rows, n_more)
        for i in range(N_MIXES):
            mixed = disk.restore(tmp_path / f"mixed-{life}-{i}", Random(i))
            assert n_missing(mixed / STORE, n_rows) == 0
        root = disk.restore(tmp_path / f"disk-{life}")
        assert n_missing(root / STORE, n_rows) == 0


def test_rows_would_be_lost_if_commits_did_not_wait_for_the_disk(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    disk = Disk(tmp_path / "work", tmp_path / "root")
    n_rows = cut_off(disk, 0, 10, "NORMAL")
    assert n_missing(disk.restore(tmp_path / "left") / STORE, n_rows) > 0


def test_a_run_that_said_it_is_done_is_done_after_a_power_cut(tmp_path: Path) -> None:
    """All of it: config, texts, the fences' key, exports. The same command again asks nothing."""
    root = tmp_path / "project"
    runs.write_inputs(root, n_prompts=4)
    with ScriptedProcess(judge="coherent") as server:
        path = runs.write_config(root, runs.config(root, url=server.url))
        disk = Disk(tmp_path / "work", root)
        environment = {k: v for k, v in disk.environment.items() if k not in ("HTTP_PROXY", "HTTPS_PROXY")}
        done = subprocess.run(runs.command("run", path, "--quiet"), env=environment, capture_output=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        exports = runs.exports(root / "runs" / "run")
        left = disk.restore(tmp_path / "left")
        shutil.rmtree(root)
        left.rename(root)
        assert runs.exports(root / "runs" / "run") == exports
        assert len((root / "runs" / FENCE_KEY).read_bytes()) == 32
        assert runs.run_json(path)["calls"]["made"] == 0
    assert runs.cai("audit", "verify", root / "runs" / "run").returncode == 0
