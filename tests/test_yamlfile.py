from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cai import yamlfile
from cai.errors import UserError
from cai.yamlfile import Finding, Loaded, ProblemsError, scalars, tree


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Engine(Part):
    kind: Literal["vllm", "scripted"] = "vllm"
    """What serves the model."""
    args: tuple[str, ...] = ()
    retries: Annotated[int, Field(ge=0, le=9)] = 3
    """How often a request is tried again. More is slower."""
    rate: float = 0.5
    fast: bool = True
    clamp: tuple[float, float] = (0.4, 0.6)
    limit: int | Literal["all"] | None = None


class Phase(Part):
    name: str
    """Names the phase."""
    samples: int = 1
    path: str | None = None
    dataset: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Phase:
        if self.path and self.dataset:
            raise ValueError("a phase takes 'path' or 'dataset', not both")
        return self


class Config(Part):
    title: str
    engine: Engine = Engine()
    phases: tuple[Phase, ...] = ()
    labels: dict[str, int] = {}
    count: int | None = None

    @classmethod
    def findings(cls, data: dict[str, Any]) -> list[Finding]:
        if data.get("count") == 13:
            return [Finding(("count",), "found 13, expected a lucky number", "write 12")]
        return []


def read(text: str | bytes, *overrides: str) -> Loaded[Config]:
    return yamlfile.read(text, Config, source_name="c.yaml", overrides=overrides)


def problems(text: str | bytes, *overrides: str) -> list[str]:
    with pytest.raises(ProblemsError) as caught:
        read(text, *overrides)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture(params=["libyaml", "python"])
def each_parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML's two parsers must tell the same story."""
    loader = yaml.CSafeLoader if request.param == "libyaml" else yaml.SafeLoader
    monkeypatch.setattr(tree, "LOADER", loader)


# -- scalars ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("true", True), ("false", False), ("0", 0), ("-12", -12), ("+7", 7),
        ("0x1F", 31), ("1.5", 1.5), ("1e-5", 1e-5), (".5", 0.5), ("5.", 5.0), ("-1.5E+3", -1500.0), ("a", "a"),
        ("no.", "no."), ("yes, please", "yes, please"), ("1.2.3", "1.2.3"), ("10 words", "10 words"), ("nan", "nan"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"), ("localhost:8000", "localhost:8000"), ("-", "-"),
        ("e5", "e5"), ("0x", "0x"), ("2024-01-31 is a day", "2024-01-31 is a day"), ("truE", "truE"), ("é", "é"),
        ("٣", "٣"),
    ],
)  # fmt: skip
def test_unquoted_values_follow_yaml_1_2(text: str, value: Any) -> None:
    found = scalars.resolve(text)
    assert found == value and type(found) is type(value)


TRAPS = """yes Yes YES no No NO on On ON off Off OFF y Y n N True TRUE False FALSE Null NULL 012 -017 08 00 0o17 0b101
1_000 1_0.5 -0x1f 0x_ff 12:30 12:30:45 -1:30 16:9 2024-01-31 2024-1-1T10:00:00Z .inf -.Inf .nan .NaN = << 1e999
1234567890123456789""".split()


@pytest.mark.parametrize("text", TRAPS)
def test_values_that_two_readers_take_differently_are_traps(text: str) -> None:
    assert isinstance(scalars.resolve(text), scalars.Trap)


@given(st.text() | st.from_regex(r"[-+0-9._xobeE:TZ ]{0,100}"))
def test_every_scalar_has_a_meaning_or_is_a_trap(text: str) -> None:
    found = scalars.resolve(text)
    assert found is None or isinstance(found, (bool, int, float, str, scalars.Trap))
    assert not isinstance(found, float) or math.isfinite(found)


@given(st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none())
def test_plain_values_survive(value: Any) -> None:
    written = "null" if value is None else str(value).lower()
    assert scalars.resolve(written) == value


@pytest.mark.parametrize("text", TRAPS)
def test_quoted_traps_are_text(text: str) -> None:
    assert read(f"title: '{text}'").value.title == text
    assert read(f'title: "{text}"').value.title == text
    assert read(f"title: |-\n  {text}").value.title == text


@pytest.mark.parametrize("text", TRAPS)
def test_traps_are_told_where_text_is_expected_and_where_not(text: str) -> None:
    for key in ("title: ", "title: t\ncount: ", "title: t\nengine:\n  fast: "):
        (problem,) = problems(key + text)
        line, col = key.count("\n") + 1, len(key) - key.rfind("\n")
        assert problem.startswith(f"c.yaml:{line}:{col}: found '{text}'")
        assert "; " in problem


# -- what the file cannot say ----------------------------------------------------------------------------------------

WRONG = {
    "unknown key": ("title: t\n§enginee: {}", "expected one of count, engine, labels, phases, title", "mean 'engine'?"),
    "unknown key that lives elsewhere": ("title: t\n§retries: 3", "unknown key 'retries'", "'engine.retries'"),
    "unknown key inside": ("title: t\nengine: {§kinds: vllm}", "in 'engine'", "did you mean 'kind'?"),
    "unknown key near nothing": ("title: t\n§zzz: 3", "unknown key 'zzz'", "use a known key"),
    "key twice": ("title: t\n§title: u", "a second time, first in line 1", "keep one"),
    "key twice inside": ("title: t\nengine: {fast: true, §fast: true}", "'fast' a second time", "keep one"),
    "missing key": ("§count: 3", "no key 'title'", "add 'title: ...'"),
    "missing key in a list": ("title: t\nphases:\n  - §samples: 2", "'name' in 'phases.0'", "names the phase"),
    "named item": ("title: t\nphases: [{name: sft, samples: §a}]", "(name 'sft')", "a whole number"),
    "choice": ("title: t\nengine: {kind: §vlm}", "'vllm' or 'scripted'", "did you mean 'vllm'?"),
    "choice of another kind": ("title: t\nengine: {kind: §3}", "the number 3", "'vllm' or 'scripted'"),
    "union": ("title: t\nengine: {limit: §some}", "a whole number or 'all'"),
    "too large": ("title: t\nengine: {retries: §10}", "at most 9", "how often a request is tried again"),
    "too small": ("title: t\nengine: {retries: §-1}", "at least 0"),
    "number in quotes": ("title: t\nengine: {retries: §'3'}", "the text '3'", "without quotes: 3"),
    "fraction": ("title: t\nengine: {retries: §3.0}", "expected a whole number", "write 3"),
    "boolean for a number": ("title: t\nengine: {retries: §true}", "the boolean true", "a whole number"),
    "number for a boolean": ("title: t\nengine: {fast: §1}", "the number 1", "true or false"),
    "text for a boolean": ("title: t\nengine: {fast: §ja}", "the text 'ja'", "write true or false"),
    "yes for a boolean": ("title: t\nengine: {fast: §yes}", "YAML 1.1 reads as the boolean true", "write true"),
    "text for a list": ("title: t\nengine: {args: §--foo}", "expected a list", "['--foo']"),
    "list too short": ("title: t\nengine: {clamp: §[0.1]}", "a list of 1", "at least 2"),
    "number in a list of texts": ("title: t\nengine: {args: [--n, §3]}", "'engine.args.1'", "if it is text: '3'"),
    "text for a mapping": ("title: t\nengine: §vllm", "expected a mapping", "known keys: args"),
    "mapping for text": ("title: §{a: b}", "a mapping of 1 keys", "put it in quotes"),
    "null": ("title: §null", "found null", "expected text"),
    "nothing": ("§title:", "nothing after this key 'title'", "'null' for none"),
    "nothing in a list": ("title: t\nengine:\n  args:\n    - a\n    -§", "nothing after this list item", "write one"),
    "flow without colon": ("title: t\nlabels: {§a}", "nothing after this key 'a'", "write one"),
    "key that is a boolean": ("title: t\nlabels: {§no: 3}", "the boolean false", "put the key in quotes"),
    "key that is a number": ("title: t\nlabels: {§3: 3}", "is no text", "put the key in quotes"),
    "key that is a list": ("title: t\nlabels:\n  ? §[a]\n  : 3", "a list as a key", "in quotes"),
    "a validator's word": ("title: t\nphases:\n  - §name: x\n    path: a\n    dataset: b", "'path' or 'dataset'"),
    "a finding": ("title: t\ncount: §13", "a lucky number (in 'count')", "write 12"),
    "anchor": ("title: §&x t", "the anchor '&x'", "delete it"),
    "alias": ("title: §*x", "the alias '*x'", "write the value out"),
    "merge key": ("title: t\nengine:\n  §<<: {fast: true}", "the merge key", "write the merged keys out"),
    "tag": ("title: §!!python/name:os.system x", "'!!python/name:os.system'", "delete the tag"),
    "harmless tag": ("title: §!!str 3", "'!!str'", "delete the tag"),
    "local tag": ("title: §!x 3", "the tag '!x'", "quote it"),
    "tagged mapping": ("title: t\nengine: §!!map {x: 1}", "'!!map'", "delete the tag"),
    "root is a list": ("§- a\n- b", "a list of 2", "begin with 'title: '"),
    "root is a text": ("§title:t", "the text 'title:t'", "expected a mapping"),
    "empty": ("§", "an empty file", "begin with 'title: '"),
    "only a comment": ("§# nothing\n", "an empty file", "begin with 'title: '"),
    "only a mark": ("§---\n", "an empty file", "begin with 'title: '"),
    "second document": ("title: t\n§---\ntitle: u", "a second document", "'---'"),
    "directive": ("§%YAML 1.2\n---\ntitle: t", "a % directive", "delete the line"),
    "depth": ("title: " + "[" * 49 + "§[" + "]" * 50, "more than 50 levels", "unclosed"),
    "after an emoji": ("title: t\nlabels: {'😊é': 1, b: §x}", "the text 'x'"),
    "after windows line ends": ("title: t\r\nengine:\r\n  fast: §yes\r\n", "the boolean true"),
    "half a character": ("title: 'a§\ud800'", "U+D800", "delete it"),
    "bell": ("title: 'a§\x07'", "U+0007", "delete it"),
    "next line": ("title: 'a§\x85'", "U+0085", "delete it"),
    "byte order mark inside": ("title: 'a§\ufeff'", "U+FEFF", "delete it"),
}


def marked(text: str) -> tuple[str, str]:
    """Return the text without its mark, and `line:col` of the mark."""
    before, after = text.split("§")
    lines = before.replace("\r\n", "\n").split("\n")
    return before + after, f"{len(lines)}:{len(lines[-1]) + 1}"


@pytest.mark.usefixtures("each_parser")
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_with_its_place(name: str) -> None:
    text, place = marked(WRONG[name][0])
    found = problems(text)
    assert len(found) == 1, found
    assert found[0].startswith(f"c.yaml:{place}: ")
    for words in WRONG[name][1:]:
        assert words in found[0]


SYNTAX = {
    "colon in text": ("title: a§: b", "': ' inside unquoted text", "put the text in quotes"),
    "indented too far": ("title: t\n  count§: 3", "indented too far", "line the key up"),
    "tab": ("title: t\nengine:\n§\tfast: true", "a tab", "spaces"),
    "unclosed double quote": ('title: §"t\ncount: 3', "never closed", "close it"),
    "unclosed single quote": ("title: §'t\ncount: 3", "never closed", "close it"),
    "quote inside quotes": ("title: 'it'§s'", "neither 'key: value'", "in quotes"),
    "text after quotes": ('title: "t" §u', "neither 'key: value'", "in quotes"),
    "unclosed list": ("title: t\nengine: {args: §[a, b", "'[' list", "']' at its end"),
    "unclosed mapping": ("title: t\nengine: §{args: a", "'{' mapping", "'}' at its end"),
    "closing bracket alone": ("title: §]", "no value here", "in quotes"),
    "at sign": ("title: §@home", "'@'", "in quotes"),
    "backtick": ("title: §`code`", "'`'", "in quotes"),
    "percent": ("title: §%b", "'%'", "in quotes"),
    "list on the key's line": ("title: §- a", "'- ' where no list can begin", "line of its own"),
    "dedent": ("title: t\nengine:\n   fast: true\n  §rate: 1", "neither 'key: value'", "line it up"),
    "key after a list": ("- a\n§title: t", "something else in a list", "'- '"),
    "text on the block's line": ("title: |§x\n  y", "on the line of '|'", "next line"),
    "line without colon": ("title: t\n§count\nlabels: {}", "", ""),
    "unknown tag handle": ("title: §!h!x 1", "'!' before text", "in quotes"),
}


@pytest.mark.usefixtures("each_parser")
@pytest.mark.parametrize("name", SYNTAX)
def test_broken_yaml_is_told_in_our_words(name: str) -> None:
    text, place = marked(SYNTAX[name][0])
    (found,) = problems(text)
    if SYNTAX[name][1]:  # otherwise the two parsers look at different ends of the line
        assert found.startswith(f"c.yaml:{place}: found ")
    for words in SYNTAX[name][1:]:
        assert words in found


@pytest.mark.usefixtures("each_parser")
@pytest.mark.parametrize("escape", ["\\d", "\\UFFFFFFFF", "\\ud800", "\\x1", "\\"])
def test_bad_escapes_are_told(escape: str) -> None:
    (found,) = problems(f'title: "{escape}"')
    assert found.startswith("c.yaml:1:")


@pytest.mark.parametrize(
    ("content", "place", "words"),
    [
        (b"title: \xff", "1:8", "0xff, expected UTF-8"),
        ("title: t\ncount: é".encode("latin-1"), "2:8", "0xe9, expected UTF-8"),
        ("title: t".encode("utf-16"), "1:1", "looks like UTF-16"),
        (b"title: \xed\xa0\x80", "1:8", "expected UTF-8"),
        (b"\xef\xbb\xbftitle: t\ncount: no", "2:8", "boolean false"),
        (b"title: a\0b", "1:9", "U+0000"),
        (b"title: " + b"x" * 2**20, "1:1", "more than 1,048,576 bytes"),
        (b"- a\n" * 30_000, "20000:3", "more than 20,000 values"),
        (b"[" * 100_000, "1:51", "more than 50 levels"),
        (b"- " * 100_000, "1:101", "more than 50 levels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_no_text_are_told(content: bytes, place: str, words: str) -> None:
    (found,) = problems(content)
    assert found.startswith(f"c.yaml:{place}: ")
    assert words in found


def test_aliases_are_not_expanded() -> None:
    links = zip("abcdefg", "bcdefgh", strict=True)
    bomb = "a: &a [x]\n" + "".join(f"{key}: &{key} [{', '.join(['*' + one] * 9)}]\n" for one, key in links)
    assert any("the alias '*g'" in problem for problem in problems(bomb))


def test_everything_wrong_is_told_at_once_in_order() -> None:
    found = problems("titel: no\ncount: 1_0\nengine: {fast: yes, fast: no, kind: vlm}\nphases: [{}, {name: &a x}]\n")
    assert [p.split(": ")[0] for p in found] == [f"c.yaml:{p}" for p in (
        "1:1", "1:8", "2:8", "3:16", "3:21", "3:37", "4:10", "4:21")]  # fmt: skip


def test_a_misspelt_key_is_not_also_told_as_missing() -> None:
    (found,) = problems("titel: t")
    assert "did you mean 'title'?" in found


def test_the_message_is_cut_and_the_problems_are_not() -> None:
    with pytest.raises(ProblemsError) as caught:
        read("title: t\nlabels:\n" + "".join(f"  k{i}: x\n" for i in range(99)))
    assert len(caught.value.problems) == len(caught.value.as_json()) == 99
    assert str(caught.value).endswith("... and 49 more problems")


def test_messages_hold_no_control_characters() -> None:
    found = problems('"tit\\e[31mle": "\\a"\n"\\u202e": 1')
    assert all(problem.isprintable() for problem in found)


# -- positions, sources, overrides ------------------------------------------------------------------------------------

FILE = """\
title: t
engine:
  retries: 5
phases:
  - name: one
  - {name: two, samples: 2}
"""


def test_positions_name_the_key_or_item() -> None:
    loaded = read(FILE)
    assert loaded.position(()) == (1, 1)
    assert loaded.position(("engine", "retries")) == (3, 3)
    assert loaded.position("phases.1") == (6, 5)
    assert loaded.position("phases.1.samples") == (6, 17)
    assert loaded.position("engine.kind") == (2, 1)


def test_every_value_has_a_source() -> None:
    loaded = read(FILE, "engine.fast=false", "phases.0.samples=4")
    assert loaded.value.phases[0].samples == 4
    sources = loaded.sources
    assert sources["title"] == "c.yaml:1:1"
    assert sources["engine.retries"] == "c.yaml:3:3"
    assert sources["engine.fast"] == "command line"
    assert sources["phases.0.samples"] == "command line"
    assert sources["phases.1.samples"] == "c.yaml:6:17"
    assert sources["engine.kind"] == sources["count"] == sources["engine.args"] == "default"
    assert loaded.data["engine"] == {"retries": 5, "fast": False}


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("title=a: b # c", "title", "a: b # c"),
        ("title='17'", "title", "17"),
        ('title=""', "title", ""),
        ("title= spaced ", "title", "spaced"),
        ("title=a=b", "title", "a=b"),
        ("engine.args=[--x, '3']", "engine.args", ("--x", "3")),
        ("engine={fast: false}", "engine.fast", False),
        ("engine.rate=1e-3", "engine.rate", 1e-3),
        ("engine.limit=all", "engine.limit", "all"),
        ("engine.limit=null", "engine.limit", None),
        ("engine.clamp.1=0.9", "engine.clamp", (0.4, 0.9)),
        ("phases.1.name=zwei", "phases.1.name", "zwei"),
        ("labels.new=3", "labels.new", 3),
    ],
)
def test_overrides_take_the_place_of_the_files_values(override: str, path: str, value: Any) -> None:
    found: Any = read(FILE + "labels: {a: 1}\n", "engine.clamp=[0.4, 0.6]", override).value
    for part in path.split("."):
        if isinstance(found, BaseModel):
            found = getattr(found, part)
        else:
            found = found[int(part) if part.isdigit() else part]
    assert found == value


def test_overrides_make_the_mappings_they_need() -> None:
    assert read("title: t", "engine.retries=7").value.engine.retries == 7
    assert read("count: 3", "title=t").value.title == "t"


def test_the_last_override_holds() -> None:
    assert read(FILE, "count=1", "count=2").value.count == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("engine.retires=3", "did you mean 'retries'?"),
        ("enginee.retries=3", "did you mean 'engine'?"),
        ("retries=3", "it belongs to 'engine.retries'"),
        ("phases.2.name=x", "an index from 0 to 1"),
        ("phases.first.name=x", "an index from 0 to 1"),
        ("title.x=3", "a single value in 'title'"),
        ("title", "expected a dotted path, '=' and a value"),
        ("=3", "expected a dotted path"),
        ("engine..fast=true", "expected a dotted path"),
        ("title=", "found no value after '='"),
        ("engine.args=[a, b", "'[' list"),
        ("engine.args=[a]]", "cannot be read"),
        ("engine.fast=yes", "write true"),
        ("engine.retries=many", "expected a whole number"),
        ("engine.retries=99", "expected a number of at most 9"),
        ("title=&x", "the text '&x'"),
        ("engine={fast: true, fast: true}", "a second time"),
        ("phases=[{samples: 3}]", "no key 'name'"),
    ],
)
def test_wrong_overrides_are_told(override: str, words: str) -> None:
    if override == "title=&x":
        assert read(FILE, override).value.title == "&x"
        return
    (found,) = problems(FILE, override)
    assert found.startswith("command line: ")
    assert words in found


def test_problems_of_file_and_overrides_are_told_together() -> None:
    found = problems(FILE.replace("retries: 5", "retries: 55"), "foo=1", "count=x")
    assert [p.split(": ")[0] for p in found] == ["c.yaml:3:12", "command line", "command line"]


# -- files ------------------------------------------------------------------------------------------------------------


def test_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(FILE, encoding="utf-8")
    loaded = yamlfile.load(file, Config)
    assert loaded.value == read(FILE).value
    assert loaded.where("title") == f"{file}:1:1"


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("title: t", encoding="utf-8")
    with pytest.raises(UserError, match="no such file; did you mean .*config.yaml"):
        yamlfile.load(tmp_path / "confg.yaml", Config)
    with pytest.raises(UserError, match="there is no folder"):
        yamlfile.load(tmp_path / "no" / "config.yaml", Config)


@pytest.mark.parametrize("name", [".", "x" * 300, "a\0b"], ids=["folder", "long name", "NUL"])
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProblemsError, match="cannot be read"):
        yamlfile.load(tmp_path / name, Config)


# -- any text at all --------------------------------------------------------------------------------------------------

PIECES = ["title", "engine", "phases", "labels", ": ", ":", "- ", "\n", "  ", "\n  ", "{", "}", "[", "]", ",", "'", '"',
          "|", ">", "#", "&a ", "*a", "!!x ", "<<", "? ", "yes", "null", "1_0", "012", "t", "\t", "---\n", "...", "%",
          "@", "\\", "\\ud800", "😊", "\r\n", "\r", "\x00", "\ufeff", "\u2028", "\ud800"]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text() | st.binary(), st.booleans())
def test_any_content_gives_a_value_or_problems_inside_the_file(content: str | bytes, with_libyaml: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "LOADER", yaml.CSafeLoader if with_libyaml else yaml.SafeLoader)
        try:
            read(content)
        except ProblemsError as error:
            check_inside(error, content)


def check_inside(error: ProblemsError, content: str | bytes) -> None:
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert error.problems
    for problem in error.problems:
        assert 1 <= problem.line <= len(lines)
        assert 1 <= problem.col <= len(lines[problem.line - 1]) + 2
        assert str(problem).isprintable()


@given(st.lists(st.sampled_from([*PIECES, "a.b=", "=", ".", "0"]), max_size=12).map("".join))
def test_any_override_gives_a_value_or_problems(override: str) -> None:
    try:
        read(FILE, override)
    except ProblemsError as error:
        assert error.problems
