"""The command line: `python -m cai.engine.scripted --help`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys

from cai.engine.scripted.faults import FAULTS_HELP
from cai.engine.scripted.rules import RULES_HELP
from cai.engine.scripted.server import GREETING, ScriptedServer
from cai.errors import UserError

_PARENT_POLL_S = 0.2
_GC_THRESHOLD = 50_000
_EPILOG = f"""\
The judge's RULE:
{RULES_HELP}
The SPEC of faults:
{FAULTS_HELP}
Requests that ask the model are those to /v1/chat/completions, /v1/completions and /generative_scoring. The judge finds
the last two fenced answers and the line that starts 'Principle:' in the prompt. GET /stats tells what was counted;
/stats?keys adds each key's count.

Example: python -m cai.engine.scripted --port 8000 --judge by-principle:short=shorter,*=coherent
"""


def parser() -> argparse.ArgumentParser:
    """Return the reader of the command line."""
    options = argparse.ArgumentParser(
        prog="python -m cai.engine.scripted",
        description="Serve vLLM's HTTP API without a model: every answer follows a rule. Loopback only.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add("--port", type=int, default=8000, help="port to listen on; 0 takes a free one (default 8000)")
    add("--judge", metavar="RULE", default="coherent", help="how it judges, see below (default coherent)")
    add("--seed", type=int, default=0, help="changes every draw (default 0)")
    add("--latency-ms", type=float, default=0.0, metavar="N", help="every reply of the model comes N ms later")
    add("--jitter-ms", "--jitter", type=float, default=0.0, metavar="N", help="and up to N ms more, by hash")
    add("--faults", metavar="SPEC", default="", help="what goes wrong, see below")
    add("--max-model-len", type=int, default=16384, metavar="N", help="context in tokens, a token is a byte (16384)")
    add("--model", action="append", dest="models", metavar="NAME", help="a name it serves; repeatable (scripted)")
    add("--count-keys", action="store_true", help="let /stats tell how often each request and each prompt came")
    add("--parent-pid", type=int, metavar="P", help="end when process P is gone")
    return options


async def serve(server: ScriptedServer, parent_pid: int | None) -> None:
    """Serve until a signal comes or the parent is gone."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await server.start()
    print(f"{GREETING}{server.url}", flush=True)
    watch = asyncio.create_task(_outlive(parent_pid, stop)) if parent_pid else None
    await stop.wait()
    if watch is not None:
        watch.cancel()
    await server.stop()


async def _outlive(pid: int, stop: asyncio.Event) -> None:
    """Set `stop` once process `pid` has ended."""
    import psutil

    try:
        parent = psutil.Process(pid)
        # A process that ended stays a zombie until somebody asks for its exit code; `is_running` tells a reused pid.
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(_PARENT_POLL_S)
    except psutil.NoSuchProcess:
        pass
    stop.set()


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 stopped, 1 cannot listen, 2 the command line cannot be used."""
    options = vars(parser().parse_args(arguments))
    parent_pid, port = options.pop("parent_pid"), options.pop("port")
    options["models"] = tuple(options["models"] or ("scripted",))
    try:
        server = ScriptedServer(port=port, **options)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    # `die` is the death of the whole process: no goodbye, and an exit code that is not 0.
    server.api.die = lambda: os._exit(1)
    # Requests leave no reference cycles behind; looking for some a hundred times a second costs a tenth of the speed.
    gc.set_threshold(_GC_THRESHOLD)
    try:
        asyncio.run(serve(server, parent_pid))
    except OSError as error:
        print(f"cannot listen on port {port}: {error.strerror}; choose another --port, or 0 for any", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
