"""Bad rows that are skipped are counted and written with their reasons, and nothing else is lost for them."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from redline import RewardClient
from redline.errors import PolicyError, RowsError
from redline.files import row_files
from redline.files.row_files import BadRowError, UnknownFormatError, read_rows
from redline.http.retry import NO_RETRY
from redline.ppo.prompts import load_prompt_rows, load_prompts, usable_prompts
from redline.preference_data.checked_rows import CheckedRows
from redline.preference_data.row_report import RowReport
from redline.preference_data.turns import single_reply
from redline.testing import FakeService
from redline_cli.app import app
from redline_cli.bad_rows import BadRowPolicy, row_report
from redline_cli.commands import correct, score
from redline_model.errors import DataError
from redline_trainer.load_pairs import load_pairs

MiB = 2**20
GOOD = {"prompt": "p", "response": "r", "chosen": "a", "rejected": "b"}


def written(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def accept_with_prompt(where: str, row: dict[str, Any]) -> dict[str, Any]:
    if "prompt" not in row:
        raise BadRowError("no prompt")
    return row


def checked(path: Path, report: RowReport) -> int:
    return CheckedRows(path, accept_with_prompt, report=report).good


READERS: dict[str, Callable[[Path, RowReport], int]] = {
    "score": checked,
    "ppo": lambda path, report: len(load_prompt_rows(path, report)),
    "train": lambda path, report: len(load_pairs([path], report)[0]),
}
each_reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


# --- what every reader takes ------------------------------------------------------------------------------


@each_reader
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.json.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_reader_accepts_every_file_format(
    read: Callable[[Path, RowReport], int], name: str, mark: bytes, tmp_path: Path
) -> None:
    rows = [GOOD, {**GOOD, "prompt": "größer\u2028"}, GOOD]
    if ".jsonl" in name:
        data = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    else:
        data = json.dumps(rows, indent=1, ensure_ascii=False).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(mark + data) if name.endswith(".gz") else mark + data)
    assert read(path, RowReport()) == 3


@each_reader
def test_every_reader_refuses_other_files(read: Callable[[Path, RowReport], int], tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", [GOOD])
    reason = r"rows\.csv: unknown data format; supported are \.jsonl, \.jsonl\.gz, \.json, \.json\.gz"
    with pytest.raises((RowsError, DataError), match=reason):
        read(path, RowReport())


def test_a_link_is_read_as_its_target(tmp_path: Path) -> None:
    """As /dev/stdin is when a file is redirected to it."""
    (tmp_path / "stdin").symlink_to(write(tmp_path / "rows.jsonl", [GOOD]))
    assert [row.value for row in read_rows(tmp_path / "stdin")] == [GOOD]
    (tmp_path / "rows.jsonl").rename(tmp_path / "rows")
    (tmp_path / "rows.json").symlink_to(write(tmp_path / "rows", [json.dumps([GOOD, GOOD])]))
    assert [row.value for row in read_rows(tmp_path / "rows.json")] == [GOOD, GOOD]
    with pytest.raises(UnknownFormatError):
        list(read_rows(tmp_path / "rows"))


# --- skipping ----------------------------------------------------------------------------------------------


@each_reader
def test_bad_rows_are_refused_unless_they_are_skipped(read: Callable[[Path, RowReport], int], tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [GOOD, "not json", GOOD, [], {}, GOOD])
    with pytest.raises((RowsError, DataError), match=r"rows\.jsonl:2: not JSON"):
        read(path, RowReport())
    out = tmp_path / "new" / "skipped.jsonl"
    shown: list[str] = []
    with RowReport(skips=True, file=out, show=shown.append) as report:
        assert read(path, report) == 3
    rows = written(out)
    assert [(row["file"], row["row"]) for row in rows] == [(str(path), 2), (str(path), 4), (str(path), 5)]
    assert rows[0]["reason"].startswith("not JSON")
    assert rows[1]["reason"] == "a row must be an object, not list"
    assert "missing" in rows[2]["reason"] or "prompt" in rows[2]["reason"]
    assert shown[0] == f"skipped 3 of 6 rows; the reasons are in {out}"


@each_reader
def test_a_file_with_only_bad_rows_is_an_error(read: Callable[[Path, RowReport], int], tmp_path: Path) -> None:
    path, out = write(tmp_path / "rows.jsonl", [{"x": 1}, "[]"]), tmp_path / "skipped.jsonl"
    with (
        pytest.raises((RowsError, DataError), match=r"(?s)rows\.jsonl:1: .*rows\.jsonl:2: a row must be an object"),
        RowReport(skips=True, file=out) as report,
    ):
        read(path, report)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"], "no file is left half written"


@each_reader
def test_a_file_that_cannot_be_read_to_its_end_is_always_an_error(
    read: Callable[[Path, RowReport], int], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl.gz"
    lines = b"".join(json.dumps({**GOOD, "prompt": str(n * n)}).encode() + b"\n" for n in range(999))
    path.write_bytes(gzip.compress(lines)[:-500])
    with pytest.raises((RowsError, DataError), match=r"rows\.jsonl\.gz:\d+: cannot be read"):
        read(path, RowReport(skips=True))
    path = write(tmp_path / "rows.json", [f"[{json.dumps(GOOD)}, {{]"])
    with pytest.raises((RowsError, DataError), match=r"rows\.json:row 2: not JSON"):
        read(path, RowReport(skips=True))


@each_reader
def test_hundreds_of_thousands_of_bad_rows_take_no_memory(
    read: Callable[[Path, RowReport], int], tmp_path: Path
) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "skipped.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + b"{}\n" * 50_000)
    tracemalloc.start()
    try:
        with RowReport(skips=True, file=out) as report:
            assert read(path, report) == 1
        assert tracemalloc.get_traced_memory()[1] < 2 * MiB
    finally:
        tracemalloc.stop()
    assert report.skipped.count == 50_000
    assert out.read_bytes().count(b"\n") == 50_000
    assert len(report.skipped.first) == 50


@each_reader
def test_a_row_that_is_too_long_is_skipped_and_the_next_is_read(
    read: Callable[[Path, RowReport], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "MAX_ROW_BYTES", 1000)
    path = write(tmp_path / "rows.jsonl", [GOOD, {**GOOD, "x": "y" * 3500}, GOOD])
    with pytest.raises((RowsError, DataError), match=r"rows\.jsonl:2: the line is longer than 1,000 bytes"):
        read(path, RowReport())
    report = RowReport(skips=True)
    assert read(path, report) == 2
    assert report.skipped.first == [f"{path}:2: the line is longer than 1,000 bytes"]


@each_reader
def test_an_invalid_number_makes_one_row_of_a_list_bad(read: Callable[[Path, RowReport], int], tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "score": float("nan")}, {**GOOD, "x": "HALF"}, GOOD]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=2).replace("HALF", r"\ud83d"))
    report = RowReport(skips=True)
    assert read(path, report) == 2
    assert report.skipped.first == [
        f"{path}:row 2: not JSON: NaN is no JSON number",
        f"{path}:row 3: is not valid Unicode: it holds half a surrogate pair",
    ]


def test_a_report_without_a_file_shows_the_first_rows_and_counts_columns(tmp_path: Path) -> None:
    shown: list[str] = []
    with RowReport(skips=True, show=shown.append) as report:
        report.rows = 100
        for n in range(60):
            assert report.skip(f"f:{n}", "bad")
        for _ in range(3):
            report.ignore(["source"])
        report.ignore(["id"])
    assert shown[0] == "skipped 60 of 100 rows"
    assert shown[1:51] == [f"  f:{n}: bad" for n in range(50)]
    assert shown[51:] == ["  ... and 10 more", "ignored columns: source (3 rows), id (1 row)"]
    assert not RowReport().skip("f:1", "bad")


def test_very_many_columns_are_counted_in_bounded_memory() -> None:
    report = RowReport()
    for n in range(10_000):
        report.ignore([f"{n:05}" + "x" * 100])
    assert len(report.ignored) == 101
    assert report.ignored["others"] == 9900
    assert max(map(len, report.ignored)) < 70


def test_an_earlier_file_of_skipped_rows_is_removed_if_nothing_was_skipped(tmp_path: Path) -> None:
    out = write(tmp_path / "skipped.jsonl", ["old"])
    with RowReport(skips=False, file=out):
        pass
    assert out.exists()
    with RowReport(skips=True, file=out):
        pass
    assert not out.exists()


def test_where_skipped_rows_are_written(tmp_path: Path) -> None:
    def place(out: str, *, is_folder: bool = False) -> str:
        report = row_report(BadRowPolicy.SKIP, tmp_path / out, is_folder=is_folder)
        report.skip("f:1", "bad")
        report.finish()
        return next(path.name for path in tmp_path.iterdir() if path.name == f"{out.split('.')[0]}-skipped.jsonl")

    assert place("scores.jsonl") == "scores-skipped.jsonl"
    assert place("answers.parquet") == "answers-skipped.jsonl"
    assert place("rm", is_folder=True) == "rm-skipped.jsonl"
    for out in (None, Path("/dev/stdout")):
        report = row_report(BadRowPolicy.SKIP, out)
        report.skip("f:1", "bad")
        report.finish()
        assert report.lines() == ["skipped 1 of 0 rows", "  f:1: bad"]


# --- score and correct -------------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeService:
    service = FakeService(lambda word: float(len(word)))
    client: Any = partial(RewardClient, transport=service.transport, retry=NO_RETRY)
    monkeypatch.setattr(score, "RewardClient", lambda url, key=None: client(url, key=key))
    monkeypatch.setattr(correct, "RewardClient", client)
    return service


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


ROWS = [
    {"id": "a", "prompt": "Say it.", "response": "x"},
    "not json",
    {"id": "c", "prompt": "Say it."},
    {"id": 4, "prompt": "Say it.", "response": "xxx", "topic": "letters"},
]


@pytest.mark.parametrize("command", ["score", "correct"])
def test_a_skipped_row_keeps_its_place_and_fails_nothing(fake: FakeService, command: str, tmp_path: Path) -> None:
    rows, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl"
    refused = run(command, rows, "--out", out)
    assert isinstance(refused.exception, RowsError)
    assert not out.exists()
    done = run(command, rows, "--out", out, "--on-bad-row", "skip")
    assert done.exit_code == 0, done.output
    results = written(out)
    assert [row.get("id") for row in results] == ["a", None, "c", "4"], "line n is the answer to row n"
    assert ["error" in row for row in results] == [False, True, True, False]
    assert results[1]["error"]["code"] == "invalid_request"
    skipped = written(tmp_path / "out-skipped.jsonl")
    assert [row["row"] for row in skipped] == [2, 3]
    assert [row["reason"] for row in skipped] == [row["error"]["message"] for row in results[1:3]]
    assert "skipped 2 of 4 rows" in done.output
    assert done.output.count("ignored columns: topic (1 row)") == 1


def test_a_skipped_pair_keeps_its_place(fake: FakeService, tmp_path: Path) -> None:
    pairs = [
        {"id": 1, "prompt": "Say it.", "chosen": "xx", "rejected": "x"},
        {"id": 2, "prompt": "Say it.", "chosen": "xx"},
        {"prompt": "Say it.", "chosen": "x", "rejected": "xx", "tools": [{"name": "weather"}]},
        {"prompt": "Say it.", "chosen": "x", "rejected": "xx"},
    ]
    path, out = write(tmp_path / "pairs.jsonl", pairs), tmp_path / "out.jsonl"
    done = run("score", "--pairs", path, "--out", out, "--on-bad-row", "skip")
    assert done.exit_code == 0, done.output
    results = written(out)
    assert [row["id"] for row in results] == [1, 2, f"{path}:3", f"{path}:4"]
    assert [[side in row and "score" in row[side] for side in ("chosen", "rejected")] for row in results] == [
        [True, True],
        [False, False],
        [True, True],
        [True, True],
    ]
    assert "'rejected' is missing" in results[1]["chosen"]["error"]["message"]
    assert "33.3% of 3 pairs" in done.output


def test_rows_of_items_keep_all_request_fields(fake: FakeService, tmp_path: Path) -> None:
    call = [{"type": "function", "function": {"name": "weather", "arguments": {}}}]
    turns: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "Say it."}], "name": None}]
    rows = [
        {"prompt": turns, "response": [{"role": "assistant", "content": "x"}]},
        {"prompt": "Say it.", "response": [{"role": "assistant", "content": "x", "tool_calls": call}]},
        {"prompt": "Say it.", "response": [{"role": "user", "content": "x"}]},
        {"prompt": "Say it.", "response": "x", "tools": [{"name": "weather"}]},
    ]
    path, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    assert run("score", path, "--out", out, "--on-bad-row", "skip").exit_code == 0
    results = written(out)
    assert results[0]["score"] == results[3]["score"] == 1.0
    reasons = [row["error"]["message"] for row in results[1:3]]
    assert "'tool_calls'" in reasons[0]
    assert "one assistant turn" in reasons[1]
    assert fake.requests[-1].items[-1].tools == [{"name": "weather"}]


def test_a_reply_is_text_or_one_assistant_turn() -> None:
    assert single_reply("x", "response") == "x"
    assert single_reply([{"role": "assistant", "content": [{"type": "text", "text": "x"}]}], "response") == "x"
    for bad in (3, [], [{"role": "assistant", "content": "x"}] * 2, [{"role": "assistant", "content": 3}]):
        with pytest.raises(BadRowError, match="'response'"):
            single_reply(bad, "response")


# --- the prompts of a policy -------------------------------------------------------------------------------


def test_every_prompt_is_checked_before_the_first_is_used(tmp_path: Path) -> None:
    rows = [{"prompt": word} for word in ["fine", "long", "odd", "fine too", "empty"]]
    path = write(tmp_path / "prompts.jsonl", rows)
    tried: list[Any] = []

    def prompt_ids(prompt: Any) -> list[int]:
        tried.append(prompt)
        if prompt == "long":
            raise PolicyError("a prompt has 9 tokens; the policy has room for 5")
        if prompt == "odd":
            raise ZeroDivisionError("division by zero\nin a template")
        return [] if prompt == "empty" else [1]

    with pytest.raises(RowsError) as caught:
        usable_prompts(load_prompt_rows(path), prompt_ids)
    assert tried == [row["prompt"] for row in rows]
    assert str(caught.value).split("; ") == [
        f"{path}:2: a prompt has 9 tokens",
        "the policy has room for 5",
        f"{path}:3: the policy's chat template refuses the prompt: division by zero",
        f"{path}:5: the prompt has no tokens",
    ]
    report = RowReport(skips=True)
    assert usable_prompts(load_prompt_rows(path, report), prompt_ids, report) == ["fine", "fine too"]
    assert report.skipped.count == 3
    with pytest.raises(RowsError, match=r"no prompt can be used; .*prompts\.jsonl:1: the prompt has no tokens"):
        usable_prompts(load_prompt_rows(path), lambda prompt: [], RowReport(skips=True))


def test_prompts_are_read_from_pairs_in_any_format(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    replies = [[*turns, {"role": "assistant", "content": text}] for text in ("Hello.", "Go.")]
    rows = [
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."},
        {"chosen": replies[0], "rejected": replies[1]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: Go."},
        {"messages": replies[0]},
    ]
    assert load_prompts(write(tmp_path / "pairs.jsonl", rows)) == ["Hi", turns, turns, turns]


def test_skipped_rows_are_not_sent_to_the_service(
    fake: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Any] = []

    def counting(request: httpx.Request) -> httpx.Response:
        if request.content:
            requests.extend(json.loads(request.content)["items"])
        return fake.transport.handle_request(request)

    client: Any = partial(RewardClient, transport=httpx.MockTransport(counting), retry=NO_RETRY)
    monkeypatch.setattr(score, "RewardClient", client)
    path = write(tmp_path / "rows.jsonl", ROWS)
    assert run("score", path, "--out", tmp_path / "out.jsonl", "--on-bad-row", "skip").exit_code == 0
    assert [item["id"] for item in requests] == ["a", "4"]
