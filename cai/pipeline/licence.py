"""What a run asks of its judge before it asks anything else: the result of `cai judge check`.

With `judge.check.enforce` the check is made here, its calls kept in the run's own store, so that a resumed run asks
nothing twice; below the thresholds nothing is trained. Without it the last check made beside the run is told.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai.assay import probes
from cai.assay.check import Judges, below, check, compared, identity, sentence, settings_id
from cai.errors import Stopped
from cai.manifest import now
from cai.pipeline import judges
from cai.pipeline.checking import last_beside
from cai.store.calls import Recorded
from cai.store.store import Store

if TYPE_CHECKING:
    from cai.pipeline.conduct import Conductor


async def grant(conductor: Conductor, judge: Recorded) -> None:
    """Tell what the judge is worth. Raises Stopped where the config enforces thresholds that it stays below."""
    config = conductor.config
    if not config.judge.check.enforce:
        _tell_last(conductor, judge)
        return
    told = conductor.manifest["judge_check"]
    if told is None or told["inputs"] != _inputs(conductor):
        told = compared({"time": now()} | await ask(conductor, judge), last_beside(config))
        conductor.manifest.save(judge_check=told | {"inputs": _inputs(conductor)})
    conductor.meter.note(sentence(told))
    if not told["passed"] and any(turn.phase.train != "none" for turn in conductor.turns()):
        raise Stopped(
            f"the judge is below the thresholds of judge.check: {'; '.join(below(told))}; nothing else was "
            "asked, and nothing is trained; take another judge, lower the thresholds, or set judge.check.enforce: false"
        )


def _inputs(conductor: Conductor) -> dict[str, Any]:
    kept = {name: conductor.manifest[name] for name in ("config_id", "templates", "models")}
    return kept | {"check": conductor.config.judge.check.model_dump()}


async def ask(
    conductor: Conductor, judge: Recorded, *, instead: Callable[[Any], Any] = lambda model: model
) -> dict[str, Any]:
    """Return what every probe came to, the calls kept in the run's store; those of `repeat` are kept nowhere.

    `instead` gives another model for one that is asked again.
    """
    bench = conductor.bench(judge)
    with tempfile.TemporaryDirectory(prefix="cai-again-") as folder:
        store = Store(Path(folder) / "store.sqlite")

        def forgetful(model: Any) -> Recorded:
            return Recorded(instead(model), store, conductor.meter.tally)

        try:
            again = forgetful(judge.model)
            seats = judges.seats(conductor.config, conductor.fleet, conductor.meter, again, forgetful)
            other = dataclasses.replace(bench, seats=seats, seed=bench.seed + 1, learnt={})
            with conductor.meter.stage("check the judge", 0) as stage:
                in_flight = conductor.config.engine.prompts_in_flight
                sitting = Judges(bench, judge, other, again)
                return await check(sitting, probes.shipped_folder(), in_flight=in_flight, start=stage.expect)
        finally:
            store.close()


def _tell_last(conductor: Conductor, judge: Recorded) -> None:
    told, bench = last_beside(conductor.config), conductor.bench(judge)
    if told is not None and told["judge"] == identity(bench):
        other = "" if told["settings_id"] == settings_id(bench) else " (with other settings than this run's)"
        conductor.meter.note(f"{sentence(told)}{other}")
    elif any(p.check is None for p in bench.principles):
        conductor.meter.note("the judge has not been checked: `cai judge check` tries it on twelve probes")
