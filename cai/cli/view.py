"""`cai view`: a run, or a folder of runs, as pages in the browser."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json

_PORT = 8642


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "view", "show runs in the browser, live, and review them there", "cai view runs --reviewer anna"
    )
    parser.add_argument("path", metavar="RUN|DIR", help="the run's folder, or a folder that holds runs")
    parser.add_argument("--port", type=int, default=_PORT, help=f"where to listen; 0 takes any free port ({_PORT})")
    parser.add_argument("--host", default="127.0.0.1", help="loopback; any other needs CAI_VIEW_TOKEN and TLS")
    parser.add_argument("--as", dest="owner", metavar="NAME", help="what your votes are signed with (your login)")
    parser.add_argument(
        "--reviewer",
        action="append",
        default=[],
        metavar="NAME",
        help="also print a URL for this person that opens the review pages alone (may be given several times)",
    )
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate, for an address that others can reach")
    parser.add_argument("--tls-key", metavar="FILE", help="the certificate's key")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Open the door, print its URLs and serve until Ctrl+C."""
    import getpass
    import os
    import sys
    from pathlib import Path

    from cai.cli.terminal import say, say_json
    from cai.errors import UserError, install_extra
    from cai.review.desk import reviewer_name

    try:
        from cai.view import open_door, serve
    except ModuleNotFoundError as error:
        raise UserError(f"the viewer needs '{error.name}'; install it {install_extra('view')}") from None
    owner = arguments.owner or getpass.getuser()
    names = [reviewer_name(name) for name in (owner, *arguments.reviewer)]
    if len(set(names)) < len(names):
        raise UserError(f"found a name twice in {names}; each person needs a name of their own (see --as)")
    if bool(arguments.tls_cert) != bool(arguments.tls_key):
        raise UserError("found one of --tls-cert and --tls-key, expected both or neither")
    for file in filter(None, (arguments.tls_cert, arguments.tls_key)):
        if not Path(file).is_file():
            raise UserError(f"{file}: no such file; give the certificate and its key as PEM files")
    certificate = (arguments.tls_cert, arguments.tls_key) if arguments.tls_cert else None
    opened = open_door(
        arguments.host,
        arguments.port,
        owner=names[0],
        reviewers=names[1:],
        token=os.environ.get("CAI_VIEW_TOKEN"),
        tls=certificate is not None,
    )

    def ready() -> None:
        if arguments.json:
            say_json({"urls": opened.urls})
        else:
            say(f"open  {opened.urls[names[0]]}")
            for name in names[1:]:
                say(f"for {name} (review pages alone)  {opened.urls[name]}")
            say("Whoever has the URL is let in; Ctrl+C stops it.")
        sys.stdout.flush()

    serve(arguments.path, opened, certificate=certificate, when_ready=ready)
    return 0
