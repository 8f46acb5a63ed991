"""Prompts that a policy cannot continue are found before anything is sampled, and named by file and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from redline.client import RewardClient
from redline.errors import ConnectionFailedError, RowsError
from redline.ppo.prompts import scorable_rows
from redline.testing import FakeService
from redline.wire import ErrorBody, ErrorCode, ItemError, ItemResult, ScoreItem
from redline_cli.app import app
from redline_cli.commands import ppo as command
from tests.conftest import CHAT_TEMPLATE, build_causal, build_tokenizer

STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}" + CHAT_TEMPLATE


@pytest.fixture(scope="module")
def strict_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its template refuses a system turn, and it reads 512 tokens."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = STRICT
    build_causal(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ppo(policy: Path, prompts: Path, out: Path, *more: str) -> Any:
    """With a service that is not there: what is refused before it is asked is not about the service."""
    arguments = ["ppo", "--policy", policy, "--prompts", prompts, "--out", out, "--steps", "1", *more]
    fixed = ["--url", "http://127.0.0.1:9", "--patience-s", "0.01", "--max-new-tokens", "4"]
    return CliRunner().invoke(app, [str(argument) for argument in [*arguments, *fixed]])


def test_every_prompt_that_a_policy_refuses_is_named_before_anything_else(strict_policy: Path, tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    rows = [{"prompt": "fine"}, {"prompt": turns}, {"prompt": "word " * 600}, {"system": "Be kind.", "question": "Hi"}]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = ppo(strict_policy, prompts, tmp_path / "out").exception
    assert isinstance(refused, RowsError)
    message = str(refused)
    assert "\n" not in message
    for row, reason in ((2, "no system turn here"), (3, "tokens"), (4, "no system turn here")):
        assert f"{prompts}:{row}: " in message
        assert reason in message.split(f"{prompts}:{row}: ")[1].split(f"{prompts}:")[0]
    assert not (tmp_path / "out").exists()
    result = ppo(strict_policy, prompts, tmp_path / "out", "--on-bad-row", "skip")
    assert isinstance(result.exception, ConnectionFailedError), "only now the service is asked"
    assert "skipped 3 of 4 rows" in result.output
    skipped = [json.loads(line) for line in (tmp_path / "out-skipped.jsonl").read_text().splitlines()]
    assert [row["row"] for row in skipped] == [2, 3, 4]


class Short(FakeService):
    """A reward model with room for ten words, whose template refuses one prompt."""

    def __init__(self) -> None:
        super().__init__(lambda word: 1.0)
        self.asked: list[Any] = []

    def _score_response(self, item: ScoreItem) -> ItemResult:
        self.asked.append(item.prompt)
        words = str(item.prompt).split()
        if len(words) > 10:
            return ItemError(id=item.id, error=ErrorBody.of(ErrorCode.TOO_LONG, "12 tokens, the limit is 10"))
        if "never" in words:
            return ItemError(id=item.id, error=ErrorBody.of(ErrorCode.INVALID_PROMPT, "no such prompt"))
        return super()._score_response(item)


def test_prompts_that_the_reward_model_refuses_are_bad_rows_before_the_first_step(
    strict_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Short()
    monkeypatch.setattr(
        command, "RewardClient", lambda url, **more: RewardClient(url, transport=service.transport, **more)
    )
    rows = [{"prompt": text} for text in ("one", "word " * 12, "two", "one", "never mind", "three")]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = ppo(strict_policy, prompts, tmp_path / "out").exception
    assert isinstance(refused, RowsError)
    limit = "the reward model refuses the prompt: 12 tokens, the limit is 10"
    reason = "the reward model refuses the prompt: no such prompt"
    assert str(refused) == f"{prompts}:2: {limit}; {prompts}:5: {reason}"
    assert len(service.asked) == 5, "every distinct prompt once, and no rollout"
    few = ["--rollouts", "2", "--minibatch", "2", "--sample-batch", "2"]
    result = ppo(strict_policy, prompts, tmp_path / "out", "--on-bad-row", "skip", *few)
    assert result.exit_code == 0, result.output
    assert "skipped 2 of 6 rows" in result.output
    skipped = [json.loads(line) for line in (tmp_path / "out-skipped.jsonl").read_text().splitlines()]
    assert [row["row"] for row in skipped] == [2, 5]
    assert {str(prompt) for prompt in service.asked[10:]} <= {"one", "two", "three"}


def test_no_more_prompts_are_asked_about_than_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redline.ppo.prompts.MAX_ASKED", 40)
    rows = [(f"f:{n}", f"prompt {n % 50}") for n in range(100)]
    asked: list[Any] = []

    def ask(prompts: list[Any]) -> list[str | None]:
        asked.append(prompts)
        return [None] * len(prompts)

    assert scorable_rows(rows, ask) == rows
    assert [len(part) for part in asked] == [32, 8]
