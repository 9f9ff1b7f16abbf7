"""`cai judge bench`: ask the judge about every labelled pair, measure, and keep what was measured."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Literal

from cai import constitution, shipped
from cai.assay import labelled, plot
from cai.assay.asking import OVERALL, ask, ask_all
from cai.assay.bench import Row, measure
from cai.config import RunConfig
from cai.constitution import Principle
from cai.errors import install_extra
from cai.manifest import now, write_atomically
from cai.pipeline.hearing import Hearing, beside, hearing
from cai.pipeline.meter import Meter
from cai.stages.judge import Bench

FOLDER = "judge-bench"
"""Beside the runs: the store of what was asked, and a folder of results per data file."""


async def bench(
    config: RunConfig,
    near: Path | None,
    data: Path,
    meter: Meter,
    *,
    limit: int | None = None,
    by: Literal["overall", "constitution"] = "overall",
    out: Path | None = None,
) -> dict[str, Any]:
    """Return the judge's agreement with the labels of `data`, and write it with its plot into a folder.

    `by` says what is asked: one overall question, or every principle of the config's constitution, settled as in a run.
    """
    pairs = labelled.read(data, limit=limit)
    principles = _principles(config, near, by)
    folder = beside(config, FOLDER)
    async with hearing(config, folder, near=near, meter=meter, siblings=config.run.reuse) as held:
        rows, seconds, bench = await _ask_all(held, pairs, principles)
    told = {
        "time": now(),
        "judge": bench.judges,
        "mode": config.judge.mode,
        "asked": by,
        "by_letters": bench.by_letters(principles),
        "data": data.name,
        "seconds": round(seconds, 1),
        "calls": {"made": meter.tally.made, "reused": meter.tally.reused},
        **measure(rows, seed=config.run.seed),
    }
    told["effects"] = _effects(rows)
    return told | {"files": _write(told, out or folder / data.name.partition(".")[0])}


def _principles(config: RunConfig, near: Path | None, by: str) -> tuple[Principle, ...]:
    if by == "overall":
        return (OVERALL,)
    return constitution.load(shipped.find(config.constitution, near=near)).principles


async def _ask_all(
    held: Hearing, pairs: list[labelled.Labelled], principles: tuple[Principle, ...]
) -> tuple[list[Row], float, Bench]:
    """Return the rows, the seconds they took once the judge had answered its first question, and who judged how."""
    bench, judge = held.bench(principles, draws=True), held.judge
    # The first pair starts the server; what comes before its answer is not the judge's time.
    first = await ask(pairs[0], bench, judge)
    began = time.monotonic()
    with held.meter.stage("judge", len(pairs)) as stage:
        stage.tick()
        in_flight = held.config.engine.prompts_in_flight
        rest = await ask_all(pairs[1:], lambda pair: ask(pair, bench, judge), in_flight=in_flight, tell=stage.tick)
    rows = [Row(pair, said) for pair, said in zip(pairs, [first, *rest], strict=True)]
    return rows, time.monotonic() - began, bench


def _effects(rows: list[Row]) -> dict[str, Any]:
    try:
        from cai.assay import effects
    except ImportError as error:
        why_not = f"no module '{error.name}'; install it {install_extra('audit')}"
        return {"n": len(rows), "effects": [], "why_not": why_not}
    return effects.measure(rows)


def _write(told: dict[str, Any], out: Path) -> dict[str, str]:
    """Write the results and the plot; return where they are."""
    files = {"results": out / "bench.json"}
    if told["calibration"]:
        files["plot"] = out / "reliability.svg"
        write_atomically(files["plot"], plot.svg(told["calibration"], f"How reliable {told['judge']} is"))
    write_atomically(files["results"], json.dumps(told, indent=1, ensure_ascii=True) + "\n")
    return {name: str(path) for name, path in files.items()}
