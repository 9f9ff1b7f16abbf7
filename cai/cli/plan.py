"""`cai plan`: what a run will ask for, before anything is asked."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "plan", "show what a run will ask for, without a network", "cai plan configs/quickstart.yaml"
    )
    parser.add_argument("config", help="the run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="override a key of the config")
    parser.add_argument("--short", action="store_true", help="leave out the resolved config and the rendered prompts")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="what the time estimate is for; without it what this machine has"
    )
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Count and show, what there is most of first."""
    import shutil

    from cai.cli.load import load_config
    from cai.cli.terminal import tell
    from cai.plan import plan

    config, near = load_config(arguments.config, arguments.overrides)
    device = arguments.device or ("cuda" if shutil.which("nvidia-smi") else "cpu")
    made = plan(config, near, device=device)
    tell(arguments.json, made, (*(() if arguments.short else _texts(made)), *_counts(made)))
    return 0


def _texts(made: dict[str, Any]) -> Iterator[str]:
    """Yield the resolved config and the rendered prompts."""
    import yaml

    yield "--- resolved config ---\n" + yaml.safe_dump(made["config"], sort_keys=False, allow_unicode=True)
    for example in made["examples"]:
        yield f"--- {example['stage']} ---\n{example['text']}\n"


def _counts(made: dict[str, Any]) -> Iterator[str]:
    from cai.cli.terminal import table
    from cai.plan import KINDS

    yield table([[k, v] for k, v in made["prompts"].items()], head=("prompts", ""))
    kinds = [k for k in KINDS if any(p[k][1] for p in made["phases"])]
    rows = [[p["name"], *(_range(p[k]) for k in kinds)] for p in made["phases"]]
    yield "\n" + table(rows, head=("requests", *kinds))
    yield f"\nrequests in all: {_range(made['requests'])}"
    if kept := made["kept"]:
        yield _kept(kept)
    tokens, guess = made["tokens_at_most"], made["generation_minutes_at_most"]
    yield f"tokens at most: {tokens['generated']:,} generated, about {tokens['read']:,} read (estimate)"
    yield f"disk at most: {made['disk_mb_at_most']} MB for the store (estimate)"
    yield f"generation at most: {guess['minutes']} minutes on {guess['device']} (estimate; training comes on top)"


def _kept(kept: dict[str, Any]) -> str:
    """Return what of the requests is answered already and what remains to be asked."""
    asked = ", ".join(f"{n:,} {kind}" for kind, n in kept["asked"].items() if n) or "none"
    said = f"kept already, here or in the runs beside it: {sum(kept['reused'].values()):,}; to be asked: {asked}"
    return said + (f" (up to phase '{kept['phases'][-1]}')" if kept["not_foreseen"] else "")


def _range(bounds: list[int]) -> str:
    least, most = bounds
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"
