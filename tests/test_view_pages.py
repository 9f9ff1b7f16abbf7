"""The viewer's pages: they show what the twin says, filters equal a count by hand, and a live run is followed."""

from __future__ import annotations

import fcntl
import html
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from cai import canon
from cai.audit.summary import MOST_TOLD
from cai.errors import UserError
from cai.records import Judgment, Part, Revision
from cai.review import Desk
from cai.store import ledger, schema
from cai.trail import RunView
from cai.view import open_door, serve, words
from cai.view.index import LOW_MARGIN, PAGE, DecisionIndex, Filter
from tests import runs
from tests.report_fixture import make_run
from tests.view_fixture import Served, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "one", n_train=20, n_held_out=10)
    make_run(folder / "two & a half", n_train=9, n_held_out=8, judge="always-a", done=False)
    make_run(folder / "voted", n_train=16, n_held_out=2)
    vote_on(folder / "voted")
    make_run(folder / "broken", n_train=8, n_held_out=8, judge="invalid", phases=("sl",), arms=())
    return folder


def vote_on(folder: Path) -> None:
    """Two reviewers vote on what was drawn, and differ here and there."""
    desk = Desk(folder)
    desk.draw(estimate=12, value=4, author="ann", seed=5)
    for reviewer in ("ann", "ben"):
        for number in range(14):
            item = desk.next(reviewer)
            assert item is not None
            desk.vote(reviewer, item.item_id, "left" if number % 3 else "right")
    desk.close()


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder) as served:
        yield served


def words_of(page: str) -> str:
    """A page's text as a reader has it, white space folded."""
    body = re.sub(r"(?s)<(script|style|title|dialog).*?</\1>", " ", page)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


# -- pages and their twins -------------------------------------------------------------------------------------------


def of_runs(data: Any) -> Iterator[str]:
    for run in data["runs"]:
        yield run["name"]
        yield run["state"]
        if run["accounting"]:
            yield f"{run['accounting']['comparisons']} comparison"


def of_run(data: Any) -> Iterator[str]:
    yield data["name"]
    yield data["state"]
    yield data["constitution"]["id"]
    for walk in data["progress"]["walks"]:
        yield f"{walk['phase']}"
        yield f"{walk['done']} of {walk['due']}"
    yield f"{data['progress']['ledger']:,}"
    for state, n in data["accounting"].items():
        if n and state in words.MEANING:
            yield f"{state} {n}"


def of_decisions(data: Any) -> Iterator[str]:
    yield f"{data['total']:,} decisions"
    for d in data["decisions"]:
        yield str(d["seq"])
        yield d["asked"][:140]
        yield d["verdict_words"]


def of_trail(data: Any) -> Iterator[str]:
    yield data["id"]
    for side in data["sides"]:
        yield side["text"]
    for vote in data["votes"]:
        yield vote["title"]
        for decision in vote["decisions"]:
            yield decision["verdict_words"]


def of_decision(data: Any) -> Iterator[str]:
    yield data["id"]
    yield data["ledger"]["hash"]


def of_constitution(data: Any) -> Iterator[str]:
    yield data["id"]
    for p in data["principles"]:
        yield p["title"]
        yield p["line"]
        yield from p["texts"].values()
        for figures in p["figures"]:
            yield f"{figures['votes']} of {figures['due']}"


def of_review(data: Any) -> Iterator[str]:
    yield from (data["item"]["left"], data["item"]["right"], data["item"]["messages"][-1]["content"])
    yield f"{data['item']['done'] + 1} of {data['item']['total']}"


def percent(value: float, places: int = 1) -> str:
    return f"{100 * value:.{places}f}%"


def of_agreement(data: Any) -> Iterator[str]:
    report = data["report"]
    assert report["accuracy"] and report["people"] and report["judge_and_people"]
    yield percent(report["accuracy"]["value"], 0)
    yield f"{report['accuracy']['n']} looked at"
    yield f"{report['votes']['standing']:,}"
    for name in ("observed", "ac1", "alpha"):
        if found := report["people"][name]:
            yield percent(found["value"]) if name == "observed" else f"{found['value']:.2f}".replace("-", "\u2212")
    for name in ("kappa", "ac1", "alpha"):
        if found := report["judge_and_people"][name]:
            yield f"{found['value']:.2f}".replace("-", "\u2212")
    for label, row in report["judge_and_people"]["confusion"].items():
        yield " ".join([label, *map(str, row.values())])
    for p in data["progress"]:
        yield f"{p['done']} of {p['total']}"


def of_audit(data: Any) -> Iterator[str]:
    yield f"{data['n_ledger']:,} row"
    for count in data["counts"]:
        yield f"{count['title']} {count['n']:,}"
    for v in data["verdicts"]:
        yield f"{v['principle']} {v['order']}"
    summary = data["summary"]
    yield f"{summary['cost']['calls']:,}"
    yield f"{summary['low_margin_decisions']:,} decisions and {summary['low_margin']:,} label"
    position = summary["position"]
    yield f"{position['first_both_times']:,} picked the answer shown first both times"
    yield f"{position['second_both_times']:,} the one shown second, {position['same_arm']:,} the same answer"
    yield f"{position['test']}: p = {position['p_value']:.2g}"
    for effect in summary["effects"]:
        if effect["n"]:
            yield percent(effect["value"], 0)


def in_words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def of_compare(data: Any) -> Iterator[str]:
    found = data["found"]
    assert found["pairs"]["matched"]
    yield f"{found['pairs']['matched']} pair"
    for cause, n in found["causes"].items():
        yield f"{cause} ({n})"
    for row in found["config"]:
        yield f"{row['field']} {in_words(row['one'])} {in_words(row['other'])}"
    for flip in found["flips"]:
        yield flip["prompt"][:140]


PAGES: dict[str, tuple[str, Callable[[Any], Iterator[str]]]] = {
    "runs": ("/", of_runs),
    "run": ("/runs/one", of_run),
    "an odd name": ("/runs/two%20%26%20a%20half", of_run),
    "decisions": ("/runs/one/decisions", of_decisions),
    "filtered": ("/runs/one/decisions?verdict=a&sort=narrowest", of_decisions),
    "trail": ("/runs/one/trail/{comparison}", of_trail),
    "decision": ("/runs/one/decision/{id}", of_decision),
    "constitution": ("/runs/one/constitution", of_constitution),
    "review": ("/runs/voted/review", of_review),
    "agreement": ("/runs/voted/agreement", of_agreement),
    "audit": ("/runs/one/audit", of_audit),
    "compare": ("/compare?a=one&b=voted", of_compare),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_what_its_twin_says(name: str, served: Served) -> None:
    path, told = PAGES[name]
    row = served.get("/json/runs/one/decisions?kind=judge").json["decisions"][0]
    path = path.format(comparison=row["comparison"], id=row["id"])
    wait_until_counted(served, "one")
    while name in ("audit", "compare") and not any(
        served.get(f"/json{path}").json.get(k) for k in ("summary", "found")
    ):
        pass  # they are counted in the background
    page, twin = served.get(path), served.get(f"/json{path}")
    assert (page.status, twin.status) == (200, 200), page.text
    shown = words_of(page.text)
    missing = [text for text in told(twin.json) if " ".join(text.split()) not in shown]
    assert not missing
    assert f'href="/json{html.escape(path)}"' in page.text or name == "runs"


def wait_until_counted(served: Served, run: str) -> None:
    found = served.site.run(run)
    assert found is not None
    while found.reckoning(patience_s=60) is None:
        pass


def test_of_many_recurring_texts_the_audit_page_shows_a_few_and_says_so(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = served.site.run("one")
    assert run is not None
    while (found := run.summary(patience_s=60)) is None:
        pass
    winners = [{"text": f"text number {n}.", "n": 3, "prompts": 3} for n in range(9)]
    many = found | {"texts": found["texts"] | {"recurring_answers_that_always_win": winners}}
    monkeypatch.setattr(run, "summary", lambda: many)
    shown = words_of(served.get("/runs/one/audit").text)
    assert [winner["text"] in shown for winner in winners] == [True] * MOST_TOLD + [False] * (9 - MOST_TOLD)
    assert f"of which 9 always win; the first {MOST_TOLD}" in shown
    told = served.get("/json/runs/one/audit").json["summary"]["texts"]
    assert told["recurring_answers_that_always_win"] == winners


def test_a_twin_is_ascii(served: Served) -> None:
    for path in ("/json/", "/json/runs/one", "/json/runs/one/constitution"):
        assert served.get(path).text.isascii()


@pytest.mark.parametrize(
    "path",
    [
        "/runs/none",
        "/runs/one/trail/b2:" + "0" * 40,
        "/runs/one/trail/x",
        "/runs/one/decision/x",
        "/nothing",
        "/runs/one/decisions?verdict=best",
        "/runs/one/decisions?page=0",
        "/runs/one/decisions?page=-1",
        "/runs/one/decisions?page=1e9",
        "/runs/one/decisions?page=%D9%A1",
        "/runs/one/decisions?sort=seq;drop",
        "/runs/one/text/x",
        "/runs/one/decisions?ended=gone",
        "/runs/one/decisions/",
    ],
)
def test_what_is_not_there_says_so_in_one_sentence(path: str, served: Served) -> None:
    page, twin = served.get(path), served.get(f"/json{path}")
    assert page.status == twin.status == 404
    if not path.startswith(("/nothing", "/runs/one/text")) and not path.endswith("/"):
        assert " ".join(twin.json["error"].split()) in words_of(page.text)


def test_a_decisions_address_leads_to_its_comparison(served: Served) -> None:
    for kind in ("judge", "code"):
        row = served.get(f"/json/runs/one/decisions?kind={kind}").json["decisions"][0]
        by_decision = served.get(f"/json/runs/one/trail/{row['id']}").json
        assert by_decision["id"] == row["comparison"]
        assert f'id="d{row["seq"]}"' in served.get(f"/runs/one/trail/{row['id']}").text


def test_the_trail_agrees_with_settle(served: Served, folder: Path) -> None:
    run = RunView(folder / "one")
    for end in run.ended("rl"):
        data = served.get(f"/json/runs/one/trail/{end.comparison.id}").json
        assert (data["settled"]["label"], data["settled"]["p_a"]) == (end.settled.label, end.settled.p_a)
        assert [v["p_a"] for v in data["votes"]] == [v.p_a for v in end.settled.votes]
        assert [s["text"] for s in data["sides"]] == [a.text for a in end.arms]
    run.connection.close()


def test_neighbours_lead_through_a_phase_and_back(served: Served, folder: Path) -> None:
    run = RunView(folder / "one")
    wanted = [end.comparison.id for end in run.ended("rl")]
    run.connection.close()
    met, here = [], f"/runs/one/trail/{wanted[0]}"
    while here:
        data = served.get(f"/json{here}").json
        met.append(data["id"])
        assert data["near"]["previous"] == (f"/runs/one/trail/{met[-2]}" if len(met) > 1 else None)
        here = data["near"]["next"]
    assert met == wanted


# -- filters -----------------------------------------------------------------------------------------------------------


def by_hand(folder: Path) -> list[dict[str, Any]]:
    """Every judgment with what the filters look at, read without the index."""
    run = RunView(folder)
    phases = [(p, "train") for p in run.phases] + [("evaluate", "held_out")]
    rows = []
    for phase, side in phases:
        for end in run.ended(phase, side=side):
            texts = [*(m.content for m in end.prompt.messages), *(a.text for a in end.arms)]
            verdicts: dict[str, set[str]] = {}
            for d in end.decisions:
                verdicts.setdefault(d.question_id, set()).add(d.verdict)
            for d in end.decisions:
                assert isinstance(d, Judgment)
                question = run.questions[d.question_id]
                rows.append(
                    {
                        "id": d.id,
                        "phase": phase,
                        "principle": question.principle_id,
                        "verdict": d.verdict,
                        "order": d.order,
                        "kind": "code" if question.mode == "check" else "judge",
                        "p_a": d.p_a,
                        "source": end.comparison.source,
                        "ended": end.admission.state,
                        "text": "\n".join(texts).casefold(),
                        "swapped": {"a", "b"} <= verdicts[d.question_id] and d.verdict in "ab",
                    }
                )
    run.connection.close()
    return rows


FILTERS: dict[str, tuple[dict[str, str], Callable[[dict[str, Any]], bool]]] = {
    "all": ({}, lambda d: True),
    "phase": ({"phase": "rl"}, lambda d: d["phase"] == "rl"),
    "principle": ({"principle": "to-the-point"}, lambda d: d["principle"] == "to-the-point"),
    "verdict": ({"verdict": "b"}, lambda d: d["verdict"] == "b"),
    "order": ({"order": "ba"}, lambda d: d["order"] == "ba"),
    "source": ({"source": "revision"}, lambda d: d["source"] == "revision"),
    "by code": ({"kind": "code"}, lambda d: d["kind"] == "code"),
    "by the judge": ({"kind": "judge"}, lambda d: d["kind"] == "judge"),
    "by a person": ({"kind": "person"}, lambda d: False),
    "narrow": ({"only": "narrow"}, lambda d: d["p_a"] is not None and abs(d["p_a"] - 0.5) < LOW_MARGIN),
    "swapped": ({"only": "swapped"}, lambda d: d["swapped"]),
    "unusable": ({"only": "unusable"}, lambda d: d["p_a"] is None),
    "ended": ({"ended": "kept"}, lambda d: d["ended"] == "kept"),
    "words": ({"q": "Rinse It first"}, lambda d: "rinse it first" in d["text"]),
    "an id": ({"q": "b2:0"}, lambda d: False),
    "quotes": ({"q": "it doesn't stick"}, lambda d: "it doesn't stick" in d["text"]),
    "per cent": ({"q": "%"}, lambda d: "%" in d["text"]),
    "several": (
        {"phase": "rl", "verdict": "a", "kind": "judge", "q": "winter"},
        lambda d: d["phase"] == "rl" and d["verdict"] == "a" and d["kind"] == "judge" and "winter" in d["text"],
    ),
}


@pytest.mark.parametrize("run", ["one", "two & a half", "broken"])
@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_finds_what_a_count_by_hand_finds(name: str, run: str, served: Served, folder: Path) -> None:
    query, holds = FILTERS[name]
    wait_until_counted(served, run)
    rows = by_hand(folder / run)
    known = {column: {row[column] for row in rows} for column in ("phase", "principle", "verdict", "order", "source")}
    if any(name in known and value not in known[name] for name, value in query.items()):
        pytest.skip("this run knows no such value, and an unknown value is refused")
    found = served.get(f"/json/runs/{quote(run)}/decisions?{urlencode(query)}").json
    wanted = {row["id"] for row in rows if holds(row)}
    if name == "an id":
        assert all(canon.ID_PREFIX in d["id"] for d in found["decisions"])
        return
    assert found["total"] == len(wanted)
    assert {d["id"] for d in found["decisions"]} <= wanted


@pytest.mark.parametrize("sort", ["made", "newest", "narrowest", "surest"])
def test_pages_show_every_decision_once(sort: str, served: Served) -> None:
    first = served.get(f"/json/runs/one/decisions?sort={sort}").json
    met = []
    for page in range(1, first["n_pages"] + 1):
        met += [d["seq"] for d in served.get(f"/json/runs/one/decisions?sort={sort}&page={page}").json["decisions"]]
    assert len(met) == first["total"] == len(set(met)) > 2 * PAGE


def test_a_search_by_id_finds_comparison_prompt_and_decision(served: Served) -> None:
    row = served.get("/json/runs/one/decisions?kind=judge").json["decisions"][3]
    prompt = served.get(f"/json/runs/one/trail/{row['id']}").json["prompt"]["id"]
    for id_ in (row["id"], row["comparison"], prompt):
        found = served.get(f"/json/runs/one/decisions?q={id_}").json["decisions"]
        assert row["id"] in {d["id"] for d in found}


# -- a run that grows --------------------------------------------------------------------------------------------------


def test_the_index_follows_a_growing_ledger(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "grows", n_train=8, n_held_out=8)
    run, index = RunView(folder), DecisionIndex(folder)
    before = index.follow(run)
    of_one = next(iter(run.ended("rl")))
    asked = [d for d in of_one.decisions if isinstance(d, Judgment) and d.call_key]
    fresh = asked[0].model_copy(update={"p_a": 0.5, "verdict": "tie", "reply_id": "later"})
    writer = schema.connect(folder / "store.sqlite")
    ledger.append_now(writer, [fresh])
    writer.close()
    assert index.follow(run) == before + 1
    total, rows = index.page(Filter(verdict="tie", sort="newest"))
    assert rows[0]["id"] == fresh.id
    index.close()
    run.connection.close()


def test_what_a_changed_run_sets_aside_is_shown_as_set_aside(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "changed", n_train=8, n_held_out=8)
    run, index = RunView(folder), DecisionIndex(folder)
    index.follow(run)
    n = index.page(Filter(phase="rl"))[0]
    prompt_id = next(iter(run.ended("rl"))).prompt.id
    writer = schema.connect(folder / "store.sqlite")
    writer.execute(
        "UPDATE records SET phase = phase || ' (superseded)' WHERE phase = 'rl' AND prompt_id = ?", (prompt_id,)
    )
    writer.close()
    index.follow(run)
    aside = index.page(Filter(phase="rl (superseded)"))[0]
    assert aside > 0 and index.page(Filter(phase="rl"))[0] == n - aside
    index.close()
    run.connection.close()


def test_a_run_at_work_is_called_so_and_its_lock_is_left_alone(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "live", n_train=8, n_held_out=8, done=False)
    with serving(tmp_path) as served, open(folder / "run.lock", "a+", encoding="utf-8") as lock:
        assert served.get("/json/runs/live").json["state"] == "stopped"
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert served.get("/json/runs/live").json["state"] == "at work"
        page = served.get("/runs/live")
        assert 'data-live="2"' in page.text and "at work" in words_of(page.text)
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert served.get("/json/runs/live").json["state"] == "stopped"


def test_rates_are_those_of_the_last_minute_of_work(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "rests", n_train=6, n_held_out=2, arms=("before",), done=False)
    writer = schema.connect(folder / "store.sqlite")
    for at in (900, 989, 1000, 1010, 1020, 1030, 1040, 1050):
        reply = json.dumps({"text": "x", "n_prompt": 100, "n_completion": 30})
        kept = (f"k{at}", "score" if at < 1030 else "generate", reply, at)
        writer.execute("INSERT INTO calls VALUES (?, ?, 'm', '{}', ?, 'r', '{}', ?)", kept)
    writer.close()
    with serving(tmp_path) as served:
        told = served.get("/json/runs/rests").json["rates"]
        assert told == {
            "window_s": 50.0, "calls_per_s": 6 / 50, "written_tokens_per_s": 6 * 30 / 50, "read_tokens_per_s": 12.0,
            "by_kind": {"generate": 3, "score": 3},
        }  # fmt: skip
        assert "in the last 50 s of work, 3.60 tokens written a second" in words_of(served.get("/runs/rests").text)


def test_every_reading_of_a_judgment_is_on_its_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "several", n_train=8, n_held_out=8)
    run = RunView(folder)
    asked = next(d for d in next(iter(run.ended("rl"))).decisions if isinstance(d, Judgment) and d.call_key)
    run.connection.close()
    writer = schema.connect(folder / "store.sqlite")
    parts = []
    for n, value in enumerate((0.7, 0.3, None), 1):
        request = {"model": f"judge-{n}", "kind": "score", "options": ["A", "B"], "messages": [["user", f"t{n}"]]}
        writer.execute("INSERT INTO texts VALUES (?, ?)", (f"t{n}", f"<i>question</i> {n}"))
        reply = json.dumps({"logprobs": {"A": -1.0, "B": -float(n)}})
        kept = (f"k{n}", json.dumps(request), reply)
        writer.execute("INSERT INTO calls VALUES (?, 'score', 'm', ?, ?, 'r', '{}', 0)", kept)
        reason = None if value else "outside_options"
        parts.append(Part(name=f"{n} logprob:judge-{n}", call_key=f"k{n}", reply_id="r", value=value, reason=reason))
    made = asked.model_copy(update={"parts": tuple(p.model_dump() for p in parts), "call_key": "k1", "reply_id": "x"})
    ledger.append_now(writer, [made])
    writer.close()
    with serving(tmp_path) as served:
        page, twin = (served.get(f"{start}/runs/several/decision/{made.id}") for start in ("", "/json"))
        asked_ = [p["call"]["messages"][0]["content"] for p in twin.json["parts"]]
        assert asked_ == [f"<i>question</i> {n}" for n in (1, 2, 3)]
        shown = words_of(page.text)
        for n, value in ((1, "0.7000"), (2, "0.3000"), (3, "not read outside_options")):
            assert f"{n} logprob:judge-{n} {value}" in shown and f"<i>question</i> {n}" in shown
        assert "&lt;i&gt;question" in page.text and "Code decided" not in shown


def test_failures_are_grouped_by_reason(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "failed", n_train=8, n_held_out=8, done=False)
    writer = schema.connect(folder / "store.sqlite")
    ids = [row[0] for row in writer.execute("SELECT prompt_id FROM walks WHERE phase = 'rl'")]
    for i, id_ in enumerate(ids[:3]):
        reason = "too long: 9,000 tokens" if i else "<b>refused</b>"
        writer.execute(
            "UPDATE walks SET state = 'failed', detail = ? WHERE phase = 'rl' AND prompt_id = ?", (reason, id_)
        )
    writer.close()
    with serving(tmp_path) as served:
        progress = served.get("/json/runs/failed").json["progress"]
        assert progress["n_failed"] == 3
        assert progress["failures"] == [
            {"reason": "too long: 9,000 tokens", "n": 2},
            {"reason": "<b>refused</b>", "n": 1},
        ]
        assert "&lt;b&gt;refused" in served.get("/runs/failed").text


def test_a_run_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    make_run(tmp_path / "good", n_train=8, n_held_out=8)
    bad = make_run(tmp_path / "bad", n_train=8, n_held_out=8)
    (bad / "store.sqlite").write_bytes(b"not a database" * 500)
    (tmp_path / "worse").mkdir()
    (tmp_path / "worse" / "manifest.json").write_text("{", encoding="utf-8")
    with serving(tmp_path) as served:
        rows = {row["name"]: row for row in served.get("/json/").json["runs"]}
        assert rows["good"]["problem"] is None and rows["worse"]["problem"]
        assert served.get("/").status == 200
        answer = served.get("/json/runs/bad/decisions")
        assert answer.status == 409 and "not a readable store" in answer.json["error"]


def test_a_run_that_is_removed_meanwhile_is_not_here(tmp_path: Path) -> None:
    for name in ("stays", "goes"):
        make_run(tmp_path / name, n_train=6, n_held_out=2)
    with serving(tmp_path) as served:
        assert served.get("/runs/goes/decisions").status == 200
        shutil.rmtree(tmp_path / "goes")
        for path in ("", "/decisions", "/audit", "/review"):
            assert served.get(f"/runs/goes{path}").status == 404
        assert served.get("/").status == served.get("/runs/stays").status == 200


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_url_that_lets_in(tmp_path: Path) -> None:
    make_run(tmp_path / "one", n_train=8, n_held_out=8)
    command = [sys.executable, "-m", "cai", "view", str(tmp_path), "--port", "0", "--as", "ann", "--reviewer", "ben"]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            while said.count("{") > said.count("}"):
                said += process.stdout.readline()
            urls = json.loads(said)["urls"]
            assert set(urls) == {"ann", "ben"}
            keeps = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(), urllib.request.ProxyHandler({}))
            with keeps.open(urls["ann"], timeout=60) as page:
                assert "Runs" in words_of(page.read().decode())
        finally:
            process.terminate()


def test_bad_input_is_one_message_and_exit_2(tmp_path: Path) -> None:
    make_run(tmp_path / "one", n_train=8, n_held_out=8)
    for arguments in (
        ["view", tmp_path / "none", "--port", "0"],
        ["view", tmp_path / "one" / "prompts", "--port", "0"],
        ["view", tmp_path, "--host", "0.0.0.0", "--port", "0"],
        ["view", tmp_path, "--as", "x", "--reviewer", "x", "--port", "0"],
        ["view", tmp_path, "--tls-cert", "x", "--port", "0"],
        ["view", tmp_path, "--tls-cert", "x", "--tls-key", "y", "--port", "0"],
        ["view", tmp_path, "--as", " ", "--port", "0"],
        ["view", tmp_path, "--port", "99999"],
    ):
        done = runs.cai(*arguments, check=2)
        assert done.stderr.startswith("cai: ") and "Traceback" not in done.stderr


def test_a_door_that_leads_to_no_run_is_closed(tmp_path: Path) -> None:
    opened = open_door("127.0.0.1", 0, owner="ann")
    with pytest.raises(UserError):
        serve(tmp_path / "none", opened)
    assert opened.listening.fileno() == -1


def test_every_critique_behind_a_revision_is_on_the_trail(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=3)
    phases = [{"name": "walk", "samples": 1, "revisions": 2, "pairs": ["revision"]}]
    folder = Path(runs.run_json(runs.write_config(tmp_path, runs.config(tmp_path, phases=phases)))["run"])
    with RunView(folder) as run:
        chains = {}
        for end in run.ended("walk"):
            answer, texts = end.arms[1], []
            while isinstance(answer, Revision):
                critique = run.record(answer.critique_id)
                texts.append(critique.text)
                answer = run.record(critique.answer_id)
            chains[end.comparison.id] = texts
    pair = max(chains, key=lambda id_: len(chains[id_]))
    with serving(tmp_path / "runs") as served:
        told = served.get(f"/json/runs/run/trail/{pair}").json["critiques"]
        shown = words_of(served.get(f"/runs/run/trail/{pair}").text)
    assert [c["text"] for c in told] == chains[pair] and len(told) == 2
    assert all(" ".join(c["text"].split()) in shown for c in told)
