"""What can go wrong, one class per boundary.

    CaiError
    ├── UserError          the user's input; one message, exit code 2
    │   └── ProblemsError  every problem of one edited file (in cai.yamlfile)
    ├── EngineError        a model server that cannot be used; exit code 1
    │   └── RejectedError  a request the server will never accept: it is not sent again
    │       └── GaveUpError  a request that the server put off until we gave up
    ├── StoreError         the run folder cannot be read or written; exit code 1
    ├── Stopped            a clean, resumable stop (budget spent); exit code 3
    └── TrainError         training cannot go on (NaN, damaged checkpoint); exit code 1

Anything else that reaches the door is our own mistake and keeps its traceback.
"""

from __future__ import annotations


class CaiError(Exception):
    """Base of every error that `cai` explains in one message."""

    exit_code = 1


class UserError(CaiError):
    """The user's input cannot be used. The message says what was found, where, what was expected and what to do."""

    exit_code = 2


class EngineError(CaiError):
    """A model server stayed unreachable, refused our credentials or answered what cannot be read."""


class RejectedError(EngineError):
    """The server rejected this one request for good (400, 404, 413, 422); other requests may still succeed."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status of the refusal; None where there was none."""


class GaveUpError(RejectedError):
    """The server put this one request off as often as we asked: too much to do says nothing about the request."""


class StoreError(CaiError):
    """The run folder cannot be trusted or written: damaged, newer than this version, locked, disk full."""


class Stopped(CaiError):
    """The run stopped cleanly before its end and can be resumed by the same command."""

    exit_code = 3


class TrainError(CaiError):
    """Training cannot continue: a loss that is not finite, data that cannot train, a checkpoint cut short."""


def install_extra(name: str) -> str:
    """Return how to install one of our extras. PyPI's `cai` is another project, so never by that name."""
    return f"in the checkout of cai: pip install -e '.[{name}]'"
