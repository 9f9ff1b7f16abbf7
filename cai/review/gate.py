"""The gate: training waits until people have confirmed that the judge is good enough."""

from __future__ import annotations

from cai.config import GateSection
from cai.errors import Stopped
from cai.review import agreement
from cai.trail import RunView


def check(run: RunView, gate: GateSection | None) -> None:
    """Raise Stopped unless the judge's accuracy on the estimate queue is surely high enough, or nothing is asked.

    Where the judge has decided nothing yet, as before SFT on revisions alone, there is nothing to hold back.
    """
    if gate is None or run.connection.execute("SELECT 1 FROM ledger WHERE tag = 'judgment' LIMIT 1").fetchone() is None:
        return
    found = agreement.headline(run)
    told = "nobody has reviewed its estimate queue yet"
    if found is not None:
        if found.low >= gate.min_agreement_lower:
            return
        told = f"the judge agrees with people on {found.value:.1%} of {found.n} items, surely on {found.low:.1%} only"
    raise Stopped(
        f"{run.folder}: review.gate stops training: {told}; wanted at least {gate.min_agreement_lower:.1%} "
        f"(review.gate.min_agreement_lower). Draw with `cai review sample {run.folder} --estimate 140`, vote with "
        f"`cai review next {run.folder}`, and run the same command again"
    )
