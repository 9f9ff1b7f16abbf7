"""The report: the page says what the twin says, adds up, is honest about what is missing, and obeys no text in it."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cai.errors import UserError
from cai.records import STATES
from cai.report import collect, figures, headline, words, write_report
from cai.report.collect import read_curve, redacted
from cai.report.page import as_json, render, shown
from tests.report_fixture import make_run

HOSTILE = (
    "<script>alert(1)</script>",
    "</p></div></main><script>alert(2)</script>",
    "<img src=x onerror=alert(3)>",
    "<svg/onload=alert(4)>",
    '"><script>alert(5)</script>',
    "' onmouseover='alert(6)",
    '<iframe src="javascript:alert(7)"></iframe>',
    "<a href=javascript:alert(8)>click</a>",
    "{{ 7*7 }} {% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "<!-- --><style>*{display:none}</style>",
    "</style><script>alert(11)</script>",
    "</title><script>alert(12)</script>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(13)>",
    "&lt;script&gt;alert(14)&lt;/script&gt;",
    "<ScRiPt src=//evil.test/x.js></sCrIpT>",
    "<link rel=stylesheet href=//evil.test/x.css><base href=//evil.test/>",
    "<form action=//evil.test><input type=submit></form>",
    "\u202eevil\u202c \u2066isolated\u2069 \u200bzero\u200bwidth \ufeff \U000e0041",
    "\x1b[31mred\x1b[0m \x07 \x08 \x9b31m NUL\x00",
    "W" * 5000,
)
"""What a model, a file or a person might write to be obeyed by whoever shows it."""

ALLOWED_TAGS = frozenset(
    "html head meta title style body a header p h1 h2 h3 h4 ul li b i dl div dt dd nav main section article span table "
    "caption thead tbody tr th td svg line circle rect polyline text desc figure figcaption pre details summary footer "
    "code".split()
)
ALLOWED_ATTRIBUTES = frozenset(
    "lang charset http-equiv content name class href id aria-label aria-labelledby aria-hidden role tabindex scope "
    "colspan dir title viewbox preserveaspectratio x x1 x2 y y1 y2 cx cy r rx width height points text-anchor".split()
)
VOID = ("meta", "line", "circle", "rect", "polyline")


class Page(HTMLParser):
    """A page taken apart as a browser would."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None], str]] = []
        self.text: list[str] = []
        self.faults: list[str] = []
        self.feed(html)
        self.close()
        self.faults += [f"never closed: {tag}" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs), self.open[-1] if self.open else ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs), self.open[-1] if self.open else ""))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"closed out of order: {tag}")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    @property
    def said(self) -> str:
        return " ".join("".join(self.text).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _ in self.tags if name == tag]


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


WALK = [{"name": "walk", "samples": 2, "revisions": 1, "pairs": ["revision", "samples"], "train": "none"}]
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "weak": {"judge": "always-a"},
    "invalid": {"judge": "invalid"},
    "collapsed": {"after": "collapsed"},
    "same": {"after": "same"},
    "few": {"n_held_out": 4},
    "unfinished": {"arms": ("before",), "phases": ("sl",), "done": False},
    "no-training": {"config": {"phases": WALK}, "phases": ("walk",), "arms": ()},
    "no-evaluation": {"arms": (), "config": {"evaluate": {"samples": 0}}},
    "not-judged": {"config": {"evaluate": {"samples": 2, "judge": False}}, "likelihoods": False},
    "no-examples": {"config": {"evaluate": {"samples": 2, "examples": 0}}},
    "empty": {"arms": (), "phases": (), "done": False},
}


@pytest.fixture(scope="module", params=KINDS)
def any_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / request.param, **KINDS[request.param])


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture
def full(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "full"))


# -- every kind of run -----------------------------------------------------------------------------------------------


def test_every_run_has_a_page_that_is_whole_and_stands_alone(any_run: Path) -> None:
    page = page_of(any_run)
    assert page.faults == []
    assert {tag for tag, _, _ in page.tags} <= ALLOWED_TAGS
    assert {name for _, attributes, _ in page.tags for name in attributes} <= ALLOWED_ATTRIBUTES
    assert all((a["href"] or "").startswith("#") for a in page.all("a"))
    assert not re.search(r"url\(|@import", (any_run / "report.html").read_text(encoding="utf-8"))


def test_every_page_can_be_read_without_eyes(any_run: Path) -> None:
    page = page_of(any_run)
    assert page.all("html")[0]["lang"] == "en"
    assert [len(page.all(tag)) for tag in ("main", "header", "footer", "h1")] == [1, 1, 1, 1]
    parents = {tag: [parent for name, _, parent in page.tags if name == tag] for tag in ("caption", "title")}
    assert parents["caption"] == ["table"] * len(page.all("table"))
    assert all(a.get("scope") for a in page.all("th"))
    told = [a for a in page.all("svg") if a.get("role") == "img"]
    assert all(a.get("aria-hidden") or a.get("role") == "img" for a in page.all("svg"))
    assert parents["title"].count("svg") == len(told)
    assert all(a.get("aria-label") or a.get("aria-labelledby") for a in told)
    ids = [a["id"] for _, a, _ in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    targets = {word for _, a, _ in page.tags for word in (a.get("aria-labelledby") or "").split()}
    targets |= {(a["href"] or "")[1:] for a in page.all("a")}
    assert targets <= set(ids)


def test_the_twin_is_all_the_page_knows(any_run: Path) -> None:
    write_report(any_run)
    twin = json.loads((any_run / "report.json").read_text(encoding="ascii"))
    assert render(twin) == (any_run / "report.html").read_text(encoding="utf-8")
    fresh = collect(any_run)
    assert json.loads(as_json(fresh | {"written": None})) == twin | {"written": None}


def test_every_run_has_three_to_eight_plain_lines(any_run: Path) -> None:
    lines = headline(any_run)
    assert 3 <= len(lines) <= 8
    assert all(line and "\n" not in line for line in lines)


def test_the_accounting_adds_up(any_run: Path) -> None:
    data = collect(any_run)
    for counts in [data["accounting"], *(phase["accounting"] for phase in data["phases"])]:
        if counts:
            assert sum(counts[state] for state in STATES) == counts["comparisons"]
            assert sum(counts["filtered_by"].values()) == counts["filtered"]
    prompts = data["prompts"]
    parts = ("refused", "duplicates_folded", "leaks_dropped", "beyond_limits", "train", "held_out")
    assert sum(prompts[part] for part in parts) == prompts["read"]


# -- what the page says ----------------------------------------------------------------------------------------------


def test_the_first_sentence_is_the_change_with_its_interval(full: Path) -> None:
    rate = collect(full)["evaluation"]["checks"][0]
    sentence = headline(full)[0]
    assert sentence.startswith("On 30 held-out prompts, the share of answers that keep every programmatic principle ")
    assert " rose " in sentence
    assert f"from {rate['before']:.0%} to {rate['after']:.0%}" in sentence and "95% interval +" in sentence
    assert sentence in page_of(full).said


def test_warnings_come_first(tmp_path: Path) -> None:
    for kind, word in (("collapsed", "collapse"), ("weak", "picked answer A")):
        folder = make_run(tmp_path / kind, **KINDS[kind])
        lines, said = headline(folder), page_of(folder).said
        assert lines[0].startswith("warning: ") and word in lines[0]
        assert said.index("Read with care") < said.index("On 30 held-out prompts")


def test_a_change_that_is_not_clear_is_not_called_a_rise(tmp_path: Path) -> None:
    lines = headline(make_run(tmp_path / "same", **KINDS["same"]))
    assert "did not change clearly" in lines[0] and " rose " not in lines[0]
    few = headline(make_run(tmp_path / "few", **KINDS["few"]))
    assert "too few prompts for an interval" in few[0] and " rose " not in few[0]


def test_swap_consistency_stands_beside_the_win_rate(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "weak", **KINDS["weak"])
    line = next(line for line in headline(folder) if line.startswith("win rate"))
    assert "swap-consistency 0% (0% to 6%, 60 questions)" in line and "no decided comparison" in line


def test_unfinished_runs_say_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "unfinished", **KINDS["unfinished"])
    assert headline(folder)[0].startswith("This run is not finished.")
    assert "not finished" in page_of(folder).said


def test_a_run_that_stopped_before_its_store_has_a_report(full: Path) -> None:
    manifest = json.loads((full / "manifest.json").read_text(encoding="utf-8"))
    unbegun = {"done": None, "phases": {}, "policies": [], "sessions": [], "prompts": None}
    (full / "manifest.json").write_text(json.dumps(manifest | unbegun), encoding="utf-8")
    for path in full.glob("store.sqlite*"):
        path.unlink()
    assert headline(full)[0] == "This run is not finished. Nothing has been generated yet."
    assert "No prompts have been read yet." in page_of(full).said


def test_a_folder_without_a_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no manifest.json"):
        write_report(tmp_path)


def test_examples_are_drawn_and_not_picked(full: Path, tmp_path: Path) -> None:
    chosen = collect(full)["examples"]["items"]
    assert len(chosen) == 12 and chosen == collect(full)["examples"]["items"]
    assert [i["source_id"] for i in chosen] != sorted(i["source_id"] for i in chosen)
    other = make_run(tmp_path / "other", config={"run": {"dir": "runs/other", "seed": 4}})
    assert {i["prompt_id"] for i in collect(other)["examples"]["items"]} != {i["prompt_id"] for i in chosen}


def test_examples_carry_the_mark_of_every_check(full: Path) -> None:
    for item in collect(full)["examples"]["items"]:
        for side in item["sides"]:
            assert [mark["principle"] for mark in side["checks"]] == ["brief", "no-opener"]
            assert all(mark["passed"] == (mark["why"] is None) for mark in side["checks"])
            assert side["checks"][0]["passed"] == (side["words"] <= 30 and side["text"].endswith("."))


def test_a_run_without_a_last_policy_shows_its_comparisons(tmp_path: Path) -> None:
    told = collect(make_run(tmp_path / "unfinished", **KINDS["unfinished"]))["examples"]
    assert told["kind"] == "comparisons"
    assert {side["label"] for item in told["items"] for side in item["sides"]} == {"first answer", "revision"}


def test_the_command_names_everything_the_run_was_made_from(full: Path) -> None:
    command = collect(full)["reproduce"]["command"]
    assert command == (
        "cai run runs/full/config.yaml run.dir=runs/full-again constitution=runs/full/constitution.yaml "
        "templates=runs/full/prompts"
    )


# -- text is data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_changes_nothing_but_words(text: str, tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "run",
        n_train=3,
        n_held_out=3,
        phases=("sl",),
        likelihoods=False,
        prompts=[f"{text} {i}" for i in range(6)],
        rewrite=lambda said: f"{said} {text}",
    )
    page = page_of(folder)
    assert page.faults == []
    assert {tag for tag, _, _ in page.tags} <= ALLOWED_TAGS
    assert {name for _, attributes, _ in page.tags for name in attributes} <= ALLOWED_ATTRIBUTES
    assert (
        len(page.all("title")) - len([a for a in page.all("svg") if a.get("role")])
        == sum(parent == "head" for tag, _, parent in page.tags if tag == "title")
        == 1
    )
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ufeff]", html)
    if text.isascii() and text.isprintable() and len(text) < 2000:
        assert " ".join(text.split()) in page.said


def test_hostile_names_and_titles_are_words_too(full: Path) -> None:
    data = json.loads(as_json(collect(full)))
    evil = "<script>alert(1)</script>\u202e"
    data["run"]["name"] = data["constitution"]["name"] = data["models"]["judge"] = data["models"]["policy"] = evil
    data["constitution"]["principles"][0]["title"] = data["evaluation"]["checks"][1]["title"] = evil
    data["phases"][0]["name"] = data["sessions"][0]["timings"][0]["stage"] = evil
    data["reproduce"]["config"] = data["reproduce"]["command"] = evil
    page = Page(render(data))
    assert page.faults == [] and {tag for tag, _, _ in page.tags} <= ALLOWED_TAGS


@given(st.text())
def test_shown_text_hides_nothing_and_obeys_nothing(text: str) -> None:
    html = str(shown(text))
    page = Page(f"<p>{html}</p>")
    assert page.faults == [] and {tag for tag, _, _ in page.tags} <= {"p", "span"}
    assert len("".join(page.text)) >= len(text.replace("\r\n", "\n"))
    html.encode()


def test_invisible_signs_are_shown_by_name() -> None:
    assert "U+202E" in shown("\u202e") and "RIGHT-TO-LEFT OVERRIDE" in shown("\u202e")
    assert "ESC" in shown("\x1b[31m") and "NUL" in shown("\x00")
    assert "U+E0041" in shown("\U000e0041") and "U+DC80" in shown("\udc80")
    assert str(shown("a\nb\tc 👩\u200d🚀")) == "a\nb\tc 👩\u200d🚀"


def test_credentials_never_reach_the_report(full: Path) -> None:
    # A config with credentials is refused, so only what others have written can bring them in.
    manifest = json.loads((full / "manifest.json").read_text(encoding="utf-8"))
    manifest["models"]["judge"] = "served@unknown at http://ann:canary-77@judge.test:8000"
    (full / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    write_report(full)
    written = [(full / name).read_text(encoding="utf-8") for name in ("report.html", "report.json")]
    assert not any("canary-77" in text for text in written)
    assert "judge.test:8000" in written[0]
    assert redacted("see http://host/a@b") == "see http://host/a@b"


# -- curves, bars, words ---------------------------------------------------------------------------------------------


def test_a_torn_curve_is_read_up_to_its_tear(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_text('{"step": 2, "loss": 1.5}\nnot json\n{"step": 1, "loss": 9}\n{"step": 1, "loss": 2}\n[3]\n{"ste')
    assert read_curve(path) == [{"step": 1, "loss": 2}, {"step": 2, "loss": 1.5}]
    assert read_curve(tmp_path / "none.jsonl") == []


def test_a_long_curve_is_thinned_and_keeps_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_text("".join(f'{{"step": {i}, "loss": 1.0, "grad": NaN}}\n' for i in range(1, 5002)))
    points = read_curve(path)
    assert len(points) <= 402 and (points[0]["step"], points[-1]["step"]) == (1, 5001)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40))
def test_a_curve_stays_within_its_frame(values: list[float]) -> None:
    figure = figures.curve("loss", list(enumerate(values, 1)))
    assert figure is not None
    for line in (figure["line"], figure["smooth"] or "46,10"):
        for point in line.split():
            x, y = map(float, point.split(","))
            assert 45.9 <= x <= figures.WIDTH and 0 <= y <= figures.HEIGHT


def test_a_curve_is_told_in_words() -> None:
    figure = figures.curve("loss", [(1, 2.0), (2, 0.5), (3, 1.0)])
    assert figure is not None and figure["description"] == (
        "Loss from 2.00 at step 1 to 1.00 at step 3; lowest 0.50 at step 2, highest 2.00 at step 1"
    )
    assert figures.curves([{"step": 1, "loss": 1.0}]) == []


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
@example(-360287970.578125, 5.960464477539063e-08)
def test_ticks_are_few_and_span_the_values(low: float, spread: float) -> None:
    marks = figures.ticks(low, low + spread)
    assert 2 <= len(marks) <= 6
    slack = 1e-6 * max(1.0, abs(low), spread)
    assert marks[0] <= low + slack and marks[-1] >= low + spread - slack


def test_the_bar_is_full() -> None:
    counts = dict.fromkeys(STATES, 0) | {"kept": 3, "tied": 1, "comparisons": 4}
    figure = figures.bar(counts)
    assert [(p["state"], p["width"]) for p in figure["parts"]] == [("kept", 75.0), ("tied", 25.0)]
    assert figure["description"] == "of 4 comparisons: 3 kept, 1 tied"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (words.percent(0.126), "13%"),
        (words.percent(None), "–"),
        (words.points(-0.05), "−5"),
        (words.signed(-0.04, 1), "±0.0"),
        (words.signed(0.26, 1), "+0.3"),
        (words.number(1234567), "1,234,567"),
        (words.number(12.34), "12.3"),
        (words.number(-0.5), "−0.50"),
        (words.seconds(59.94), "59.9 s"),
        (words.seconds(61), "1 min 01 s"),
        (words.seconds(7260), "2 h 01 min"),
        (words.plural(1, "row"), "1 row"),
    ],
)
def test_numbers_are_written_as_people_write_them(told: str, expected: str) -> None:
    assert told == expected
