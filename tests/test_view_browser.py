"""The viewer in a real browser: reviewing by keyboard, hostile texts on every page, and a picture of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from cai.review import Desk
from cai.store import ledger, schema
from cai.trail import RunView
from cai.view.app import PAGES
from cai.view.pages import agreement
from tests import browser, report_fixture, runs
from tests.browser import Visit
from tests.report_fixture import make_run
from tests.view_fixture import Served, serving
from tests.xss_corpus import PAYLOADS


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    browser.require()
    with browser.launched() as started:
        yield started


@pytest.fixture
def visits(chromium: Any) -> Iterator[Any]:
    """Open visits with `visits(served, "anna")`; they are closed at the end."""
    opened: list[Visit] = []

    def visit(served: Served, visitor: str = "owner", **context: Any) -> Visit:
        opened.append(Visit(chromium, served, visitor, **context))
        return opened[-1]

    yield visit
    for one in opened:
        one.close()


# -- reviewing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A run with twenty items to review and no practice round."""
    folder = make_run(tmp_path / "runs" / "one", n_train=24, n_held_out=10)
    desk = Desk(folder)
    desk.draw(estimate=20, value=0, author="owner", repeats=0.0)
    desk.close()
    return folder


def place(visit: Visit) -> str:
    return str(visit.page.inner_text(".at-place span >> nth=-1"))


def item(visit: Visit) -> str:
    return str(visit.page.get_attribute("#review", "data-item"))


def sides(visit: Visit) -> tuple[str, ...]:
    return tuple(visit.page.locator(".sides.blind .said").all_inner_texts())


def votes_of(folder: Path, reviewer: str) -> list[Any]:
    desk = Desk(folder)
    try:
        return [v for v in desk.book.standing(reviewer)]
    finally:
        desk.close()


def test_twenty_pairs_are_reviewed_by_keyboard_with_undo_and_reload(drawn: Path, visits: Any) -> None:
    with serving(drawn.parent, reviewers=("anna", "ben")) as served:
        anna = visits(served, "anna")
        anna.page.keyboard.press("j")
        anna.page.keyboard.press("Enter")
        anna.page.wait_for_selector("#review")
        seen: list[str] = []
        for n, key in enumerate("12341234123412341234"):
            assert place(anna) == f"{n + 1} of 20"
            seen.append(item(anna))
            anna.key(key)
            if n == 4:
                anna.key("u")
                assert (place(anna), item(anna)) == ("5 of 20", seen[-1])
                anna.key("2")
            if n == 9:
                before = (item(anna), sides(anna))
                anna.page.reload()
                assert (item(anna), sides(anna)) == before
                assert place(anna) == "11 of 20"
        assert len(set(seen)) == 20
        assert "Done" in anna.page.inner_text("h1")
        kept = votes_of(drawn, "anna")
        assert [v.item_id for v in kept].count(seen[4]) == 1
        assert {v.item_id for v in kept} == set(seen)
        by_item = {v.item_id: v for v in kept}
        wanted = ["left", "right", "tie", "both_bad"] * 5
        wanted[4] = "right"
        for id_, side in zip(seen, wanted, strict=True):
            vote = by_item[id_]
            shown = {"left": vote.shown[0], "right": vote.shown[1]}.get(side, side)
            assert vote.choice == shown and vote.blind and vote.duration_s is not None
        anna.calm()

        # Another reviewer begins at the beginning and sees nothing of it.
        ben = visits(served, "ben")
        ben.open("/runs/one/review")
        assert place(ben) == "1 of 20"
        assert "anna" not in ben.page.content()
        ben.key("s")
        assert votes_of(drawn, "ben")[0].choice == "skip"
        assert len(votes_of(drawn, "anna")) == 20
        ben.calm()


def test_the_verdict_is_hidden_until_the_vote_and_told_after_it(drawn: Path, visits: Any) -> None:
    with serving(drawn.parent, reviewers=("anna",)) as served:
        anna = visits(served, "anna")
        anna.open("/runs/one/review")
        told = served.get("/json/runs/one/review", "anna").json
        assert set(told["item"]) == {
            *("item_id", "messages", "left", "right", "question", "principle", "is_practice", "done", "total")
        }
        desk = Desk(drawn)
        waiting = desk.book.items[told["item"]["item_id"]]
        comparison = desk.run.record(waiting.comparison_id)
        desk.close()
        whole = anna.page.content() + str(told)
        assert not any(id_ in whole for id_ in (comparison.id, comparison.a_id, comparison.b_id))
        assert anna.page.locator("[data-reveal]").is_hidden()
        anna.page.keyboard.press("v")
        anna.key("1")
        assert anna.page.locator("[data-reveal]").is_visible()
        anna.page.keyboard.press("v")
        anna.page.wait_for_selector("#status:has-text('principles named')")
        for path in ("/runs/one/decisions", "/runs/one/agreement", "/json/runs/one/audit", "/runs/one/constitution"):
            assert anna.open(path).status == 403
        anna.calm()


def test_practice_tells_the_answer_after_each_vote(tmp_path: Path, visits: Any) -> None:
    folder = make_run(tmp_path / "runs" / "one", n_train=12, n_held_out=8)
    gold = tmp_path / "gold.jsonl"
    pairs = [
        {"prompt": f"Is {n} even?", "a": "yes", "b": "no", "expect": "a", "why": f"because {n}"} for n in (2, 4, 6, 8)
    ]
    gold.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    desk = Desk(folder)
    desk.draw(estimate=4, value=0, author="owner", repeats=0.0, gold=gold)
    n_practice = desk.progress("anna")["practice_left"]
    desk.close()
    assert n_practice
    with serving(folder.parent, reviewers=("anna",)) as served:
        anna = visits(served, "anna")
        anna.open("/runs/one/review")
        for n in range(n_practice):
            assert place(anna) == f"{n + 1} of {n_practice}" and "Practice" in anna.page.inner_text(".at-place")
            left, _ = sides(anna)
            anna.page.keyboard.press("1")
            anna.page.wait_for_selector("#status button")
            told = anna.page.inner_text("#status")
            assert ("As expected" in told) == (left == "yes") and "because" in told
            anna.page.keyboard.press("2")
            assert len(votes_of(folder, "anna")) == n + 1
            anna.key("Enter")
        assert "Practice" not in anna.page.inner_text(".at-place")
        anna.calm()


def test_a_vote_after_the_verdict_was_read_elsewhere_is_not_blind(drawn: Path, visits: Any) -> None:
    with serving(drawn.parent) as served:
        owner = visits(served)
        owner.open("/runs/one/review")
        owner.key("1")
        desk = Desk(drawn)
        shown = desk.next("owner")
        assert shown is not None
        comparison = desk.book.items[shown.item_id].comparison_id
        desk.close()
        owner.open(f"/runs/one/trail/{comparison}")
        owner.open("/runs/one/review")
        assert item(owner) == shown.item_id
        owner.key("1")
        assert [v.blind for v in votes_of(drawn, "owner")] == [True, False]


def test_confidence_reason_and_help_are_in_reach_of_the_keyboard(drawn: Path, visits: Any) -> None:
    with serving(drawn.parent, reviewers=("anna",)) as served:
        anna = visits(served, "anna")
        anna.open("/runs/one/review")
        anna.page.keyboard.press("?")
        assert anna.page.locator("dialog").is_visible()
        anna.page.keyboard.press("1")
        anna.page.keyboard.press("Escape")
        assert not votes_of(drawn, "anna")
        anna.page.keyboard.press("c")
        anna.page.keyboard.press("c")
        anna.page.keyboard.press("r")
        anna.page.keyboard.type("1 is <b>shorter</b>")
        anna.page.keyboard.press("Enter")
        anna.key("1")
        (vote,) = votes_of(drawn, "anna")
        assert (vote.confidence, vote.reason) == (2, "1 is <b>shorter</b>")
        anna.calm()


def test_an_override_on_the_trail_holds_and_can_be_taken_back(drawn: Path, visits: Any) -> None:
    run = RunView(drawn)
    end = next(iter(run.ended("rl")))
    run.connection.close()
    other = "b" if end.settled.label == "a" else "a"
    with serving(drawn.parent) as served:
        owner = visits(served)
        owner.open(f"/runs/one/trail/{end.comparison.id}")
        owner.page.click(".decide summary")
        owner.page.check(f"input[name=label][value={other}]")
        owner.page.fill(".decide textarea >> nth=0", "<i>it</i> is plainly better")
        owner.reload_when_changed(lambda: owner.page.click("text=Override >> nth=-1"))
        assert "A person preferred" in owner.page.inner_text("h1")
        assert "<i>it</i> is plainly better" in owner.page.inner_text(".override")
        owner.page.fill(".decide form:last-of-type textarea", "a slip")
        owner.reload_when_changed(lambda: owner.page.click("text=Take the override back"))
        assert "The principles preferred" in owner.page.inner_text("h1")
        owner.calm()


# -- reading by keyboard -----------------------------------------------------------------------------------------------


def test_every_page_is_reached_by_keyboard(tmp_path: Path, visits: Any) -> None:
    make_run(tmp_path / "one", n_train=30, n_held_out=10)
    with serving(tmp_path) as served:
        owner = visits(served)
        page = owner.page

        def press(*keys: str, to: str) -> None:
            for key in keys:
                page.keyboard.press(key)
            page.wait_for_url(f"{served.origin}{to}")

        press("j", "Enter", to="/runs/one")
        press("g", "d", to="/runs/one/decisions")
        press("n", to="/runs/one/decisions?page=2")
        press("p", to="/runs/one/decisions")
        page.keyboard.press("/")
        page.keyboard.type("rinse")
        press("Enter", to="/runs/one/decisions?q=rinse")
        page.select_option("select[name=verdict]", "a")
        page.wait_for_url(f"{served.origin}/runs/one/decisions?q=rinse&verdict=a")
        shared = page.url
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_url("**/trail/**")
        here = page.url
        page.keyboard.press("n")
        page.wait_for_url(lambda url: "/trail/" in url and url != here)
        for key, path in (("c", "constitution"), ("r", "review"), ("a", "agreement"), ("u", "audit")):
            press("g", key, to=f"/runs/one/{path}")
        press("g", "o", to="/runs/one")
        press("g", "h", to="/")
        # An address holds the whole state of a list.
        again = visits(served)
        again.page.goto(shared)
        assert again.page.input_value("input[name=q]") == "rinse"
        assert again.page.input_value("select[name=verdict]") == "a"
        owner.calm()


def test_a_live_page_moves_by_itself(tmp_path: Path, visits: Any) -> None:
    import fcntl

    folder = make_run(tmp_path / "one", n_train=8, n_held_out=8, done=False)
    with serving(tmp_path) as served, open(folder / "run.lock", "a+", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        owner = visits(served)
        owner.open("/runs/one")
        assert "8 of 8" in owner.page.inner_text(".walks")
        writer = schema.connect(folder / "store.sqlite")
        writer.execute("UPDATE walks SET state = 'failed', detail = 'the server left' WHERE phase = 'rl'")
        writer.close()
        owner.page.wait_for_selector("text=the server left")
        owner.calm()


# -- hostile texts -----------------------------------------------------------------------------------------------------


ONE_LINE = [p for p in PAYLOADS if p.isprintable()]
LENGTHS = sorted(PAYLOADS, key=len)
N_BEGINNINGS = (len(PAYLOADS) + 1) // 2
ALIVE = ", ".join(f"main {tag}" for tag in ("script", "iframe", "object", "embed", "base", "link", "meta", "style"))
ALIVE += ", [onload], [onerror], [onfocus]"
BARE = ("report", "text", "json")
"""What the browser lays out, or a file that brings its own style."""
HOSTILE, TWIN = "<img src=x onerror=alert(0)>", "\"><script>alert('twin')</script>"


def all_of_them(n: int) -> str:
    """All payloads. Two others come first for every n below N_BEGINNINGS: a list shows the beginning of a text."""
    first = (LENGTHS[n % N_BEGINNINGS], LENGTHS[-1 - n % N_BEGINNINGS])
    return " ".join((*first, *(p for p in PAYLOADS if p not in first)))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs in which everything that anybody wrote carries all payloads; their judges are asked other things."""
    folder = tmp_path_factory.mktemp("runs")
    quoted = " ".join(ONE_LINE).replace("'", "''")
    constitution = report_fixture.CONSTITUTION.replace("Does the answer do what was asked?", f"'{quoted}'")
    for title in ("Brief and finished", "Starts with the answer itself", "Answers what was asked"):
        constitution = constitution.replace(f"title: {title}", f"title: '{quoted} {title}'")
    for name, asked, judge in ((HOSTILE, f"'A or B: {quoted}'", "fair"), (TWIN, "A or B?", "always-a")):
        with pytest.MonkeyPatch.context() as patch:
            compared = "Which answer, A or B, does more directly what the person asked?"
            patch.setattr(report_fixture, "CONSTITUTION", constitution.replace(compared, asked))
            made = make_run(
                folder / name.replace("/", "|"),
                n_train=N_BEGINNINGS,
                n_held_out=8,
                judge=judge,  # type: ignore[arg-type]
                prompts=[f"{all_of_them(n)} {n}" for n in range(N_BEGINNINGS + 8)],
                rewrite=lambda text: f"{all_of_them(len(text))}\n{text}",
                config={"evaluate": {"samples": 1}},
                identity=" ".join(PAYLOADS),
            )
        _say_more(made)
    return folder


def _say_more(folder: Path) -> None:
    """Let people, failures, models and replies say payloads too."""
    with Desk(folder) as desk:
        desk.draw(estimate=2 * N_BEGINNINGS, value=0, author="<b>owner</b>", repeats=0.0)
        for n, end in enumerate(list(desk.run.ended("rl"))[:6]):
            author = f"<script>alert('author {n}')</script>"
            desk.override(end.comparison.id, "a", author=author, reason=" ".join(ONE_LINE))
        for reviewer, side in (("<img src=x onerror=alert('r')>", "left"), ("\"><script>alert('r')</script>", "tie")):
            while shown := desk.next(reviewer):
                desk.vote(reviewer, shown.item_id, side, reason=" ".join(ONE_LINE))
    writer = schema.connect(folder / "store.sqlite")
    whole = "\n".join(PAYLOADS)
    writer.execute("UPDATE walks SET state = 'failed', detail = ? WHERE phase = 'sl'", (whole,))
    writer.execute("INSERT INTO texts VALUES ('hostile', ?)", (whole,))
    request = {"model": whole, "kind": "score", "options": ["A", "B"], "messages": [["user", "hostile"]]}
    reply = json.dumps({"text": whole, "error": whole, "raw": {"body": whole}})
    writer.execute(
        "INSERT INTO calls VALUES ('k', 'score', ?, ?, ?, 'r', '{}', 0)", (whole, json.dumps(request), reply)
    )
    writer.close()


def test_there_are_at_least_60_payloads() -> None:
    assert len(set(PAYLOADS)) >= 60


def test_no_payload_runs_loads_or_breaches_the_policy_on_any_page(
    hostile: Path, visits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every payload that can be seen is legible, as text, on every page; those that cannot went the same way."""
    monkeypatch.setattr(agreement, "_MOST_DISPUTES", 1000)  # they differ on every prompt
    folder = hostile / HOSTILE
    with RunView(folder) as run:
        ends = list(run.ended("rl"))[:3]
        asked = [d for d in ledger.of_comparison(run.connection, ends[0].comparison.id) if getattr(d, "call_key", None)]
    base = f"/runs/{quote(folder.name, safe='')}"
    runs.cai("report", folder)
    me = "<svg onload=alert('me')>"
    with serving(hostile, reviewers=(me,)) as served:
        n_pages = served.get(f"/json{base}/decisions").json["n_pages"]
        a, b = (quote(run.name, safe="") for run in served.site.runs())
        pages = {
            "runs": ["/"],
            "overview": [base],
            "decisions": [f"{base}/decisions?page={n + 1}" for n in range(n_pages)],
            "trail": [f"{base}/trail/{end.comparison.id}" for end in ends],
            "decision": [f"{base}/decision/{asked[0].id}"],
            "constitution": [f"{base}/constitution"],
            "agreement": [f"{base}/agreement"],
            "audit": [f"{base}/audit"],
            "compare": [f"/compare?a={a}&b={b}"],
            "review": [f"{base}/review"],
            "text": [f"{base}/text/{end.arms[0].id}" for end in ends],
            "report": [f"{base}/report"],
            "problem": [f"/compare?b={b}&a={quote(' '.join(PAYLOADS))}"],
            "json": [f"/json{base}/trail/{ends[0].comparison.id}"],
        }
        assert {page.name for page in PAGES} < set(pages)
        one, other = served.site.runs()
        for counted in (one.reckoning, other.reckoning, one.summary, other.summary):
            counted(patience_s=60)
        while served.site.compared(one, other) is None:
            pass
        owner, unseen = visits(served), {}
        for kind, paths in pages.items():
            visit = visits(served, me) if kind == "review" else owner
            seen = ""
            for path in paths:
                assert visit.open(path).status == (404 if kind == "problem" else 200), path
                assert not visit.page.locator(ALIVE if kind in BARE else f"{ALIVE}, [style]").count(), path
                drawn = visit.page.locator("svg text, svg title, svg desc").all_text_contents()
                seen += " ".join((visit.page.inner_text("body"), *drawn, ""))
            visit.calm()
            told = [json.dumps(p)[1:-1] if kind == "json" else p for p in ONE_LINE]
            unseen[kind] = [p for p in told if " ".join(p.split()) not in " ".join(seen.split())]
        assert not any(unseen.values()), "these pages do not show these payloads, so they were not tested there"
        reviewer = visits(served, me)
        reviewer.open(f"{base}/review")
        for _ in range(3):
            reviewer.key("1")
            reviewer.page.keyboard.press("v")
            reviewer.page.wait_for_selector("#status:has-text('principles named')")
        reviewer.calm()


def test_the_policy_stops_what_would_get_through(lively: Path, visits: Any) -> None:
    """Were a text ever to become markup, the policy still stands; and what it stops is noticed."""
    with serving(lively) as served:
        owner = visits(served)
        ran = owner.page.evaluate(
            """() => {
              const script = document.createElement("script");
              script.textContent = "window.ran = 1; alert(1)";
              document.body.append(script);
              document.body.insertAdjacentHTML("beforeend", "<img src=//evil.test/x.png onerror='window.ran = 2'>");
              return fetch("http://evil.test/").then(() => 3, () => window.ran);
            }"""
        )
        assert ran is None
        assert not owner.dialogs
        with pytest.raises(AssertionError):
            owner.calm()


@pytest.mark.parametrize("width", [390, 1200])
def test_hostile_and_endless_texts_do_not_widen_a_page(width: int, hostile: Path, tmp_path: Path, visits: Any) -> None:
    long = make_run(
        tmp_path / ("W" * 120),
        n_train=8,
        n_held_out=8,
        prompts=["W" * 20_000 + str(i) for i in range(20)],
        rewrite=lambda text: "\u0645" * 9000 + "W" * 9000 + text,
    )
    for folder in (hostile / HOSTILE, long):
        root = folder.parent
        run = RunView(folder)
        trail = next(iter(run.ended(run.phases[0]))).comparison.id
        run.connection.close()
        base = f"/runs/{quote(folder.name, safe='')}"
        with serving(root) as served:
            owner = visits(served, viewport={"width": width, "height": 844})
            for path in ("", "/decisions", f"/trail/{trail}", "/constitution", "/review", "/agreement", "/audit"):
                owner.open(f"{base}{path}")
                over = owner.page.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert over <= 0, f"{path} is {over} px too wide"
            assert owner.open("/").status == 200
            assert owner.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


# -- pictures ----------------------------------------------------------------------------------------------------------


LOOKS = {
    "wide-light": {"viewport": {"width": 1200, "height": 860}, "color_scheme": "light"},
    "wide-dark": {"viewport": {"width": 1200, "height": 860}, "color_scheme": "dark"},
    "phone-light": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
    "phone-dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one of them reviewed by two people."""
    folder = tmp_path_factory.mktemp("runs")
    made = make_run(folder / "quickstart", n_train=40, n_held_out=20)
    make_run(folder / "another-judge", n_train=40, n_held_out=20, judge="always-a", done=False)
    desk = Desk(made)
    desk.draw(estimate=16, value=6, author="owner")
    for reviewer, sides_ in (("anna", ("left", "right")), ("ben", ("left", "left", "tie"))):
        n = 0
        while (shown := desk.next(reviewer)) is not None and n < 40:
            desk.vote(reviewer, shown.item_id, sides_[n % len(sides_)])
            n += 1
    desk.close()
    runs.cai("report", made)
    return folder


@pytest.mark.parametrize("look", LOOKS)
def test_pictures_of_every_page_are_kept(look: str, lively: Path, visits: Any) -> None:
    run = RunView(lively / "quickstart")
    end = list(run.ended("sl"))[3]
    run.connection.close()
    judged = next(d for d in end.decisions if getattr(d, "call_key", None))
    pages = {
        "runs": "/",
        "overview": "/runs/quickstart",
        "decisions": "/runs/quickstart/decisions",
        "decisions-filtered": "/runs/quickstart/decisions?only=swapped&sort=narrowest",
        "trail": f"/runs/quickstart/trail/{end.comparison.id}",
        "decision": f"/runs/quickstart/decision/{judged.id}",
        "constitution": "/runs/quickstart/constitution",
        "review": "/runs/quickstart/review",
        "review-nothing": "/runs/another-judge/review",
        "agreement": "/runs/quickstart/agreement",
        "audit": "/runs/another-judge/audit",
        "compare": "/compare?a=quickstart&b=another-judge",
        "not-here": "/runs/none",
        "report": "/runs/quickstart/report",
        "text": f"/runs/quickstart/text/{end.arms[0].id}",
    }
    assert {page.name for page in PAGES} < set(pages)
    with serving(lively) as served:
        owner = visits(served, **LOOKS[look])
        for run_ in served.site.runs():
            run_.reckoning(patience_s=60)
        for name, path in pages.items():
            owner.open(path)
            picture = owner.picture(f"{name}-{look}")
            assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000
        owner.open(pages["trail"])
        owner.page.keyboard.press("?")
        owner.picture(f"keys-{look}")
        owner.calm()
