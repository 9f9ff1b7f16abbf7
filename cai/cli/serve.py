"""`cai serve`: the servers a config would start, for use by hand."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "serve",
        "start the servers of a config's policy and judge and keep them until Ctrl+C",
        "cai serve configs/quickstart.yaml",
    )
    parser.add_argument("config", help="the run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="override a key of the config")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    import asyncio
    import sys
    from contextlib import AsyncExitStack

    from cai.cli.load import load_config
    from cai.cli.run import interruptible
    from cai.cli.terminal import tell
    from cai.executors import local

    config, _ = load_config(arguments.config, arguments.overrides)
    sections = _to_serve(config, arguments.config)

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            told = []
            for role, section in sections.items():
                server = await _start(config, role, section)
                stack.push_async_callback(server.stop)
                told.append(
                    {"role": role, "checkpoint": section.checkpoint, "url": server.url, "model": server.model_name}
                )
            lines = (f"serving {t['checkpoint']} ({t['role']}) at {t['url']}, model name '{t['model']}'" for t in told)
            tell(arguments.json, told, (*lines, "Ctrl+C stops"))
            sys.stdout.flush()  # nothing else is said for as long as it serves
            await asyncio.Event().wait()

    try:
        local.run(interruptible(serve()))
    except asyncio.CancelledError:
        return 130
    return 0


def _to_serve(config: Any, name: str) -> dict[str, Any]:
    """Return the models to serve by role; one that both roles name is served once. Raises UserError for none."""
    from cai.errors import UserError

    if config.engine.kind == "transformers":
        raise UserError(f"{name}: engine.kind 'transformers' has no server; set engine.kind=vllm")
    policy, judge = config.models.policy, config.models.judge
    named = {"policy": policy} | ({} if judge in (None, policy) else {"judge": judge})
    served = {role: section for role, section in named.items() if not section.base_url}
    if not served:
        raise UserError(f"{name}: models.policy is served already at {policy.base_url[0]}; nothing to start")
    return {"policy and judge" if len(named) == 1 else role: section for role, section in served.items()}


async def _start(config: Any, role: str, section: Any) -> Any:
    """Start one server. Its name is no run's, so that a run at work in the same folder keeps its own."""
    from pathlib import Path

    from cai.pipeline import serving

    name = f"serve-{role.replace(' ', '-')}"
    identity = str(section.checkpoint) + ("+code" if section.trust_remote_code else "")
    return await serving.start(section, config.engine, run_dir=Path(config.run.dir), name=name, identity=identity)
