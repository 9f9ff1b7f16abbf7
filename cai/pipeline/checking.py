"""`cai judge check`, alone or at the head of a run: ask, compare with the last check, keep the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cai.assay import probes
from cai.assay.check import Judges, check, compared
from cai.config import RunConfig
from cai.manifest import append_line, now
from cai.pipeline.hearing import Hearing, beside, hearing
from cai.pipeline.meter import Meter

FOLDER = "judge-check"
"""Beside the runs: the store of what was asked, and every check's result, a line each."""
_RESULTS = "checks.jsonl"


async def check_judge(config: RunConfig, near: Path | None, meter: Meter) -> dict[str, Any]:
    """Return the check of a config's judge, compared with the last one made beside its run, and append it to these."""
    folder = beside(config, FOLDER)
    async with hearing(config, folder, near=near, meter=meter, siblings=config.run.reuse) as held:
        told = await _check(held)
    told = compared({"time": now()} | told, last(folder))
    append_line(folder / _RESULTS, json.dumps(told, ensure_ascii=True))
    return told | {"results": str(folder / _RESULTS)}


async def _check(held: Hearing) -> dict[str, Any]:
    again = held.afresh()
    bench_again = again.bench((), draws=True, seed=held.config.run.seed + 1)
    with held.meter.stage("check the judge", 0) as stage:
        in_flight = held.config.engine.prompts_in_flight
        sitting = Judges(held.bench((), draws=True), held.judge, bench_again, again.judge)
        return await check(sitting, probes.shipped_folder(), in_flight=in_flight, start=stage.expect)


def last(folder: Path) -> dict[str, Any] | None:
    """Return the last check kept in a folder; a torn last line is passed over."""
    path = folder / _RESULTS
    if not path.exists():
        return None
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return None


def last_beside(config: RunConfig) -> dict[str, Any] | None:
    """Return the last check made beside a config's run."""
    return last(beside(config, FOLDER))
