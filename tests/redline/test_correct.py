"""Corrections through both clients and the command: one call, however many requests it takes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.text import Text
from typer.testing import CliRunner

from redline import (
    AsyncRewardClient,
    CorrectOptions,
    CorrectResult,
    ItemCorrection,
    ItemError,
    ItemsFailedError,
    ProtocolError,
    ResponseItem,
    RetryPolicy,
    RewardClient,
    ScoreItem,
    ServiceError,
)
from redline.testing import FakeService
from redline.wire import CORRECT_PATH, ERROR_TABLE, Edit, ErrorBody, ErrorCode, ErrorResponse
from redline_cli import app as command_line
from redline_cli.app import app
from redline_cli.commands import correct as command
from redline_cli.redlining import render_correction

AT_ONCE = RetryPolicy(max_attempts=4, first_wait_s=0.0, longest_wait_s=0.0)
Handler = Callable[[httpx.Request], httpx.Response]
ITEMS = [{"id": str(n), "prompt": "Say it.", "response": "x" * n} for n in range(1, 11)]


def shorter(response: str) -> str:
    """A rewriter with a fixed point: three characters."""
    return response[:-1] if len(response) > 3 else response


class RecordingService:
    """A fake service that notes the sizes of requests, refuses those over ``room``, and fails items by a script."""

    def __init__(self, room: int = 1000, **failing: list[ErrorCode]) -> None:
        self.fake = FakeService(lambda word: float(len(word)), rewrite=shorter)
        self.room = room
        self.failing = failing
        self.sizes: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        items = json.loads(request.content)["items"]
        assert request.url.path == CORRECT_PATH
        self.sizes.append(len(items))
        if len(items) > self.room:
            body = ErrorResponse(error=ErrorBody.of(ErrorCode.TIMED_OUT, "not answered within 85 s"))
            return httpx.Response(ERROR_TABLE[ErrorCode.TIMED_OUT].status, json=body.model_dump())
        answer = json.loads(self.fake.transport.handler(request).content)  # type: ignore[union-attr]
        for position, item in enumerate(items):
            codes = self.failing.get(f"n{item.get('id')}")
            if codes:
                error = ErrorBody.of(codes.pop(0), "no").model_dump()
                answer["items"][position] = {"id": item["id"], "error": error}
        return httpx.Response(200, json=answer)


@pytest.fixture(params=[False, True], ids=["blocking", "asyncio"])
def correct(request: pytest.FixtureRequest) -> Callable[..., CorrectResult]:
    """One call of either client against a handler."""

    def call(handler: Handler, items: Any, options: CorrectOptions | None = None, **settings: Any) -> CorrectResult:
        settings = {"transport": httpx.MockTransport(handler), "retry": AT_ONCE, **settings}
        if not request.param:
            return RewardClient(**settings).correct(items, options=options)
        return asyncio.run(AsyncRewardClient(**settings).correct(items, options=options))

    return call


Correct = Callable[..., CorrectResult]


def test_chunks_keep_the_order_of_items(correct: Correct) -> None:
    service = RecordingService()
    result = correct(service, ITEMS, items_per_request=3)
    assert sorted(service.sizes) == [1, 3, 3, 3]
    assert [item.id for item in result.corrected()] == [item["id"] for item in ITEMS]
    assert [item.correction for item in result.corrected()] == [shorter(item["response"]) for item in ITEMS]
    assert result.digests == ("sha256:fake",)


def test_a_correction_request_that_times_out_is_sent_in_halves(correct: Correct) -> None:
    service = RecordingService(room=3)
    result = correct(service, ITEMS)
    assert [item.correction for item in result.corrected()] == [shorter(item["response"]) for item in ITEMS]
    assert service.sizes == [10, 5, 2, 3, 5, 2, 3]


def test_only_items_with_retryable_errors_are_sent_again(correct: Correct) -> None:
    service = RecordingService(n2=[ErrorCode.OUT_OF_MEMORY], n4=[ErrorCode.TOO_LONG])
    result = correct(service, ITEMS)
    assert service.sizes == [10, 1]
    assert [position for position, _ in result.failures] == [3]
    assert isinstance(result.items[1], ItemCorrection)
    assert isinstance(result.items[3], ItemError)
    with pytest.raises(ItemsFailedError, match=r"item 3 .*too_long"):
        result.corrected()


def test_a_refusal_fails_the_call(correct: Correct) -> None:
    with pytest.raises(ServiceError, match="timed_out"):
        correct(RecordingService(room=0), ITEMS[:1])


def test_items_and_options_arrive_unchanged(correct: Correct) -> None:
    service = RecordingService()
    items = [ResponseItem(prompt="Say it.", response="naïve 世界 🙂", finished=False), ITEMS[0]]
    correct(service, items, CorrectOptions(max_rounds=7, score_after=True, on_too_long="truncate"))
    (sent,) = service.fake.corrections
    first, second = (item.payload() for item in sent.items)
    assert first.pop("id")  # one that the client made up
    assert [first, second] == [
        {"prompt": "Say it.", "response": "naïve 世界 🙂", "finished": False},
        {**ITEMS[0], "finished": True},
    ]
    assert (sent.options.max_rounds, sent.options.score_after, sent.options.on_too_long) == (7, True, "truncate")


def test_score_items_are_accepted_unless_they_have_token_offsets(correct: Correct) -> None:
    service = RecordingService()
    (item,) = correct(service, [ScoreItem(prompt="Say it.", response="yes!")]).corrected()
    assert item.correction == "yes"
    with pytest.raises(ProtocolError, match="item 0: token_offsets"):
        correct(service, [ScoreItem(prompt="Say it.", response="yes", token_offsets=[(0, 3)])])
    assert service.sizes == [1]


def test_no_items_are_no_request(correct: Correct) -> None:
    service = RecordingService()
    assert correct(service, []) == CorrectResult(items=[], model=None, options=None, digests=())
    assert service.sizes == []


def test_one_response_has_one_correction() -> None:
    fake = FakeService(lambda word: float(len(word)), rewrite=shorter)
    options = CorrectOptions(max_rounds=16)
    blocking = RewardClient(transport=fake.transport).correct_one("Say it.", "abcdef", options=options)
    awaited = asyncio.run(AsyncRewardClient(transport=fake.transport).correct_one("Say it.", "abcdef", options=options))
    assert blocking == awaited
    assert (blocking.correction, blocking.rounds, blocking.is_fixed_point, blocking.is_complete) == (
        "abc",
        4,
        True,
        True,
    )
    assert (blocking.score_before, blocking.score_after) == (6.0, 3.0)


def test_the_fake_service_distinguishes_cycle_empty_and_max_rounds() -> None:
    table = {"a": "b", "b": "a", "gone": "", "x": "y", "y": "z"}
    fake = FakeService(lambda word: 1.0, rewrite=lambda response: table.get(response, response))
    client = RewardClient(transport=fake.transport)
    items = [{"prompt": "p", "response": response} for response in ("a", "gone", "x", "still")]
    result = client.correct(items, options=CorrectOptions(max_rounds=2)).corrected()
    assert [(item.correction, item.ended, item.rounds) for item in result] == [
        ("a", "cycle", 2),
        ("", "empty", 1),
        ("z", "max_rounds", 2),
        ("still", "fixed_point", 1),
    ]
    assert [item.score_after for item in result] == [1.0, None, None, 1.0]


# --- the command -----------------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeService:
    service = FakeService(lambda word: float(len(word)), rewrite=shorter)
    client = partial(RewardClient, transport=service.transport, retry=AT_ONCE)
    monkeypatch.setattr(command, "RewardClient", client)
    return service


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and error of ``redline correct ARGUMENTS``."""
    done = CliRunner().invoke(app, ["correct", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        # the border where errors become a line and a status is run(), around the application
        return 1, done.stdout, str(done.exception)
    return done.exit_code, done.stdout, done.stderr


def test_rows_come_out_in_order_with_their_ids(fake: FakeService, tmp_path: Path) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    extra = {"note": "kept out of the request", "token_offsets": [[0, 1]]}
    file.write_text("".join(json.dumps({**item, **extra, "id": n}) + "\n" for n, item in enumerate(ITEMS * 8)))
    status, printed, _ = run(str(file), "--max-rounds", "2", "--score-after", "--out", str(out))
    assert status == 0
    assert f"wrote {out}: 80 rows" in printed
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(n) for n in range(80)]
    assert [row["correction"] for row in rows] == [shorter(shorter(item["response"])) for item in ITEMS * 8]
    assert all(row["score_after"] == len(row["correction"]) for row in rows)
    assert {items.options.max_rounds for items in fake.corrections} == {2}
    assert max(len(items.items) for items in fake.corrections) <= 16


def test_a_failed_row_is_reported_and_the_others_are_written(fake: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "p", "response": "fine"}\n{"prompt": "p", "response": ""}\n')
    status, printed, stderr = run(str(file))
    first, second = (json.loads(line) for line in printed.splitlines() if line.startswith("{"))
    assert (first["correction"], second["error"]["code"]) == ("fin", "empty_response")
    assert status == 1
    assert stderr.startswith("1 of 2 not corrected: ")
    assert f"{file}:2" in stderr


def test_one_response_is_corrected_and_a_failure_is_status_1(fake: FakeService) -> None:
    status, printed, _ = run("--prompt", "p", "--response", "abcdef", "--max-rounds", "16")
    assert (status, json.loads(printed)["correction"]) == (0, "abc")
    assert run("--prompt", "p", "--response", "")[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [(), ("--prompt", "p"), ("--response", "r"), ("rows.jsonl", "--prompt", "p", "--response", "r")],
)
def test_exactly_one_kind_of_input_is_required(fake: FakeService, arguments: tuple[str, ...]) -> None:
    status, _, stderr = run(*arguments)
    assert status == 1
    assert "--prompt" in stderr
    assert fake.corrections == []


def test_too_many_rounds_are_refused_by_the_command_line(fake: FakeService) -> None:
    assert run("--prompt", "p", "--response", "r", "--max-rounds", "17")[0] == 2


def test_a_failed_command_ends_with_status_1(fake: FakeService, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr("sys.argv", ["redline", "correct", "--prompt", "p", "--response", ""])
    with pytest.raises(SystemExit) as ended:
        command_line.run()
    assert ended.value.code == 1
    assert capfd.readouterr().err.startswith("redline: item 0 could not be answered: ")


def test_the_terminal_view_shows_rounds_scores_and_edits() -> None:
    edits = [Edit(op="replace", start=9, end=12, text="round")]
    item = ItemCorrection(
        correction="Hold the round button.",
        ended="fixed_point",
        rounds=2,
        edits=edits,
        score_before=-3.0,
        score_after=0.0,
    )
    text: Text = render_correction("Hold the red button.", item)
    assert text.plain == "2 rewrites (fixed point), score -3.000 -> 0.000\n\nHold the redround button."
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert (styles["red"], styles["round"]) == ("red strike", "green underline")
    broken = item.model_copy(update={"ended": "incomplete", "rounds": 1, "score_after": None})
    assert render_correction("Hold the red button.", broken).plain.startswith(
        "1 rewrite (incomplete), score -3.000\n\n"
    )
    assert render_correction("Hold the red button.", broken).plain.endswith("button. …")
