"""Python code that comes with a model: run only where the config asks for it, and said and recorded then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cai.errors import UserError


@contextmanager
def asked_for(model: str) -> Iterator[None]:
    """Raise UserError in place of transformers' refusal of a model that it knows only by code of the model's own."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"'{model}': comes with Python code of its own (auto_map in its config.json), without which it cannot be "
            "loaded, and such code is run only on request; read it, then set trust_remote_code: true beside the "
            "model's name (on a command line: --trust-remote-code), or take a model that transformers knows"
        ) from None


def said(model: str) -> str:
    """Return the sentence that tells that a model's own code is run."""
    return f"trust_remote_code: Python code that comes with '{model}' is run"
