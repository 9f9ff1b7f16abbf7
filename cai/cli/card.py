"""`cai card`: a run's model card and dataset card, and sending them with their files to the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "card",
        "write a run's model card and dataset card, and list or send what would be published",
        "cai card runs/quickstart --kind model --push me/brief-and-plain",
    )
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--kind", choices=("model", "dataset"), help="only this card (default: both)")
    parser.add_argument("--phase", help="the checkpoint to describe (default: the last one trained)")
    parser.add_argument("--license", help="what you put it under, such as apache-2.0")
    parser.add_argument("-o", "--out", help="the folder to write to (default: the run's cards/)")
    parser.add_argument("--push", metavar="OWNER/NAME", help="list what would leave for this repository of the Hub")
    parser.add_argument("--yes", action="store_true", help="send what --push lists")
    parser.add_argument("--public", action="store_true", help="make the repository public (default: private)")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Write the cards, or list and send."""
    from cai.errors import UserError
    from cai.trail import RunView

    with RunView(arguments.run) as run:
        if arguments.push:
            if arguments.kind is None:
                raise UserError("--push needs --kind model or --kind dataset: they are repositories of their own")
            return _push(arguments, run)
        if arguments.yes or arguments.public:
            raise UserError("--yes and --public go with --push OWNER/NAME")
        return _write(arguments, run)


def _write(arguments: argparse.Namespace, run: Any) -> int:
    from cai import cards
    from cai.cards.facts import trained_phases
    from cai.cli.terminal import say, say_json

    out = Path(arguments.out) if arguments.out else run.folder / "cards"
    kinds = [arguments.kind] if arguments.kind else ["model", "dataset"] if trained_phases(run) else ["dataset"]
    written = {
        kind: str(cards.write(run, kind, out, phase=arguments.phase, license_=arguments.license)) for kind in kinds
    }
    if arguments.json:
        say_json(written)
    else:
        for kind, path in written.items():
            say(f"{kind} card: {path}")
    return 0


def _push(arguments: argparse.Namespace, run: Any) -> int:
    from cai.cards import push
    from cai.cli.terminal import say, say_json, table

    shipment = push.prepare(
        run,
        arguments.kind,
        arguments.push,
        public=arguments.public,
        phase=arguments.phase,
        license_=arguments.license,
    )
    if not arguments.json:
        visible = "private" if shipment.private else "PUBLIC"
        say(f"for the {shipment.kind} repository {shipment.repo} ({visible}):")
        rows = [[item.name, f"{item.n_bytes:,}", item.what] for item in shipment.items]
        say(table([*rows, ["all", f"{shipment.n_bytes:,}", ""]], head=("file", "bytes", "what is in it")))
        for warning in shipment.warnings:
            say(f"warning: {warning}")
    sent = push.send(shipment) if arguments.yes else None
    if arguments.json:
        say_json(shipment.as_dict() | {"sent": sent})
    else:
        say(f"sent: {sent}" if sent else "nothing was sent; the same command with --yes sends it")
    return 0
