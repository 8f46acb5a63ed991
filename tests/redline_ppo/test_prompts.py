"""Prompts that the policy or the reward model rejects are reported by file and row before sampling."""

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
    """A policy whose chat template rejects a system turn and whose limit is 512 tokens."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = STRICT
    build_causal(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ppo(policy: Path, prompts: Path, out: Path, *more: str) -> Any:
    """Run ``redline ppo`` with a service that cannot be reached."""
    arguments = ["ppo", "--policy", policy, "--prompts", prompts, "--out", out, "--steps", "1", *more]
    fixed = ["--url", "http://127.0.0.1:9", "--patience-s", "0.01", "--max-new-tokens", "4"]
    return CliRunner().invoke(app, [str(argument) for argument in [*arguments, *fixed]])


def test_every_prompt_that_the_policy_rejects_is_reported_first(strict_policy: Path, tmp_path: Path) -> None:
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
    assert isinstance(result.exception, ConnectionFailedError), "the service is called after the policy's check"
    assert "skipped 3 of 4 rows" in result.output
    skipped = [json.loads(line) for line in (tmp_path / "out-skipped.jsonl").read_text().splitlines()]
    assert [row["row"] for row in skipped] == [2, 3, 4]


class ShortRewardModel(FakeService):
    """A reward model with a limit of ten words whose chat template rejects one prompt."""

    def __init__(self) -> None:
        super().__init__(lambda word: 1.0)
        self.prompts: list[Any] = []

    def _score_response(self, item: ScoreItem) -> ItemResult:
        self.prompts.append(item.prompt)
        words = str(item.prompt).split()
        if len(words) > 10:
            return ItemError(id=item.id, error=ErrorBody.of(ErrorCode.TOO_LONG, "12 tokens, the limit is 10"))
        if "never" in words:
            return ItemError(id=item.id, error=ErrorBody.of(ErrorCode.INVALID_PROMPT, "no such prompt"))
        return super()._score_response(item)


def test_prompts_that_the_reward_model_rejects_are_bad_rows(
    strict_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = ShortRewardModel()
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
    assert len(service.prompts) == 5, "every distinct prompt once, and no rollout"
    few = ["--rollouts", "2", "--minibatch", "2", "--sample-batch", "2"]
    result = ppo(strict_policy, prompts, tmp_path / "out", "--on-bad-row", "skip", *few)
    assert result.exit_code == 0, result.output
    assert "skipped 2 of 6 rows" in result.output
    skipped = [json.loads(line) for line in (tmp_path / "out-skipped.jsonl").read_text().splitlines()]
    assert [row["row"] for row in skipped] == [2, 5]
    assert {str(prompt) for prompt in service.prompts[10:]} <= {"one", "two", "three"}


def test_at_most_max_checked_prompts_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redline.ppo.prompts.MAX_CHECKED", 40)
    rows = [(f"f:{n}", f"prompt {n % 50}") for n in range(100)]
    batches: list[Any] = []

    def check(prompts: list[Any]) -> list[str | None]:
        batches.append(prompts)
        return [None] * len(prompts)

    assert scorable_rows(rows, check) == rows
    assert [len(batch) for batch in batches] == [32, 8]
