"""What can be written through the viewer: votes, undo, a look at the verdict, drawings, overrides.

The guard has let a write through by the time it comes here; here it is read, refused where it says something else
than it may, and handed to the review desk, which appends it to the ledger.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cai.errors import CaiError
from cai.manifest import now
from cai.records import Reveal
from cai.store import ledger, schema
from cai.view.guard import MOST_BODY_BYTES
from cai.view.page import Ask, NotFound
from cai.view.site import Run, Site

_Id = Field(pattern=r"^b2:[0-9a-f]{40}$")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class VoteBody(_Body):
    """A vote by side, as the reviewer sees the sides."""

    item_id: str = _Id
    side: Literal["left", "right", "tie", "both_bad", "cannot_judge", "skip"]
    confidence: Literal[1, 2, 3] | None = None
    """1 unsure, 2 fairly sure, 3 sure."""
    reason: str = Field(default="", max_length=4000)
    duration_s: float | None = Field(default=None, ge=0, le=86400)


class Nothing(_Body):
    """An empty object."""


class RevealBody(_Body):
    """Which item's verdict is to be shown."""

    item_id: str = _Id


class DrawBody(_Body):
    """How many comparisons to draw into each queue."""

    estimate: int | None = Field(default=None, ge=0, le=100_000)
    """None draws as many as `cai review sample` does."""
    value: int = Field(ge=0, le=100_000)
    by_principle: bool = False


class OverrideBody(_Body):
    """A label that somebody decides outright."""

    comparison_id: str = _Id
    label: Literal["a", "b", "tie"]
    reason: str = Field(min_length=1, max_length=4000)


class WithdrawBody(_Body):
    """Which comparison's override is taken back."""

    comparison_id: str = _Id
    reason: str = Field(min_length=1, max_length=4000)


def vote(run: Run, ask: Ask, body: VoteBody) -> dict[str, Any]:
    """Keep a vote. Where this person has seen the verdict on other pages, that is put on record before it."""
    reviewer = ask.visitor.name
    item = run.desk.book.items.get(body.item_id)
    if item and run.has_seen(reviewer, item.comparison_id):
        seen = Reveal(comparison_id=item.comparison_id, item_id=item.id, reviewer=reviewer, time=now())
        _append(run, seen)
    made = run.desk.vote(reviewer, **body.model_dump())
    return {"vote_id": made.id, "item_id": made.item_id, "blind": made.blind, "progress": run.desk.progress(reviewer)}


def _append(run: Run, event: Reveal) -> None:
    connection = schema.connect(run.folder / "store.sqlite")
    try:
        ledger.append_now(connection, [event])
    finally:
        connection.close()


def undo(run: Run, ask: Ask, _: Nothing) -> dict[str, Any]:
    """Take the latest vote back."""
    shown = run.desk.undo(ask.visitor.name)
    return {"item_id": shown.item_id if shown else None, "progress": run.desk.progress(ask.visitor.name)}


def reveal(run: Run, ask: Ask, body: RevealBody) -> dict[str, Any]:
    """Tell what stands behind an item that was voted on, and put on record that it was told."""
    return run.desk.reveal(ask.visitor.name, body.item_id)


def draw(run: Run, ask: Ask, body: DrawBody) -> dict[str, Any]:
    """Draw items for review."""
    _only_owner(ask)
    made = run.desk.draw(
        estimate=body.estimate, value=body.value, author=ask.visitor.name, by_principle=body.by_principle
    )
    return {"draw_id": made.id, "population": made.population, "queues": made.queues}


def override(run: Run, ask: Ask, body: OverrideBody) -> dict[str, Any]:
    """Decide a comparison outright. Whoever does it here has the verdict before them, so it is not blind."""
    _only_owner(ask)
    made = run.desk.override(body.comparison_id, body.label, author=ask.visitor.name, reason=body.reason, blind=False)
    return {"override_id": made.id}


def withdraw(run: Run, ask: Ask, body: WithdrawBody) -> dict[str, Any]:
    """Take an override back."""
    _only_owner(ask)
    run.desk.withdraw(body.comparison_id, author=ask.visitor.name, reason=body.reason)
    return {}


def _only_owner(ask: Ask) -> None:
    if ask.visitor.reviews_only:
        raise HTTPException(403, "your link is for reviewing alone")


_WRITES: tuple[tuple[str, type[_Body], Callable[[Run, Ask, Any], dict[str, Any]]], ...] = (
    ("/runs/{run}/review/vote", VoteBody, vote),
    ("/runs/{run}/review/undo", Nothing, undo),
    ("/runs/{run}/review/reveal", RevealBody, reveal),
    ("/runs/{run}/review/draw", DrawBody, draw),
    ("/runs/{run}/override", OverrideBody, override),
    ("/runs/{run}/withdraw", WithdrawBody, withdraw),
)


def routes(site: Site, ask_of: Callable[[Site, Request], Ask]) -> list[Route]:
    """Return the routes that write."""
    return [Route(path, _handler(site, ask_of, kind, does), methods=["POST"]) for path, kind, does in _WRITES]


def _handler(
    site: Site,
    ask_of: Callable[[Site, Request], Ask],
    kind: type[_Body],
    does: Callable[[Run, Ask, Any], dict[str, Any]],
) -> Callable[[Request], Awaitable[Response]]:
    def done(ask: Ask, raw: bytes) -> dict[str, Any]:
        try:
            run = ask.run
            if not run.has_begun:
                raise HTTPException(409, "nothing has been generated yet, so there is nothing to write about")
            return does(run, ask, kind.model_validate_json(raw))
        except NotFound as error:
            raise HTTPException(404, str(error)) from error
        except ValidationError as error:
            raise HTTPException(422, _told(error)) from error
        except CaiError as error:
            raise HTTPException(409, str(error)) from error

    async def handle(request: Request) -> Response:
        raw = bytearray()
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > MOST_BODY_BYTES:
                raise HTTPException(413, f"a write may hold {MOST_BODY_BYTES:,} bytes")
        return JSONResponse(await run_in_threadpool(done, ask_of(site, request), bytes(raw)))

    return handle


def _told(error: ValidationError) -> str:
    """Return what is wrong with a body, field by field, without repeating what was sent."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the body'}: {e['msg']}" for e in error.errors())
