"""Prompts: what is read, what is refused and how, and that no held-out prompt leaks into training."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cai import promptset
from cai.config import PromptSource
from cai.errors import UserError
from cai.promptset import PromptSet
from cai.records import Message, Prompt

SUBJECTS = "cello kayak lantern beehive quilt harbour turnip violin glacier compass saddle furnace".split()
VERBS = "repair polish describe borrow paint move".split()


def write(path: Path, *rows: object) -> Path:
    """Write rows as JSONL; bytes are written as they are."""
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def load(path: Path, **source: object) -> PromptSet:
    return promptset.load([PromptSource(path=str(path), **source)])


def asked(text: str, *, domain: str = "general", system: str | None = None) -> Prompt:
    first = (Message(role="system", content=system),) if system else ()
    return Prompt(messages=(*first, Message(role="user", content=text)), domain=domain)


def many(n: int) -> list[Prompt]:
    """Questions about different things, n of them."""
    draw = random.Random(5)
    words = [f"{verb} {subject}" for verb in VERBS for subject in SUBJECTS]
    return [asked(f"In year {i} somebody wants to {' and '.join(draw.sample(words, 4))}") for i in range(n)]


def said(*turns: str) -> str:
    """Return an hh-rlhf transcript of alternating turns."""
    return "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {turn}" for i, turn in enumerate(turns))


# -- what is read


def test_prompt_and_one_message_are_the_same_prompt(tmp_path: Path) -> None:
    read = load(
        write(
            tmp_path / "p.jsonl",
            {"id": "x-1", "domain": "everyday", "prompt": "Why is tea bitter?"},
            {"messages": [{"role": "user", "content": "Why is tea bitter?"}], "meta": {"by": "someone"}},
        )
    )
    assert (read.n_read, read.n_duplicates, len(read.prompts)) == (2, 1, 1)
    assert (read.prompts[0].source_id, read.prompts[0].domain) == ("x-1", "everyday")


def test_conversations_stay_whole(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "  What now?\n")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (prompt,) = load(write(tmp_path / "p.jsonl", {"messages": messages})).prompts
    assert [(m.role, m.content) for m in prompt.messages] == turns


def test_compressed_files_blank_lines_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"prompt": "one"}\r\n\n{"prompt": "two"}'))
    assert [p.messages[0].content for p in load(path).prompts] == ["one", "two"]


def test_the_domain_of_a_row_goes_before_the_domain_of_its_source(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "one", "domain": "own"}, {"prompt": "two"})
    assert [p.domain for p in load(path, domain="given").prompts] == ["own", "given"]
    assert [p.domain for p in load(path).prompts] == ["own", "general"]


def test_a_limit_counts_rows_and_leaves_the_rest_unread(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "one"}, {"prompt": "one"}, {"prompt": "two"}, b"not json")
    assert load(path, limit=2).n_read == 2
    with pytest.raises(UserError, match=":4: "):
        load(path, limit=4)


def test_duplicates_are_folded_across_sources(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", {"prompt": "one", "domain": "first"}, {"prompt": "two"})
    b = write(tmp_path / "b.jsonl", {"prompt": "one", "domain": "second"}, {"prompt": "three"})
    read = promptset.load([PromptSource(path="a.jsonl"), PromptSource(path=str(b))], near=a.parent)
    assert (read.n_read, read.n_duplicates) == (4, 1)
    assert [(p.messages[0].content, p.domain) for p in read.prompts][0] == ("one", "first")


def test_rows_are_read_one_by_one(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "one"}, b"not json")
    rows = promptset.iter_jsonl(path)
    assert next(rows).messages[0].content == "one"
    with pytest.raises(UserError):
        next(rows)


# -- what is refused

DEEP = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
MALFORMED = [
    (b"not json", "is not JSON", "one JSON object a line"),
    (b'{"prompt": "cut', "is not JSON", "one JSON object a line"),
    (b'["a"]', "a list of 1", "a JSON object a line"),
    (b'{"prompt": "caf\xe9"}', "byte 0xe9 at byte 16", "UTF-8"),
    (DEEP, "nested too deeply", "one plain object"),
    (b'{"prompt": ' + b"9" * 5000 + b"}", "number too long", "one plain object"),
    (b'{"prompt": "a", "prompt": "b"}', "the key 'prompt' twice", "once"),
    ({"promt": "a"}, "unknown key 'promt'", "did you mean 'prompt'?"),
    ({"prompt": "a", "\ud800": 1}, "unknown key '\\ud800'", "id, domain, prompt"),
    ({"prompt": "a", "messages": []}, "both 'prompt' and 'messages'", "exactly one"),
    ({"id": "a"}, "neither 'prompt' nor 'messages'", "exactly one"),
    ({"prompt": ""}, "an empty text in 'prompt'", "text"),
    ({"prompt": " \n\t"}, "an empty text in 'prompt'", "text"),
    ({"prompt": 7}, "the number 7 in 'prompt'", "text"),
    ({"prompt": None}, "null in 'prompt'", "text"),
    ({"prompt": "a\0b"}, "a NUL at character 2", "without NUL"),
    ({"prompt": "a\ud83d"}, "half a surrogate pair (U+D83D) at character 2", "whole characters"),
    ({"prompt": "a", "id": True}, "true in 'id'", "text"),
    ({"prompt": "a", "domain": ""}, "an empty text in 'domain'", "text"),
    ({"prompt": "a", "meta": "b"}, "the text 'b' in 'meta'", "an object"),
    ({"messages": []}, "a list of 0 in 'messages'", "a list of messages"),
    ({"messages": {"role": "user"}}, "an object of 1 keys in 'messages'", "a list of messages"),
    ({"messages": ["hi"]}, "the text 'hi'", "in 'messages.0'"),
    ({"messages": [{"role": "user"}]}, "no 'content' in 'messages.0'", "role and content"),
    ({"messages": [{"role": "user", "contents": "a"}]}, "unknown key 'contents'", "did you mean 'content'?"),
    ({"messages": [{"role": "users", "content": "a"}]}, "role 'users'", "did you mean 'user'?"),
    ({"messages": [{"role": 1, "content": "a"}]}, "role the number 1", "system, user, assistant"),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "role 'assistant' in the last message of 'messages'",
        "'user'",
    ),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
        "role 'system' in 'messages.1'",
        "first message only",
    ),
    ({"messages": [{"role": "user", "content": "a\0"}]}, "a NUL at character 2 of 'messages.0.content'", "NUL"),
]


@pytest.mark.parametrize(("row", "found", "expected"), MALFORMED)
def test_a_malformed_row_is_told_by_line_with_what_was_found_and_expected(
    tmp_path: Path, row: object, found: str, expected: str
) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "fine"}, row, {"prompt": "fine too"})
    with pytest.raises(UserError) as raised:
        load(path)
    (message,) = str(raised.value).splitlines()
    assert message.startswith(f"{path}:2: ")
    assert found in message and expected in message.partition("expected")[2]


def test_all_malformed_rows_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *[row for row, _, _ in MALFORMED[:19]])
    with pytest.raises(UserError) as raised:
        load(path)
    assert [line.split(": ")[0] for line in str(raised.value).splitlines()] == [f"{path}:{n}" for n in range(1, 20)]


def test_reading_stops_at_twenty_malformed_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        load(write(tmp_path / "p.jsonl", *[b"not json"] * 500))
    lines = str(raised.value).splitlines()
    assert len(lines) == 21 and "stopped reading after 20" in lines[-1]


@given(st.binary(max_size=300))
def test_no_bytes_make_a_traceback(content: bytes) -> None:
    for read in (promptset.from_row, promptset.from_hh):
        try:
            prompt = read(promptset.parse_json(content))
        except promptset.Malformed:
            continue
        assert prompt.id


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["role", "content", "prompt", "messages", "id", "chosen"]), inner)
        ),
        max_leaves=8,
    )
)
def test_no_row_makes_a_traceback(value: object) -> None:
    for key in ("prompt", "messages", "chosen", "id", "domain"):
        row = {"prompt": "a", key: value} if key in ("id", "domain") else {key: value}
        for read in (promptset.from_row, promptset.from_columns, promptset.from_hh):
            try:
                prompt = read(row)
            except promptset.Malformed as malformed:
                assert "expected" in str(malformed)
            else:
                assert prompt.messages[-1].role == "user" and prompt.id


def test_a_torn_gzip_file_is_one_message(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"prompt": "one"}\n' * 1000)
    for content in (whole[:-9], whole[:20], b"plain"):
        path = tmp_path / "p.jsonl.gz"
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a whole gzip file"):
            load(path)


def test_sources_without_a_prompt_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompt found"):
        load(write(tmp_path / "p.jsonl", b""))
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="set format: dataset"):
        load(tmp_path)
    with pytest.raises(UserError, match="set format: jsonl"):
        load(tmp_path / "p.jsonl", format="dataset")


# -- hh-rlhf transcripts


def test_a_transcript_is_kept_whole_up_to_the_last_human_turn(tmp_path: Path) -> None:
    row = {"chosen": said("Hi there", "Hello!  ", "How old is oak?", "Very."), "rejected": said("Hi there", "No.")}
    (prompt,) = load(write(tmp_path / "hh.jsonl", row), format="hh-rlhf").prompts
    expected = [("user", "Hi there"), ("assistant", "Hello!"), ("user", "How old is oak?")]
    assert [(m.role, m.content) for m in prompt.messages] == expected


@pytest.mark.parametrize(
    "turn",
    [
        "What does 'Human: ' mean in a log?",
        "It printed\nHuman: hello\nAssistant: hi",
        "First paragraph.\n\nSecond, about a Human: being one.",
        "Write\n\n Human: and a colon",
        "A list:\n\nHumans: many\n\nAssistants: few",
    ],
)
def test_human_inside_a_turn_is_text(tmp_path: Path, turn: str) -> None:
    row = {"chosen": said(turn, "I see.", "Thanks, and?", "Bye."), "rejected": ""}
    (prompt,) = load(write(tmp_path / "hh.jsonl", row), format="hh-rlhf").prompts
    assert [m.content for m in prompt.messages] == [turn, "I see.", "Thanks, and?"]


def test_neighbouring_turns_of_one_speaker_become_one_message(tmp_path: Path) -> None:
    row = {"chosen": "\n\nHuman: One.\n\nHuman: Two?\n\nAssistant:"}
    (prompt,) = load(write(tmp_path / "hh.jsonl", row), format="hh-rlhf").prompts
    assert [(m.role, m.content) for m in prompt.messages] == [("user", "One.\n\nTwo?")]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"chosen": "Hello"}, "found 'Hello' in 'chosen'"),
        ({"chosen": said("", "Yes?")}, "without text"),
        ({"chosen": "\n\nAssistant: Hi\n\nHuman: Hi"}, "begins"),
        ({"rejected": said("a", "b")}, "found no 'chosen'"),
        ({"chosen": said("a", "b"), "chose": 1}, "did you mean 'chosen'?"),
        ({"chosen": [said("a", "b")]}, "a list of 1 in 'chosen'"),
    ],
)
def test_a_malformed_transcript_is_told_by_line(tmp_path: Path, row: object, found: str) -> None:
    path = write(tmp_path / "hh.jsonl.txt", {"chosen": said("a", "b")}, row)
    with pytest.raises(UserError) as raised:
        load(path, format="hh-rlhf")
    assert str(raised.value).startswith(f"{path}:2: ") and found in str(raised.value)


# -- datasets


def test_a_saved_dataset_gives_the_prompts_of_its_split(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    train = Dataset.from_list([{"prompt": f"question {i}", "score": i} for i in range(4)])
    talk = [{"role": "user", "content": "a conversation"}]
    test = Dataset.from_list([{"prompt": talk, "id": 7, "chosen": "x"}])
    train.save_to_disk(tmp_path / "one")
    DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "two")
    assert load(tmp_path / "one", format="dataset", limit=3).n_read == 3
    (prompt,) = load(tmp_path / "two", format="dataset", split="test").prompts
    assert (prompt.messages[0].content, prompt.source_id) == ("a conversation", "7")
    with pytest.raises(UserError, match="no split 'dev', expected one of train, test"):
        load(tmp_path / "two", format="dataset", split="dev")


def test_a_folder_of_data_files_is_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.jsonl", {"chosen": said("What is a fen?", "A wetland."), "rejected": "", "note": 1})
    (prompt,) = load(folder, format="hh-rlhf").prompts
    assert prompt.messages[0].content == "What is a fen?"
    with pytest.raises(UserError, match="found the columns chosen, rejected, note, expected prompt or messages"):
        load(folder, format="dataset")
    with pytest.raises(UserError, match="check name, split and network"):
        load(folder, format="hh-rlhf", split="nowhere")


def test_a_part_of_a_hub_dataset_is_asked_for_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    asked: list[Any] = []

    def load_dataset(*words: Any, **named: Any) -> Dataset:
        asked.append((words, named))
        return Dataset.from_list([{"chosen": said("What is a fen?", "A wetland."), "rejected": ""}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    source = PromptSource(dataset="some/set", format="hh-rlhf", subset="v2", data_dir="harmless-base", split="test")
    assert promptset.load([source]).prompts[0].messages[0].content == "What is a fen?"
    part = {"split": "test", "streaming": False, "name": "v2", "data_dir": "harmless-base"}
    assert asked == [(("some/set",), part)]
    with pytest.raises(ValidationError, match="name it with 'dataset'"):
        PromptSource(path="x", data_dir="harmless-base")


def test_malformed_rows_of_a_dataset_are_told_by_number(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list([{"prompt": "fine"}, {"prompt": " "}]).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError) as raised:
        load(tmp_path / "d", format="dataset")
    assert str(raised.value) == f"{tmp_path / 'd'}[train]: row 2: found an empty text in 'prompt', expected text"


# -- split


def test_a_prompt_stays_on_its_side_when_others_come_and_go() -> None:
    prompts = many(400)
    _, held_out = promptset.split(prompts, 0.3, salt="0")
    fewer = prompts[::3]
    _, held_out_of_fewer = promptset.split(fewer, 0.3, salt="0")
    assert held_out_of_fewer == [p for p in fewer if p in held_out]
    assert 90 <= len(held_out) <= 150


def test_domain_and_source_id_do_not_change_the_side() -> None:
    prompts = many(100)
    renamed = [p.model_copy(update={"domain": "other", "source_id": f"n-{i}"}) for i, p in enumerate(prompts)]
    sides = [promptset.split(each, 0.5, salt="s") for each in (prompts, renamed)]
    assert [p.messages for p in sides[0][1]] == [p.messages for p in sides[1][1]]


def test_split_loses_nothing_and_keeps_the_order() -> None:
    prompts = many(120)
    for held_out in (0.0, 0.25, 1.0, 0, 17, 500):
        train, kept = promptset.split(prompts, held_out, salt="0")
        assert sorted(train + kept, key=prompts.index) == prompts
        assert train == sorted(train, key=prompts.index) and kept == sorted(kept, key=prompts.index)


def test_a_whole_number_holds_out_exactly_so_many() -> None:
    prompts = many(120)
    train, held_out = promptset.split(prompts, 17, salt="0")
    assert (len(train), len(held_out)) == (103, 17)
    more = [*prompts, asked("One more, about quite another thing")]
    assert len(set(promptset.split(more, 17, salt="0")[1]) - set(held_out)) <= 1


def test_the_salt_decides_the_split() -> None:
    prompts = many(100)
    assert promptset.split(prompts, 0.5, salt="0")[1] != promptset.split(prompts, 0.5, salt="1")[1]


# -- leaks


def test_twenty_planted_overlaps_are_found_and_none_invented() -> None:
    sets = [PromptSource(path=f"prompts/sets/{name}.jsonl") for name in ("everyday", "tempting")]
    train, held_out = promptset.split(promptset.load(sets).prompts, 0.3, salt="0")
    one_line = [p for p in held_out if len(p.messages) == 1][:20]
    edits = [
        lambda text: text,
        lambda text: text.upper(),
        lambda text: f"  {text.replace(' ', '   ')} ?!",
        lambda text: f"Hello! {text}, please.",
        lambda text: text.rpartition(" ")[0],
    ]
    planted = [
        asked(edits[i % 5](prompt.messages[0].content), system="Be kind." if i % 2 else None)
        for i, prompt in enumerate(one_line)
    ]
    found = promptset.overlaps([*train[:150], *planted, *train[150:]], held_out)
    assert len(found) == 20
    assert {leak: overlap.held_out_id for leak, overlap in found.items()} == {
        leak.id: source.id for leak, source in zip(planted, one_line, strict=True)
    }
    assert all(promptset.NEAR_DUPLICATE <= overlap.jaccard <= 1 for overlap in found.values())


@given(
    st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=7).map(" ".join), min_size=1, max_size=8),
    st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=7).map(" ".join), min_size=1, max_size=8),
    st.sampled_from([0.05, 0.3, 0.5, 0.6, 0.7, 0.8, 0.95, 1.0]),
)
def test_no_overlap_at_or_above_the_threshold_is_missed(left: list[str], right: list[str], threshold: float) -> None:
    train, held_out = [asked(text) for text in left], [asked(text) for text in right]
    best = {}
    for a in train:
        for b in held_out:
            x, y = promptset.shingles(a), promptset.shingles(b)
            jaccard = len(x & y) / len(x | y)
            if jaccard >= threshold:
                best[a.id] = max(jaccard, best.get(a.id, 0))
    found = promptset.overlaps(train, held_out, threshold)
    assert {leak: overlap.jaccard for leak, overlap in found.items()} == best


def test_memory_does_not_grow_with_the_held_out_prompts() -> None:
    def prompts(n: int) -> Iterator[Prompt]:
        chance = random.Random(0)
        return (asked(" ".join(f"{chance.getrandbits(32):x}" for _ in range(20))) for _ in range(n))

    def peak(n: int) -> int:
        tracemalloc.start(1)
        try:
            assert len(promptset.overlaps(prompts(10), prompts(n))) == 10
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)  # what is made once
    assert peak(1000) - peak(200) < 800 * 100, "a prompt has 39 shingles of 8 bytes and more"


def test_a_shared_system_message_does_not_make_prompts_alike() -> None:
    system = "You answer for a library. Be brief, be kind, and never guess at opening hours or fees. " * 5
    train = [asked("Where do I return a book?", system=system)]
    held_out = [asked("Can children borrow films?", system=system)]
    assert not promptset.overlaps(train, held_out)


def test_scripts_without_spaces_are_compared_sign_by_sign() -> None:
    held_out = [asked("怎样煮米饭才不会粘锅呢")]
    assert promptset.overlaps([asked("怎样煮米饭才不会粘锅?")], held_out)
    assert not promptset.overlaps([asked("为什么天空是蓝色的呢")], held_out)


def test_prompts_without_a_word_overlap_only_with_themselves() -> None:
    held_out = [asked("?!"), asked("…")]
    assert list(promptset.overlaps([asked("?!", system="x"), asked("!!!")], held_out, 1.0)) == [
        asked("?!", system="x").id
    ]
