"""Whole data sets scored: every row once, in order, whatever stops the run; in JSONL, Parquet, or columns."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from redline import ItemsFailedError, RewardClient, ScoreColumns
from redline.errors import CommandError, ServiceError
from redline.files.row_files import BadRowError
from redline.http.retry import NO_RETRY
from redline.preference_data.checked_rows import CheckedRows
from redline.preference_data.row_report import RowReport
from redline.testing import FakeService
from redline.wire import SCORE_PATH, ErrorBody, ErrorCode, ErrorResponse, ResponseItem, ScoreItem
from redline_cli.app import app
from redline_cli.commands import score as command
from redline_cli.output import Output
from redline_cli.request_rows import row_item

Handler = Callable[[httpx.Request], httpx.Response]


class StoppingService:
    """A fake service that refuses every scoring request after the first ``max_requests``, so that the run ends."""

    def __init__(self, max_requests: int, digest: str = "sha256:fake") -> None:
        self.fake = FakeService(lambda word: float(len(word)), digest=digest)
        self.max_requests = max_requests
        self.requests = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == SCORE_PATH:
            self.requests += 1
            if self.requests > self.max_requests:
                error = ErrorBody.of(ErrorCode.UNSUPPORTED, "stopped")
                return httpx.Response(422, json=ErrorResponse(error=error).model_dump())
        return self.fake.transport.handle_request(request)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], None]:
    """Have the command speak to a handler, four rows a block, one request a block."""

    def connect(handler: Handler) -> None:
        client = partial(RewardClient, transport=httpx.MockTransport(handler), retry=NO_RETRY)
        monkeypatch.setattr(command, "RewardClient", lambda url, key=None: client(url, key=key))
        monkeypatch.setattr(command, "_BLOCK", 4)

    return connect


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["score", *arguments])


def write_rows(path: Path, count: int) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        for n in range(count):
            file.write(json.dumps({"id": n, "prompt": "Say it.", "response": "x" * (n + 1)}) + "\n")
    return path


def scores(path: Path) -> list[float]:
    return [json.loads(line)["score"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_stopped_run_resumes_after_its_last_row(use: Callable[[Handler], None], tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl.gz", 30), tmp_path / "out.jsonl"
    use(StoppingService(3))
    assert isinstance(run(str(rows), "--out", str(out)).exception, ServiceError)
    assert not out.exists()
    kept = (tmp_path / "out.jsonl.partial").read_text(encoding="utf-8").count("\n") - 1
    assert kept in {8, 12}  # the block ahead may have been answered or not
    again = StoppingService(1000)
    use(again)
    result = run(str(rows), "--out", str(out))
    assert result.exit_code == 0, result.output
    assert scores(out) == [float(n + 1) for n in range(30)]
    assert again.requests == -(-(30 - kept) // 4)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out.jsonl"]


def test_an_incomplete_last_row_is_scored_again(use: Callable[[Handler], None], tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl", 10), tmp_path / "out.jsonl"
    use(StoppingService(2))
    run(str(rows), "--out", str(out))
    partial_file = tmp_path / "out.jsonl.partial"
    partial_file.write_bytes(partial_file.read_bytes()[:-20])
    use(StoppingService(1000))
    assert run(str(rows), "--out", str(out)).exit_code == 0
    assert scores(out) == [float(n + 1) for n in range(10)]


@pytest.mark.parametrize("change", ["rows", "options", "model"])
def test_a_partial_file_of_another_run_is_not_resumed(
    use: Callable[[Handler], None], tmp_path: Path, change: str
) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl", 10), tmp_path / "out.jsonl"
    use(StoppingService(2))
    run(str(rows), "--out", str(out))
    if change == "rows":
        rows.write_text(rows.read_text().replace("Say it.", "Sing it."))
    use(StoppingService(1000, digest="sha256:other" if change == "model" else "sha256:fake"))
    result = run(str(rows), "--out", str(out), *(["--aggregate", "mean"] if change == "options" else []))
    assert isinstance(result.exception, CommandError)
    assert "belongs to a run with another" in str(result.exception)
    assert (tmp_path / "out.jsonl.partial").exists()


def test_a_model_changed_within_a_run_stops_it(use: Callable[[Handler], None], tmp_path: Path) -> None:
    service = StoppingService(1000)

    def swapped(request: httpx.Request) -> httpx.Response:
        answer = service(request)
        service.fake.digest = "sha256:new" if service.requests >= 1 else "sha256:fake"
        return answer

    use(swapped)
    result = run(str(write_rows(tmp_path / "rows.jsonl", 20)), "--out", str(tmp_path / "out.jsonl"))
    assert "changed its model" in str(result.exception)


def test_pairs_in_every_format_are_scored_and_counted_across_a_resume(
    use: Callable[[Handler], None], tmp_path: Path
) -> None:
    def turn(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    forms = [
        {"id": "a", "prompt": "Say it.", "chosen": "longer", "rejected": "short"},
        {"prompt": [{"role": "user", "content": "Hi"}], "chosen": turn("xx"), "rejected": turn("x")},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: yes indeed", "rejected": "\n\nHuman: Hi\n\nAssistant: no"},
        {"prompt": "Tie.", "chosen": "same", "rejected": "same"},
        {"prompt": "Lost.", "chosen": "x", "rejected": "xxx"},
        {"prompt": "Nothing.", "chosen": "x", "rejected": ""},
    ]
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in forms))
    use(StoppingService(1))
    run("--pairs", str(pairs), "--out", str(out))
    use(StoppingService(1000))
    result = run("--pairs", str(pairs), "--out", str(out))
    assert "1 of 12 not scored" in str(result.exception)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a", *(f"{pairs}:{n}" for n in (2, 3, 4, 5, 6))]
    assert [row["chosen"]["score"] - row["rejected"]["score"] for row in rows[:5]] == [1.0, 1.0, 7.0, 0.0, -2.0]
    assert "chosen ranked above rejected in 70.0% of 5 pairs" in result.output


def test_parquet_and_jsonl_have_the_same_rows(use: Callable[[Handler], None], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = write_rows(tmp_path / "rows.jsonl", 9)
    with rows.open("a") as file:
        file.write(json.dumps({"id": "empty", "prompt": "Say it.", "response": ""}) + "\n")
    use(StoppingService(1000))
    for name in ("out.jsonl", "out.parquet"):
        assert "1 of 10 not scored" in str(run(str(rows), "--out", str(tmp_path / name)).exception)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [{key: value for key, value in row.items() if value is not None} for row in table] == rows


def test_rows_are_not_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for n in range(2000):
            file.write(json.dumps({"prompt": str(n), "response": "x" * 5000}) + "\n")
    tracemalloc.start()
    try:
        rows = CheckedRows(path, lambda where, row: row)
        assert rows.count == 2000
        assert sum(1 for _ in rows) == 2000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # of ten


# --- columns ---------------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> FakeService:
    fake = FakeService(lambda word: float(len(word)))
    monkeypatch.setattr("redline.dataset_columns.RewardClient", partial(RewardClient, transport=fake.transport))
    return fake


def test_columns_of_a_data_set(served: FakeService) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict(
        {"prompt": ["a", "b", "c"], "chosen": ["one two", "three", ""], "rejected": ["x", "yy", "zzz"]}
    )
    rows = data.map(ScoreColumns(responses=("chosen", "rejected")), batched=True, batch_size=2)
    assert rows["chosen_score"] == [6.0, 5.0, None]
    assert rows["rejected_score"] == [1.0, 2.0, 3.0]
    assert rows["chosen_rewards"] == [[3.0, 3.0, 0.0], [5.0, 0.0], None]
    assert rows["chosen_offsets"] == [[[0, 3], [3, 7], [7, 7]], [[0, 5], [5, 5]], None]
    assert rows["chosen_error"] == ["", "", "the response is empty"]
    assert rows["prompt"] == ["a", "b", "c"]


def test_columns_can_be_pickled_and_must_succeed_raises(served: FakeService) -> None:
    columns = ScoreColumns(must_succeed=True)
    assert columns({"prompt": ["a"], "response": ["bb"]})["response_score"] == [2.0]
    again = pickle.loads(pickle.dumps(columns))
    with pytest.raises(ItemsFailedError):
        again({"prompt": ["a"], "response": [""]})
    with pytest.raises(ValueError, match="no response column"):
        ScoreColumns(responses=())


def test_columns_have_their_types_if_the_first_batch_fails(served: FakeService) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"prompt": ["a", "b", "c"], "response": ["", None, "one"]})
    score = ScoreColumns()
    rows = data.map(score, batched=True, batch_size=1, features=score.features(data.features))
    assert rows["response_score"] == [None, None, 3.0]
    assert rows["response_error"] == ["the response is empty", "the prompt or the response is missing", ""]
    with pytest.raises(TypeError, match="batched=True"):
        score({"prompt": "a", "response": "b"})


def test_another_model_is_another_fingerprint(served: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = pytest.importorskip("datasets.fingerprint").Hasher.hash
    first = fingerprint(ScoreColumns())
    assert fingerprint(ScoreColumns()) == first
    monkeypatch.setattr(served, "digest", "sha256:" + "1" * 64)
    assert fingerprint(ScoreColumns()) != first


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    with Output(tmp_path / "out.jsonl", {"asked": 1}) as output:
        output.write("row 1", {"score": 1.0}, [])
        with pytest.raises(CommandError, match="another process"):
            Output(tmp_path / "out.jsonl", {"asked": 1})
    assert (tmp_path / "out.jsonl").read_text() == '{"score": 1.0}\n'


def test_missing_output_folders_are_created(tmp_path: Path) -> None:
    for name in ("out.jsonl", "out.parquet"):
        with Output(tmp_path / "new" / name / name, {}) as output:
            output.write("row 1", {"score": 1.0}, [])
        assert [path.name for path in (tmp_path / "new" / name).iterdir()] == [name]


def test_a_run_that_opens_a_finished_partial_file_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was opened just before its writer finished and removed it is not written."""
    out, opened = tmp_path / "out.jsonl", os.open
    first = Output(out, {})
    first.write("row 1", {"score": 1.0}, [])

    def open_and_finish_first(path: Any, *more: Any) -> int:
        descriptor = opened(path, *more)
        if str(path).endswith(".partial"):
            monkeypatch.setattr(os, "open", opened)
            first.__exit__(None, None, None)
        return descriptor

    monkeypatch.setattr(os, "open", open_and_finish_first)
    second = Output(out, {})
    second.write("row 1", {"score": 2.0}, [])
    second.__exit__(None, None, None)
    assert out.read_text() == '{"score": 2.0}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_parquet_accepts_ids_of_every_type(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    with Output(tmp_path / "out.parquet", {}) as output:
        for n, name in enumerate([7, None, "x"]):
            output.write(f"row {n}", {"id": name, "score": 1.0}, [])
    assert parquet.read_table(tmp_path / "out.parquet")["id"].to_pylist() == ["7", None, "x"]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


_RUDE = [{"role": "system", "content": "Be rude."}, _user("Say hi")]
_FORMS: list[tuple[dict[str, Any], Any]] = [
    ({"prompt": "Say hi"}, "Say hi"),
    ({"system": "Be rude.", "prompt": "Say hi"}, _RUDE),
    ({"prompt": _RUDE}, _RUDE),
    ({"prompt": "\n\nHuman: Say hi\n\nAssistant:"}, [_user("Say hi")]),
    ({"question": "Say hi"}, "Say hi"),
    ({"instruction": "Say", "input": "hi"}, "Say\nhi"),
    ({"messages": [_user("Say hi")]}, [_user("Say hi")]),
    ({"messages": [_user("Say hi"), {"role": "assistant", "content": "hello"}]}, [_user("Say hi")]),
]


def _request_prompt(item: Any) -> Any:
    prompt = item.payload()["prompt"] if hasattr(item, "payload") else item["prompt"]
    return (
        prompt if isinstance(prompt, str) else [{name: turn[name] for name in ("role", "content")} for turn in prompt]
    )


@pytest.mark.parametrize(("row", "prompt"), _FORMS)
def test_prompts_are_parsed_like_those_of_pairs(
    served: FakeService, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], prompt: Any
) -> None:
    for kind in (ScoreItem, ResponseItem):
        requests = row_item(kind)("here", {"id": 7, **row, "response": "hello", "finished": None})
        assert [_request_prompt(item) for item in requests.items] == [prompt]
        assert (requests.id, requests.items[0].id, requests.items[0].response, requests.items[0].finished) == (
            7,
            "7",
            "hello",
            True,
        )
    sent: list[Any] = []
    score = RewardClient.score

    def recording_score(client: RewardClient, items: Any, **more: Any) -> Any:
        sent.extend(items)
        return score(client, items, **more)

    monkeypatch.setattr(RewardClient, "score", recording_score)
    columns = ScoreColumns()({name: [value] for name, value in {**row, "response": "hello"}.items()})
    assert columns["response_error"] == [""]
    assert [_request_prompt(item) for item in sent] == [prompt]


def test_rows_with_ids_and_offsets_are_accepted() -> None:
    ids = {"prompt_ids": [1], "response_ids": [2], "tokenizer_fingerprint": "f", "finished": False, "system": "S"}
    report = RowReport()
    item = row_item(ScoreItem, report)("here", ids).items[0]
    assert (item.prompt_ids, item.response_ids, item.prompt, item.finished) == ([1], [2], None, False)
    assert report.ignored == {"system": 1}
    spans = row_item(ScoreItem)("here", {"prompt": "p", "response": "ab", "token_offsets": [[0, 2]], "tools": "[]"})
    assert (spans.items[0].token_offsets, spans.items[0].tools) == ([(0, 2)], None)
    tools = row_item(ScoreItem)("here", {"prompt": "p", "response": "ab", "tools": '[{"name": "x"}]'})
    assert tools.items[0].tools == [{"name": "x"}]


def test_an_empty_response_is_a_bad_row_if_bad_rows_are_skipped() -> None:
    row = {"prompt": "p", "response": " "}
    assert len(row_item(ScoreItem, RowReport())("here", row).items) == 1, "the service says so"
    with pytest.raises(BadRowError, match="'response' is empty"):
        row_item(ScoreItem, RowReport(skips=True))("here", row)


def test_a_row_whose_finished_is_not_true_or_false_is_bad() -> None:
    with pytest.raises(BadRowError, match="finished"):
        row_item(ScoreItem)("here", {"prompt": "p", "response": "a", "finished": "no"})


def test_empty_responses_are_skipped_on_request(use: Callable[[Handler], None], tmp_path: Path) -> None:
    use(FakeService(lambda word: 1.0).transport.handle_request)
    for option, rows in (
        ([], [{"prompt": "p", "response": text} for text in ("a", "", " ", "b")]),
        (["--pairs"], [{"prompt": "p", "chosen": text, "rejected": "x"} for text in ("a", "", " ", "b")]),
    ):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = tmp_path / f"{len(option)}.jsonl"
        done = CliRunner().invoke(app, ["score", *option, str(path), "--out", str(out), "--on-bad-row", "skip"])
        assert done.exit_code == 0, done.output
        assert "skipped 2 of 4 rows" in done.output
        assert len(out.read_text().splitlines()) == 4, "an error stands in the place of each"


def test_columns_without_prompts_are_missing(served: FakeService) -> None:
    for columns, batch in (
        (ScoreColumns(), {"response": ["a"], "system": ["s"]}),
        (ScoreColumns(prompt="ask"), {"prompt": ["p"], "response": ["a"]}),
    ):
        with pytest.raises(KeyError):
            columns(batch)
    named = ScoreColumns(prompt="ask")({"ask": ["p"], "response": ["aa"]})
    assert named["response_score"] == [2.0]


@pytest.mark.parametrize(
    ("kind", "hint"),
    [(ScoreItem, r"'rejected', not one 'response' \(score pairs with --pairs FILE\)$"), (ResponseItem, "'response'$")],
)
def test_a_pair_in_a_file_of_responses_is_refused_with_a_hint(kind: type[ResponseItem], hint: str) -> None:
    for prompt in ({"prompt": "p"}, {}):
        with pytest.raises(BadRowError, match=hint):
            row_item(kind)("rows.jsonl:1", {**prompt, "chosen": "a", "rejected": "b"})
    item = row_item(kind)("rows.jsonl:1", {"prompt": "p", "response": "r", "chosen": "a", "rejected": "b"}).items[0]
    assert item.response == "r"
    with pytest.raises(BadRowError, match="exactly one of 'response'"):
        row_item(kind)("rows.jsonl:1", {"prompt": "p"})


def test_score_suggests_pairs_for_a_file_of_pairs(use: Callable[[Handler], None], tmp_path: Path) -> None:
    use(StoppingService(1000))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    assert "--pairs FILE" in str(run(str(path)).exception)
    assert run("--pairs", str(path)).exit_code == 0
