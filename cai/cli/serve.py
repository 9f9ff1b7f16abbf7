"""`cai serve`: the servers a config would start, for use by hand."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "serve",
        "start a config's policy server and keep it until Ctrl+C",
        "cai serve configs/quickstart.yaml",
    )
    parser.add_argument("config", help="the run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="override a key of the config")
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    import asyncio
    from pathlib import Path

    from cai.cli.load import load_config
    from cai.cli.terminal import say
    from cai.engine import server as servers
    from cai.errors import UserError
    from cai.executors import local
    from cai.model.fetch import resolve

    config, _ = load_config(arguments.config, arguments.overrides)
    checkpoint = config.models.policy.checkpoint
    if checkpoint is None:
        raise UserError(f"{arguments.config}: models.policy is served already at {config.models.policy.base_url[0]}")

    async def serve() -> None:
        server = await servers.start(
            resolve(checkpoint), config.engine, run_dir=Path(config.run.dir), name="serve", identity=checkpoint
        )
        say(f"serving {checkpoint} at {server.url} (model name '{server.model_name}'); Ctrl+C stops it")
        try:
            await asyncio.Event().wait()
        finally:
            await server.stop()

    local.run(serve())
    return 0
