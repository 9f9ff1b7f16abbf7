"""The application: which page lies where, and what happens when there is none."""

from __future__ import annotations

import json
import sqlite3
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

import cai.report
from cai.errors import CaiError
from cai.records import Critique, Prompt, Revision
from cai.records import Response as Answered
from cai.view import writes
from cai.view.guard import Door, Guard
from cai.view.page import Ask, NotFound, Page, is_id, render, show
from cai.view.pages import agreement, audit, compare, constitution, decision, decisions, review, run, runs, trail
from cai.view.site import Site

PAGES = (
    Page("runs", "/", "runs.html.jinja", runs.collect, for_reviewers=True),
    Page("overview", "/runs/{run}", "run.html.jinja", run.collect),
    Page("decisions", "/runs/{run}/decisions", "decisions.html.jinja", decisions.collect),
    Page("trail", "/runs/{run}/trail/{id}", "trail.html.jinja", trail.collect),
    Page("decision", "/runs/{run}/decision/{id}", "decision.html.jinja", decision.collect),
    Page("constitution", "/runs/{run}/constitution", "constitution.html.jinja", constitution.collect),
    Page("agreement", "/runs/{run}/agreement", "agreement.html.jinja", agreement.collect),
    Page("audit", "/runs/{run}/audit", "audit.html.jinja", audit.collect),
    Page("compare", "/compare", "compare.html.jinja", compare.collect),
    Page("review", "/runs/{run}/review", "review.html.jinja", review.collect, for_reviewers=True),
)
_STATIC = Path(__file__).resolve().parent / "static"
_REPORT_CSP = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
"""The report carries its style inside; it is a file of the run, so nothing in it may run or reach out."""
_TEXT_CSP = "default-src 'none'; sandbox; frame-ancestors 'none'"

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


def make_app(site: Site, door: Door) -> Guard:
    """Return the application for the runs of a site, behind its guard."""
    routes: list[Route] = []
    for page in PAGES:
        routes += [
            Route(page.path, _html(site, page), methods=["GET"]),
            Route(f"/json{page.path}", _json(site, page), methods=["GET"]),
        ]
    routes += [
        Route("/runs/{run}/text/{id}", _text(site), methods=["GET"]),
        Route("/runs/{run}/report", _report(site), methods=["GET"]),
        *writes.routes(site, ask_of),
        *(Route(f"/static/{name}", _static(content, kind), methods=["GET"]) for name, kind, content in _files()),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _problem, Exception: _fault})
    app.router.redirect_slashes = False
    return Guard(app, door)


def ask_of(site: Site, request: Request) -> Ask:
    """Return a request as the pages see it."""
    return Ask(
        site=site,
        visitor=request.state.visitor,
        params=request.path_params,
        query=dict(request.query_params),
        path=request.url.path.removeprefix("/json") or "/",
    )


def found(ask: Ask, collect: Callable[[Ask], T], *, for_reviewers: bool = False) -> T:
    """Return what `collect` gives; what it raises becomes an answer in one sentence."""
    if ask.visitor.reviews_only and not for_reviewers:
        raise HTTPException(403, "this page shows what the judge decided; your link is for reviewing alone")
    try:
        return collect(ask)
    except NotFound as error:
        raise HTTPException(404, str(error)) from error
    except CaiError as error:
        raise HTTPException(409, str(error)) from error
    except sqlite3.DatabaseError as error:
        raise HTTPException(
            409, f"the store cannot be read ({error}); `cai audit verify` tells what is wrong"
        ) from error


def _html(site: Site, page: Page) -> Handler:
    def made(ask: Ask) -> str:
        return render(page, ask, found(ask, page.collect, for_reviewers=page.for_reviewers))

    async def handle(request: Request) -> Response:
        return HTMLResponse(await run_in_threadpool(made, ask_of(site, request)))

    return handle


def _json(site: Site, page: Page) -> Handler:
    def made(ask: Ask) -> str:
        return as_json(found(ask, page.collect, for_reviewers=page.for_reviewers))

    async def handle(request: Request) -> Response:
        return Response(await run_in_threadpool(made, ask_of(site, request)), media_type="application/json")

    return handle


def as_json(data: dict[str, Any]) -> str:
    """Return a tree as JSON, ASCII only, so that nothing in it can steer a terminal."""
    return json.dumps(data, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def _text(site: Site) -> Handler:
    """Return the handler that gives one kept text whole, as plain text, however long it is."""

    def text_of(ask: Ask) -> str:
        view, _ = ask.run.followed()
        record = view.record(ask.params["id"]) if is_id(ask.params["id"]) else None
        if isinstance(record, Prompt):
            return "\n\n".join(f"{m.role}: {m.content}" for m in record.messages)
        if isinstance(record, (Answered, Revision, Critique)):
            return record.text
        raise NotFound(f"'{ask.params['id']}' is no text of this run")

    async def handle(request: Request) -> Response:
        text = await run_in_threadpool(found, ask_of(site, request), text_of)
        return PlainTextResponse(text, headers={"content-security-policy": _TEXT_CSP})

    return handle


def _report(site: Site) -> Handler:
    """Return the handler that shows a run's report. It is never read through a link that leads elsewhere."""

    def report_of(ask: Ask) -> bytes:
        folder = ask.run.folder.resolve()
        path = (folder / "report.html").resolve()
        if path.parent != folder or not path.is_file():
            raise NotFound("this run has no report yet; `cai report` writes it")
        return path.read_bytes()

    async def handle(request: Request) -> Response:
        html = await run_in_threadpool(found, ask_of(site, request), report_of)
        return HTMLResponse(html, headers={"content-security-policy": _REPORT_CSP})

    return handle


def _files() -> list[tuple[str, str, bytes]]:
    """Return the script and the style, whole: the report's style comes first, so that both look alike."""
    css = (Path(cai.report.__file__).parent / "page.css").read_bytes() + (_STATIC / "view.css").read_bytes()
    scripts = [(path.name, "text/javascript", path.read_bytes()) for path in sorted(_STATIC.glob("*.js"))]
    return [("view.css", "text/css", css), *scripts]


def _static(content: bytes, kind: str) -> Handler:
    async def handle(_: Request) -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return handle


async def _problem(request: Request, error: Exception) -> Response:
    """Say what is wrong, as the page would have been said: in JSON under /json and to writes, in HTML otherwise."""
    assert isinstance(error, HTTPException)
    if request.method == "POST" or request.url.path.startswith("/json"):
        return Response(as_json({"error": error.detail}), error.status_code, media_type="application/json")
    return HTMLResponse(_problem_page(error.status_code, error.detail), error.status_code, headers=error.headers)


async def _fault(request: Request, error: Exception) -> Response:
    """Our own mistake: the traceback goes to the terminal, never into a page."""
    traceback.print_exception(error, file=sys.stderr)
    return HTMLResponse(_problem_page(500, "something is wrong in cai itself; the terminal shows what"), 500)


def _problem_page(status: int, why: str) -> str:
    title = {403: "Not for this link", 404: "Not here", 405: "Not that way", 409: "Cannot be shown"}
    return show("problem.html.jinja", {"title": title.get(status, "Something is wrong"), "status": status, "why": why})
