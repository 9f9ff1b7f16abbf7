"""`cai plan`: what a run will ask for, before anything is asked."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "plan", "show what a run will ask for, without a network", "cai plan configs/quickstart.yaml"
    )
    parser.add_argument("config", help="the run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="override a key of the config")
    parser.add_argument("--resolved", action="store_true", help="also print the resolved config")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what the time estimate is for")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Count and show."""
    from cai.cli.load import load_config
    from cai.cli.terminal import say, say_json, table
    from cai.plan import KINDS, plan

    config, near = load_config(arguments.config, arguments.overrides)
    made = plan(config, near, device=arguments.device)
    if arguments.json:
        say_json(made)
        return 0
    if arguments.resolved:
        import yaml

        say(yaml.safe_dump(made["config"], sort_keys=False, allow_unicode=True))
    say(table([[k, v] for k, v in made["prompts"].items()], head=("prompts", "")))
    say()
    say(table([[p["name"], *(_range(p[k]) for k in KINDS)] for p in made["phases"]], head=("requests", *KINDS)))
    say(f"\nrequests in all: {_range(made['requests'])}")
    if kept := made["kept"]:
        say(_kept(kept))
    tokens = made["tokens_at_most"]
    say(f"tokens at most: {tokens['generated']:,} generated, about {tokens['read']:,} read (estimate)")
    say(f"disk at most: {made['disk_mb_at_most']} MB for the store (estimate)")
    guess = made["generation_minutes_at_most"]
    say(f"generation at most: {guess['minutes']} minutes on {guess['device']} (estimate; training comes on top)")
    for example in made["examples"]:
        say(f"\n--- {example['stage']} ---\n{example['text']}")
    return 0


def _kept(kept: dict[str, Any]) -> str:
    """Return what of the requests is answered already and what remains to be asked."""
    asked = ", ".join(f"{n:,} {kind}" for kind, n in kept["asked"].items() if n) or "none"
    said = f"kept already, here or in the runs beside it: {sum(kept['reused'].values()):,}; to be asked: {asked}"
    return said + (f" (up to phase '{kept['phases'][-1]}')" if kept["not_foreseen"] else "")


def _range(bounds: list[int]) -> str:
    least, most = bounds
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"
