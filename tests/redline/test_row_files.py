"""Files of rows from anywhere: bounded memory, and an error with file and row for whatever cannot be read."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from redline.errors import RowsError
from redline.files import row_files
from redline.files.row_files import (
    MAX_PROBLEMS,
    MAX_ROW_BYTES,
    Problems,
    UnreadableRowError,
    read_rows,
)
from redline.files.strict_json import parse_json
from redline.ppo.prompts import load_prompts
from redline.preference_data.checked_rows import CheckedRows
from redline.wire import ScoreItem
from redline_cli.request_rows import row_item
from redline_model.errors import DataError
from redline_trainer.load_pairs import load_pairs

ROW = {"prompt": "p", "response": "r", "chosen": "a", "rejected": "b"}
GOOD = json.dumps(ROW).encode()
MiB = 2**20


@contextmanager
def peak_below(size: int) -> Iterator[None]:
    """At no moment more than ``size`` bytes more than before."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size, f"{peak / MiB:.0f} MiB"


def score_rows(path: Path) -> Any:
    return CheckedRows(path, row_item(ScoreItem))


READERS: list[Callable[[Path], Any]] = [score_rows, load_prompts, lambda path: load_pairs([path])]
Refused = (RowsError, DataError)


@pytest.mark.parametrize("read", READERS, ids=["score", "ppo", "train"])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"id": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"id": ' + b"9" * 1_000_000 + b"}", "a number of 1000000 digits"),
        (b'{"id": 1' + b"0" * 400 + b".0}", "is too large"),
        (b'{"id": 1e999}', "is too large"),
        (b'{"id": NaN}', "NaN is no JSON number"),
        (b'{"id": -Infinity}', "-Infinity is no JSON number"),
        (b'{"prompt": "\\ud800", "response": "r", "chosen": "\\ud800", "rejected": "b"}', "half a surrogate pair"),
        (b'{"prompt": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b"\x00\x00\x00", "not JSON"),
        (b'{"prompt": "\x00"}', "not JSON"),
        ('{"prompt": "p"}'.encode("utf-16"), "not UTF-8"),
        (b'"text"', "must be an object"),
        (b"{}" * 3, "not JSON"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value.replace(" ", "-"),
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_row_that_cannot_be_read_is_named(
    read: Callable[[Path], Any], bad: bytes, reason: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"rows{suffix}"
    data = GOOD + b"\n\n" + bad + b"\n" + GOOD + b"\n"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    with pytest.raises(Refused) as caught:
        read(path)
    assert f"{path}:3: " in str(caught.value)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("read", READERS, ids=["score", "ppo", "train"])
@pytest.mark.parametrize("start", [b"x", b'{"prompt": "', b" ", b"\x00"])
def test_a_line_without_end_is_refused_in_bounded_memory(
    read: Callable[[Path], Any], start: bytes, tmp_path: Path
) -> None:
    """A gigabyte of one line in a file of a megabyte; only its beginning is unpacked."""
    path = tmp_path / "rows.jsonl.gz"
    member = gzip.compress(start * (64 * MiB // len(start)), 1)
    path.write_bytes(gzip.compress(GOOD + b"\n") + member * 16)
    with (
        peak_below(6 * MAX_ROW_BYTES),
        pytest.raises(Refused, match=r"rows.jsonl.gz:2: .*longer than 16,777,216 bytes"),
    ):
        read(path)


@pytest.mark.parametrize("element", [b"x", b'"', b"[" + b"1," * 50, b"1"], ids=["junk", "text", "numbers", "digits"])
def test_a_list_of_one_endless_row_is_refused_in_bounded_memory(
    element: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "MAX_ROW_BYTES", MiB)
    path = tmp_path / "rows.json.gz"
    member = gzip.compress((element[-2:] if element[:1] == b"[" else element[-1:]) * (8 * MiB), 1)
    path.write_bytes(gzip.compress(b"[" + GOOD + b"," + element) + member * 8)
    with peak_below(16 * MiB), pytest.raises(DataError, match=r"rows\.json\.gz:row 2: "):
        load_pairs([path])


def test_a_list_is_read_one_row_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    row = {"text": "é" * 5000, "n": [1.5, -2, True, None]}
    path.write_text(json.dumps([row] * 3000, ensure_ascii=False, indent=1), encoding="utf-8")
    assert path.stat().st_size > 30 * 1_000_000 - 1_000_000
    with peak_below(2 * MiB):
        assert sum(read.value == row for read in read_rows(path)) == 3000


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_chunk_boundaries_within_a_list_do_not_matter(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "_CHUNK", chunk)
    values = [1234567, -1.5e-7, "é\n\U0001f642,]", {"a": [1, 2, {"b": "]"}]}, [], True, None, 0]
    path = tmp_path / "rows.json"
    for text in (json.dumps(values, ensure_ascii=False), json.dumps(values, indent=3), " [ ] ", "\ufeff[7]\n"):
        path.write_text(text, encoding="utf-8")
        expected = json.loads(text.removeprefix("\ufeff"))
        assert [row[:2] for row in read_rows(path)] == [(f"{path}:row {n}", v) for n, v in enumerate(expected, 1)]


@pytest.mark.parametrize(
    "text", ["", "{}", "[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1]]", "[1] x", "[1", '["a', "[nul]"]
)
def test_a_json_file_without_a_list_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UnreadableRowError, match=r"rows\.json"):
        list(read_rows(path))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".json.gz"])
def test_a_gzipped_file_of_very_many_small_rows_is_refused(suffix: str, tmp_path: Path) -> None:
    """Each takes memory however short it is: 64 MiB here are 6 million of them."""
    path = tmp_path / f"rows{suffix}"
    member = gzip.compress(b'{"a": 1}\n' * MiB) if suffix == ".jsonl.gz" else gzip.compress(b',{"a": 1}' * MiB)
    path.write_bytes(member * 8 if suffix == ".jsonl.gz" else gzip.compress(b'[{"a": 1}') + member * 8)
    rows = 0
    with pytest.raises(UnreadableRowError, match=r"the file decompresses to \d+ rows, too many for its size") as caught:
        for _ in read_rows(path):
            rows += 1
    assert rows < 300_000
    assert str(caught.value).startswith(f"{path}:")


def test_a_gzip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "FREE_GZIP_BYTES", MiB // 8)
    path, plain = tmp_path / "rows.jsonl.gz", tmp_path / "rows.jsonl"
    data = (GOOD + b"\n") * 4_000
    for bomb in (data, b"\n" * len(data)):
        path.write_bytes(gzip.compress(bomb))
        with pytest.raises(
            UnreadableRowError, match=r"rows\.jsonl\.gz:\d+: the file decompresses to more than 200 times"
        ):
            list(read_rows(path))
    plain.write_bytes(data)
    assert sum(1 for _ in read_rows(plain)) == 4_000
    varied = b"".join(b'{"prompt": "%d"}\n' % (n * n) for n in range(20_000))
    path.write_bytes(gzip.compress(varied))
    assert sum(1 for _ in read_rows(path)) == 20_000


@pytest.mark.parametrize("read", READERS, ids=["score", "ppo", "train"])
def test_bad_rows_are_counted_and_not_kept(read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": 1}\n' * 3 * MAX_PROBLEMS)
    with peak_below(2 * MiB), pytest.raises(Refused) as caught:
        read(path)
    assert f"{path}:1: " in str(caught.value)
    assert str(MAX_PROBLEMS) in str(caught.value)
    assert len(str(caught.value)) < 50 * 600


def test_a_long_problem_is_shortened() -> None:
    problems = Problems(2)
    for _ in range(5):
        problems.add("x" * 1_000_000)
    assert problems.count == 5
    assert [len(text) for text in problems.first] == [503, 503]


def test_a_row_of_a_million_invalid_messages_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for field in ("prompt", "prompt_ids", "response_ids", "token_offsets"):
        row: dict[str, Any] = {"prompt": "p", "response": "r", field: [{}] * 100_000}
        path.write_text(json.dumps(row))
        with peak_below(40 * MiB), pytest.raises(RowsError, match=r"rows.jsonl:1: "):
            score_rows(path)


def test_files_that_cannot_be_read_twice_are_refused(tmp_path: Path) -> None:
    import os

    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    for read in READERS:
        with pytest.raises(Refused, match=r"rows\.jsonl: is not a regular file"):
            read(pipe)


def test_line_ends_and_byte_order_marks_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    digests = set()
    for data in (GOOD + b"\n" + GOOD, b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n" + GOOD):
        path.write_bytes(data)
        digests.add(score_rows(path).sha256)
    assert len(digests) == 1


def test_any_prefix_of_a_file_is_read_or_refused(tmp_path: Path) -> None:
    """A file that is still being copied: rows or an error, never anything else."""
    whole = gzip.compress(b"\n".join([GOOD] * 50))
    path = tmp_path / "rows.jsonl.gz"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        for read in READERS:
            with pytest.raises(Refused, match=r"rows\.jsonl\.gz"):
                read(path)


def test_parse_json_accepts_json_and_nothing_else() -> None:
    for text in ('{"a": "\\u0000"}', '{"a": "\\ud83d\\ude42"}', '{"a": 1e300}', "1" * 1000, '{"a": [[[[[]]]]]}'):
        assert parse_json(text.encode()) == json.loads(text)
