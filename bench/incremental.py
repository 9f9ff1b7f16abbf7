"""What an edit costs: a run, then the same run with one thing changed, in a folder beside it.

    python -m bench.incremental [--json] [--prompts 100]

Against a scripted server: the counts are the same on any machine and for any model. `planned` is what `cai plan` said
before the edited run was started.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import workload
from bench.show import machine, show

_PHASE = {"name": "walk", "samples": 2, "revisions": 1, "pairs": ["revision", "samples"]}


def _principle(field: str) -> Callable[[Path, dict[str, Any]], None]:
    def edit(folder: Path, config: dict[str, Any]) -> None:
        path = folder / "constitution.yaml"
        tree = json.loads(path.read_text(encoding="utf-8"))
        tree["principles"][3][field] += " Be strict."
        path.write_text(json.dumps(tree), encoding="utf-8")

    return edit


def _template(name: str) -> Callable[[Path, dict[str, Any]], None]:
    def edit(folder: Path, config: dict[str, Any]) -> None:
        path = folder / "prompts" / f"{name}.jinja"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("{% endblock %}", "Thank you.\n{% endblock %}", 1), encoding="utf-8")

    return edit


def _threshold(folder: Path, config: dict[str, Any]) -> None:
    config["pairs"] = {"min_confidence": 0.3}


def _nothing(folder: Path, config: dict[str, Any]) -> None:
    pass


EDITS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "nothing": _nothing,
    "compare text of 1 of 16 principles": _principle("compare"),
    "critique text of 1 of 16 principles": _principle("critique"),
    "revision text of 1 of 16 principles": _principle("revision"),
    "template revision.jinja": _template("revision"),
    "template judgment.jinja": _template("judgment"),
    "threshold pairs.min_confidence": _threshold,
}


def measure(n_prompts: int) -> dict[str, Any]:
    """Return the first run's calls by kind, and for every edit the calls planned, made and reused."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        first = _run(folder, "first", n_prompts, _nothing)
        edits = {edit: _run(folder, f"edit-{i}", n_prompts, change) for i, (edit, change) in enumerate(EDITS.items())}
        compare = edits["compare text of 1 of 16 principles"]["made"]
        return {
            "bench": "incremental",
            **machine(),
            "prompts": n_prompts,
            "first": first,
            "edits": edits,
            "judge_share": compare.get("score", 0) / first["made"]["score"],
            "other_calls": sum(n for kind, n in compare.items() if kind != "score"),
        }


def _run(folder: Path, name: str, n_prompts: int, change: Callable[[Path, dict[str, Any]], None]) -> dict[str, Any]:
    inputs = folder / "inputs" / name
    workload.write(inputs, n_prompts=n_prompts)
    workload.write_templates(inputs / "prompts")
    path = workload.config(
        inputs,
        name,
        run={"dir": str(folder / "runs" / name), "reuse": True},
        templates=str(inputs / "prompts"),
        phases=[_PHASE],
    )
    config = json.loads(path.read_text(encoding="utf-8"))
    change(inputs, config)
    path.write_text(json.dumps(config), encoding="utf-8")
    planned = _cai("plan", str(path), "--json")["kept"]
    done = _cai("run", str(path), "--quiet", "--json")
    return {
        "planned": planned["asked"] if planned else None,
        "made": done["by_kind"]["made"],
        "reused": done["by_kind"]["reused"],
    }


def _cai(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, "-m", "cai", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"cai {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def rows(found: dict[str, Any]) -> list[list[Any]]:
    """Return the figures as a table."""
    made = [["first run", _told(found["first"]["made"]), ""]]
    for edit, took in found["edits"].items():
        reused = sum(took["reused"].values())
        made.append([edit, f"{_told(took['made'])} (planned: {_told(took['planned'])}); {reused:,} reused", ""])
    made.append(["judge calls after the compare edit, share", f"{found['judge_share']:.4f}", "<= 1/16 = 0.0625"])
    made.append(["other calls after it", found["other_calls"], "0"])
    return made


def _told(kinds: dict[str, int] | None) -> str:
    return ", ".join(f"{n:,} {kind}" for kind, n in sorted((kinds or {}).items()) if n) or "0"


def main() -> int:
    """Measure and show."""
    parser = argparse.ArgumentParser(prog="python -m bench.incremental", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, default=100, help="prompts of each run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    found = measure(arguments.prompts)
    return show(found, rows(found), as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
