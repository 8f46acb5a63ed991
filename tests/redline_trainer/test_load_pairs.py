"""Pairs are read from every format. All bad rows are reported, and no row is dropped."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redline.messages import Message
from redline.preference_data.row_report import RowReport
from redline.preference_data.rows import Pair, parse_row
from redline_model.errors import DataError
from redline_trainer.load_pairs import load_pairs, split_by_prompt

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
Row = dict[str, Any]

quickly = settings(deadline=None, database=None, max_examples=150)


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


# Line ends that JSON does not escape, quotes, other scripts.
TRIPLES = [
    ("How do I reset it?", "Hold the button.", "Cut the wire."),
    ("Say \u2028 and \x85 and \t.", "line\nline", 'quoted "line"\r\n'),
    ("你好吗？", "很好。", "不好 🙂"),
    ("  spaces  ", "kept ", " kept"),
    ("A question about A.", "A", "a"),
]


# --- every format, one pair -----------------------------------------------------------------------------


def native(prompt: str, chosen: str, rejected: str) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def native_with_extras(prompt: str, chosen: str, rejected: str) -> Row:
    return {"id": 7, **native(prompt, chosen, rejected), "spans": [{"start": 0}], "meta": {"prompt": "x"}}


def native_chat_prompt(prompt: str, chosen: str, rejected: str) -> Row:
    return {"prompt": [user(prompt)], "chosen": chosen, "rejected": rejected}


def trl_conversational(prompt: str, chosen: str, rejected: str) -> Row:
    return {"prompt": [user(prompt)], "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}


def trl_conversational_implicit(prompt: str, chosen: str, rejected: str) -> Row:
    return {"chosen": [user(prompt), assistant(chosen)], "rejected": [user(prompt), assistant(rejected)]}


Render = Callable[[str, str, str], Row]
AS_TEXT: list[Render] = [native, native_with_extras]
AS_CHAT: list[Render] = [native_chat_prompt, trl_conversational, trl_conversational_implicit]


@quickly
@given(
    st.sampled_from([*AS_TEXT, *AS_CHAT]),
    st.text(min_size=1),
    st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=2, unique=True),
)
def test_a_row_of_any_format_is_the_same_pair(render: Render, prompt: str, sides: list[str]) -> None:
    chosen, rejected = sides
    pair = parse_row(render(prompt, chosen, rejected), "here")
    assert pair == Pair(prompt if render in AS_TEXT else [user(prompt)], chosen, rejected, "here")


def test_several_turns_and_a_system_turn_are_the_prompt() -> None:
    turns = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello"), user("2+2?")]
    explicit = {"prompt": turns, "chosen": [assistant("4")], "rejected": [assistant("5")]}
    implicit = {"chosen": [*turns, assistant("4")], "rejected": [*turns, assistant("5")]}
    expected = Pair(turns, "4", "5", "here")
    assert parse_row(explicit, "here") == expected
    assert parse_row(implicit, "here") == expected
    assert parse_row({**implicit, "prompt": None}, "here") == expected  # as a table has it


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("The sky is blue.", "The sky is green.", ("The sky is", " blue.", " green.")),
        ("The sky is blue.", "The sky is black.", ("The sky is", " blue.", " black.")),  # not in a word
        ("Is it? Yes", "Is it? No", ("Is it?", " Yes", " No")),
        ("What is 2+2?\n4", "What is 2+2?\n5", ("What is 2+2?", "\n4", "\n5")),
        ("你好吗？很好", "你好吗？不好", ("你好吗？", "很好", "不好")),
        ("One two", "One two three", ("One", " two", " two three")),
    ],
)
def test_the_common_beginning_of_two_texts_is_their_prompt(
    chosen: str, rejected: str, expected: tuple[str, str, str]
) -> None:
    pair = parse_row({"chosen": chosen, "rejected": rejected}, "here")
    assert (pair.prompt, pair.chosen, pair.rejected) == expected


@quickly
@given(st.lists(st.sampled_from(["a", "b", "bc", " ", "  ", "\n", "世"]), min_size=1).map("".join), st.data())
def test_splitting_off_an_implicit_prompt_loses_no_character(start: str, data: st.DataObject) -> None:
    chosen, rejected = start + data.draw(st.text(min_size=1)), start + data.draw(st.text(min_size=1))
    try:
        pair = parse_row({"chosen": chosen, "rejected": rejected}, "here")
    except Exception as error:
        assert type(error).__name__ == "BadRowError"  # refused with a reason, see the table of bad rows
        return
    assert isinstance(pair.prompt, str)
    assert pair.prompt
    assert (pair.prompt + pair.chosen, pair.prompt + pair.rejected) == (chosen, rejected)


def test_a_transcript_of_one_turn() -> None:
    row = {
        "chosen": "\n\nHuman: How do I reset it?\n\nAssistant: Hold the button.",
        "rejected": "\n\nHuman: How do I reset it?\n\nAssistant: No idea.",
    }
    expected = Pair([user("How do I reset it?")], "Hold the button.", "No idea.", "here")
    assert parse_row(row, "here") == expected


def test_a_transcript_of_several_turns() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHow are you?\n\nHuman: Fine: and 2+2?\n\nAssistant:"
    row = {"chosen": f"{start} 4, I think.", "rejected": f"{start} 5\nor so"}
    turns = [user("Hi"), assistant("Hello!\n\nHow are you?"), user("Fine: and 2+2?")]
    assert parse_row(row, "here") == Pair(turns, "4, I think.", "5\nor so", "here")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["prompt", "chosen"], "must be an object, this is a list"),
        ("text", "must be an object, this is a str"),
        (None, "must be an object"),
        ({}, "'chosen' is missing"),
        ({"prompt": "p", "chosen": "a"}, "'rejected' is missing"),
        ({"prompt": "p", "chosen": None, "rejected": "b"}, "'chosen' is missing"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "'rejected' is empty"),
        ({"prompt": "p", "chosen": " \n", "rejected": "b"}, "'chosen' is empty"),
        ({"prompt": "p", "chosen": "a", "rejected": [assistant("b")]}, "different forms"),
        ({"prompt": "p", "chosen": 1, "rejected": 2}, "'chosen' must be text or a list of messages, not int"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "'prompt' must be text or a list of messages"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "empty conversation"),
        ({"prompt": ["hi"], "chosen": "a", "rejected": "b"}, "'prompt' holds a message that is not an object"),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "without 'content'"),
        ({"prompt": [{"role": "user", "content": None}], "chosen": "a", "rejected": "b"}, "without 'content'"),
        ({"prompt": [user("p"), assistant("a")], "chosen": "a", "rejected": "b"}, "ends with an assistant turn"),
        ({"prompt": "p", "chosen": [user("a")], "rejected": [assistant("b")]}, "'chosen' must be one assistant turn"),
        ({"prompt": "p", "chosen": [assistant("a")], "rejected": []}, "'rejected' must be one assistant turn"),
        ({"chosen": "Yes", "rejected": "No"}, "do not begin alike"),
        ({"prompt": "HALF", "chosen": "a", "rejected": "b"}, "half a surrogate pair"),
        ({"prompt": "p", "chosen": "a HALF", "rejected": "b"}, "half a surrogate pair"),
        ({"prompt": [user("HALF")], "chosen": "a", "rejected": "b"}, "half a surrogate pair"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "no 'prompt'"),
        (
            {"chosen": [user("p"), assistant("a")], "rejected": [user("q"), assistant("b")]},
            "differ before their last turn",
        ),
        (
            {"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            "differ before their last turn",
        ),
        ({"chosen": "\n\nHuman: p\n\nAssistant:", "rejected": "\n\nHuman: p\n\nAssistant: b"}, "'chosen' is empty"),
        ({"chosen": "\n\nHuman: p\n\nHuman: a", "rejected": "\n\nHuman: p\n\nHuman: b"}, "one assistant turn"),
    ],
)
def test_a_bad_row_is_reported_with_its_reason(row: Any, reason: str, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "bad.jsonl", [row])
    with pytest.raises(DataError) as caught:
        load_pairs([file])
    assert f"{file}:1: " in str(caught.value)
    assert reason in str(caught.value)


# --- files -----------------------------------------------------------------------------------------------


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).replace("HALF", r"\ud83d")
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_json(path: Path, rows: Any) -> Path:
    data = json.dumps(rows, indent=1).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("render", [*AS_TEXT, *AS_CHAT], ids=lambda render: str(render.__name__))
@pytest.mark.parametrize(
    ("name", "write", "where"),
    [
        ("p.jsonl", write_jsonl, "{}:{}"),
        ("p.jsonl.gz", write_jsonl, "{}:{}"),
        ("p.json", write_json, "{}:row {}"),
        ("p.json.gz", write_json, "{}:row {}"),
    ],
)
def test_pairs_are_read_from_files_of_every_format(
    render: Render, name: str, write: Callable[[Path, list[Any]], Path], where: str, tmp_path: Path
) -> None:
    file = write(tmp_path / name, [render(*triple) for triple in TRIPLES])
    pairs, (source,) = load_pairs([file])
    assert pairs == [
        Pair(p if render in AS_TEXT else [user(p)], c, r, where.format(file, number))
        for number, (p, c, r) in enumerate(TRIPLES, 1)
    ]
    assert source.model_dump() == {
        "name": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "pairs": len(TRIPLES),
    }


def test_invalid_spans_are_bad_rows_and_another_field_named_spans_is_ignored(tmp_path: Path) -> None:
    row = native(*TRIPLES[0])
    mixed = [{"start": 0, "end": 1}, {"begin": 2, "end": 3}]
    for spans in (mixed, [{"start": 0, "end": 10**6}], [{"start": 2, "end": 1}]):
        with pytest.raises(DataError, match=r"bad rows; nothing was used\n.*span"):
            load_pairs([write_jsonl(tmp_path / "a.jsonl", [{**row, "spans": spans}])])
    other = load_pairs([write_jsonl(tmp_path / "b.jsonl", [{**row, "spans": ["a"]}, {**row, "spans": []}])])[0]
    assert [pair.spans for pair in other] == [None, ()]


def test_duplicate_pairs_are_kept(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", [native(*TRIPLES[0])] * 3 + [native(*TRIPLES[2])])
    second = write_json(tmp_path / "b.json", [native(*TRIPLES[0]), native_chat_prompt(*TRIPLES[0])])
    pairs, sources = load_pairs([str(first), second, first])
    assert [source.pairs for source in sources] == [4, 2, 4]
    assert [(pair.where.rpartition("/")[2], pair.chosen) for pair in pairs] == [
        ("a.jsonl:1", TRIPLES[0][1]),
        ("a.jsonl:2", TRIPLES[0][1]),
        ("a.jsonl:3", TRIPLES[0][1]),
        ("a.jsonl:4", TRIPLES[2][1]),
        ("b.json:row 1", TRIPLES[0][1]),
        ("b.json:row 2", TRIPLES[0][1]),
        ("a.jsonl:1", TRIPLES[0][1]),
        ("a.jsonl:2", TRIPLES[0][1]),
        ("a.jsonl:3", TRIPLES[0][1]),
        ("a.jsonl:4", TRIPLES[2][1]),
    ]


def test_empty_lines_are_not_rows_but_count_for_line_numbers(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    row = json.dumps(native(*TRIPLES[0]))
    file.write_text(f"\n{row}\n  \n\n{row}")  # and no line end at the end
    pairs, _ = load_pairs([file])
    assert [pair.where for pair in pairs] == [f"{file}:2", f"{file}:5"]


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    row = json.dumps(native(*TRIPLES[2]), ensure_ascii=False)
    file.write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n{row}\r\n".encode())
    assert [pair.chosen for pair in load_pairs([file])[0]] == [TRIPLES[2][1]] * 2


def test_all_bad_rows_of_all_files_are_reported_at_once(tmp_path: Path) -> None:
    good = json.dumps(native(*TRIPLES[0]))
    first, second, third = tmp_path / "a.jsonl", tmp_path / "b.json", tmp_path / "c.jsonl.gz"
    first.write_bytes(f'{good}\n{{"prompt": \n\n{{"prompt": "p", "chosen": "a"}}\n{good}\n'.encode() + b'"\xff"\n')
    write_json(second, [[1], native(*TRIPLES[0]), native("p", "same", "same")])
    third.write_bytes(gzip.compress(f"{good}\n{good}\nchosen,rejected\n".encode()))
    with pytest.raises(DataError) as caught:
        load_pairs([first, second, third])
    head, *lines = str(caught.value).splitlines()
    assert head.startswith("6 bad rows")
    expected = [
        (f"{first}:2: ", "not JSON"),
        (f"{first}:4: ", "'rejected' is missing"),
        (f"{first}:6: ", "not JSON"),
        (f"{second}:row 1: ", "must be an object"),
        (f"{second}:row 3: ", "are the same"),
        (f"{third}:3: ", "not JSON"),
    ]
    assert len(lines) == len(expected)
    for line, (where, reason) in zip(lines, expected, strict=True):
        assert line.strip().startswith(where)
        assert reason in line


def test_of_a_thousand_bad_rows_fifty_are_listed(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"chosen": "a"}] * 1000)
    with pytest.raises(DataError) as caught:
        load_pairs([file])
    head, *lines = str(caught.value).splitlines()
    assert head.startswith("1000 bad rows")
    assert [line.strip() for line in lines[:50]] == [f"{file}:{n}: 'rejected' is missing" for n in range(1, 51)]
    assert [line.strip() for line in lines[50:]] == ["... and 950 more"]


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.parquet", "pairs", "pairs.jsonl.bz2", "jsonl"])
def test_an_unknown_suffix_is_an_error_that_lists_the_known_ones(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(json.dumps(native(*TRIPLES[0])))
    with pytest.raises(DataError, match=re.escape(str(file)) + r".*\.jsonl, \.jsonl\.gz, \.json, \.json\.gz"):
        load_pairs([file])


@pytest.mark.parametrize("name", ["gone.jsonl", "data/gone.jsonl.gz", "./data/gone", "/data/gone", "gone", "a/b/c"])
def test_a_missing_file_is_reported_as_missing(
    name: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"^{re.escape(name)}: there is no such file$"):
        load_pairs([name])
    assert hub.calls == []


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jsonl", b"", "holds no pairs"),
        ("a.jsonl", b"\n\n", "holds no pairs"),
        ("a.json", b"[]", "holds no pairs"),
        ("a.json", b'{"prompt": "p"}', "must hold a list"),
        ("a.json", b"[{]", "not JSON"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: not JSON"),
        ("a.jsonl.gz", b'{"prompt": "p"}', "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "p"}' * 99, mtime=0)[:-9], "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_reported_by_name(name: str, data: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_pairs([file])
    assert str(file) in str(caught.value)
    assert reason in str(caught.value)


# --- hub data sets ---------------------------------------------------------------------------------------


class Hub:
    """A fake of ``datasets.load_dataset``."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.rows: list[Row] = []
        self.error: Exception | None = None

    def load_dataset(self, name: str, *configuration: str, split: str) -> Iterator[Row]:
        self.calls.append((name, *configuration, split))
        if self.error is not None:
            raise self.error
        return iter(self.rows)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub()
    monkeypatch.setattr(datasets, "load_dataset", fake.load_dataset)
    return fake


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("owner/pairs", ("owner/pairs", "train")),
        ("owner/pairs@test", ("owner/pairs", "test")),
        ("owner/pairs:helpful", ("owner/pairs", "helpful", "train")),
        ("owner/pairs:helpful@test", ("owner/pairs", "helpful", "test")),
    ],
)
def test_a_hub_data_set_is_loaded_by_name_configuration_and_split(source: str, call: tuple[str, ...], hub: Hub) -> None:
    hub.rows = [trl_conversational(*triple) for triple in TRIPLES]
    pairs, (origin,) = load_pairs([source])
    assert hub.calls == [call]
    assert pairs == [Pair([user(p)], c, r, f"{source}:row {n}") for n, (p, c, r) in enumerate(TRIPLES, 1)]
    assert (origin.name, origin.sha256, origin.pairs) == (source, None, len(TRIPLES))


def test_a_data_set_of_the_real_library_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_list([trl_conversational_implicit(*triple) for triple in TRIPLES])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: table)
    pairs, _ = load_pairs(["owner/pairs"])
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [([user(p)], c, r) for p, c, r in TRIPLES]


def test_bad_rows_of_the_hub_are_reported_with_those_of_files(hub: Hub, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"chosen": "a"}])
    hub.rows = [native(*TRIPLES[0]), native("p", "a", "a")]
    with pytest.raises(DataError, match="2 bad rows") as caught:
        load_pairs([file, "owner/pairs@test"])
    assert f"{file}:1: 'rejected' is missing" in str(caught.value)
    assert "owner/pairs@test:row 2: 'chosen' and 'rejected' are the same" in str(caught.value)


@pytest.mark.parametrize("error", [ConnectionError("offline\nsecond line"), ValueError(""), KeyError("split")])
def test_an_error_of_a_hub_data_set_is_one_line(error: Exception, hub: Hub) -> None:
    hub.error = error
    with pytest.raises(DataError, match=r"^owner/pairs: no such file, and no such hub data set: .+") as caught:
        load_pairs(["owner/pairs"])
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_the_configurations_of_a_hub_data_set_are_listed_if_none_is_named(hub: Hub) -> None:
    hub.error = ValueError(
        "Config name is missing.\nPlease pick one among the available configs: ['helpful', 'harmless']\n"
        "Example of usage:\n\t`load_dataset('owner/pairs', 'helpful')`"
    )
    with pytest.raises(DataError) as caught:
        load_pairs(["owner/pairs"])
    assert str(caught.value) == (
        "owner/pairs: no such file, and no such hub data set: Config name is missing. Please pick one among the "
        "available configs: ['helpful', 'harmless'] (name one as OWNER/NAME:CONFIG@SPLIT)"
    )


def test_bad_rows_of_every_source_may_be_skipped(hub: Hub, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"chosen": "a"}, native_with_extras(*TRIPLES[0])])
    hub.rows = [native(*TRIPLES[0]), native("p", "a", "a")]
    report = RowReport(skips=True)
    pairs, sources = load_pairs([file, "owner/pairs@test"], report)
    assert [pair.where for pair in pairs] == [f"{file}:2", "owner/pairs@test:row 1"]
    assert [source.pairs for source in sources] == [1, 1]
    assert report.skipped.first == [
        f"{file}:1: 'rejected' is missing",
        "owner/pairs@test:row 2: 'chosen' and 'rejected' are the same",
    ]
    assert report.ignored == {"id": 1, "spans": 1, "meta": 1}
    hub.rows = [native("p", "a", "a")]
    with pytest.raises(DataError, match=r"^owner/pairs: every row is bad\n  owner/pairs:row 1: .*are the same$"):
        load_pairs([file, "owner/pairs"], RowReport(skips=True))


# --- held out by prompt ----------------------------------------------------------------------------------


prompts = st.text(max_size=5) | st.lists(st.text(max_size=3).map(user), min_size=1, max_size=2)
many_pairs = st.lists(st.builds(Pair, prompts, st.just("a"), st.just("b"), st.integers(0, 99).map(str)), max_size=30)


@quickly
@given(many_pairs, st.floats(0.0, 1.0))
def test_each_pair_and_each_prompt_is_on_one_side(pairs: list[Pair], share: float) -> None:
    training, held_out = split_by_prompt(pairs, share)
    assert not {p.prompt_key for p in training} & {p.prompt_key for p in held_out}
    side = {p.prompt_key: training for p in training} | {p.prompt_key: held_out for p in held_out}
    remaining = {id(training): list(training), id(held_out): list(held_out)}
    for pair in pairs:  # in order
        assert remaining[id(side[pair.prompt_key])].pop(0) == pair
    assert not any(remaining.values())


@quickly
@given(many_pairs, many_pairs, st.floats(0.0, 1.0))
def test_the_side_of_a_prompt_does_not_depend_on_other_pairs(
    pairs: list[Pair], others: list[Pair], share: float
) -> None:
    alone, among = split_by_prompt(pairs, share), split_by_prompt([*others, *pairs], share)
    keys = {p.prompt_key for p in pairs}
    for side, side_among_others in zip(alone, among, strict=True):
        assert {p.prompt_key for p in side} == {p.prompt_key for p in side_among_others} & keys


@quickly
@given(many_pairs, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_larger_share_holds_out_a_superset(pairs: list[Pair], first: float, second: float) -> None:
    small, large = sorted((first, second))
    fewer = {p.prompt_key for p in split_by_prompt(pairs, small)[1]}
    assert fewer <= {p.prompt_key for p in split_by_prompt(pairs, large)[1]}


def test_shares_of_0_and_1() -> None:
    pairs = [Pair(str(n), "a", "b", "") for n in range(100)]
    assert split_by_prompt(pairs, 0.0) == (pairs, [])
    assert split_by_prompt(pairs, 1.0) == ([], pairs)


def test_the_held_out_share_is_close_to_the_setting() -> None:
    pairs = [Pair(f"prompt {n}", "a", "b", "") for n in range(4000)]
    held_out = split_by_prompt(pairs, 0.1)[1]
    assert abs(len(held_out) - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5


def test_the_split_is_the_same_in_every_process_and_release() -> None:
    # the first bytes of the digest of the prompt as JSON, against a tenth of their range
    pairs = [Pair(f"prompt {n}", "a", "b", "") for n in range(50)]
    digests = [hashlib.sha256(f'"prompt {n}"'.encode()).hexdigest() for n in range(50)]
    expected = [f"prompt {n}" for n, digest in enumerate(digests) if int(digest[:8], 16) < 0.1 * 2**32]
    assert expected  # otherwise the test is empty
    assert [pair.prompt for pair in split_by_prompt(pairs, 0.1)[1]] == expected


def test_the_order_of_keys_in_messages_does_not_change_the_prompt_key() -> None:
    first = Pair([{"role": "user", "content": "hi"}], "a", "b", "")
    second = Pair([{"content": "hi", "role": "user"}], "c", "d", "")
    assert first.prompt_key == second.prompt_key
    assert first.prompt_key != Pair("hi", "a", "b", "").prompt_key


# --- real data -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared preference data is not available")
def test_every_shared_file_has_one_pair_per_line() -> None:
    files = sorted(DATA.glob("*.jsonl.gz"))
    assert files
    for file in files:
        with gzip.open(file, "rb") as lines:
            count = sum(1 for _ in lines)
        pairs, (source,) = load_pairs([file])
        assert (file.name, len(pairs), source.pairs) == (file.name, count, count)
