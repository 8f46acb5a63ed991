"""The kinds sft and qrm by commands in separate processes: fitted, measured, served, scored with, used for PPO."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from redline import NO_RETRY, RewardClient, ScoreOptions
from redline_cli import app as command_line
from redline_model.options import AGGREGATES, STATISTICS_MODES
from tests.commands import ended, run, start
from tests.conftest import save_base
from tests.ports import free_port

pytestmark = pytest.mark.loop
WORDS = ["round", "red", "blue", "green", "small", "left"]
PROMPT = "How do I reset my router?"
RESPONSES = ["Hold the round button.", "I am sorry.", "世界 🙂"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and pairs."""
    folder = tmp_path_factory.mktemp("home")
    save_base(folder / "base")
    rows = [
        {"prompt": f"{PROMPT} {n}", "chosen": f"Hold the {word} button.", "rejected": f"Eat the {word} soup."}
        for n, word in enumerate(WORDS * 3)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def succeeded(*arguments: object) -> str:
    done = run(*map(str, arguments))
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def plain_rewards(folder: Path, kind: str) -> list[list[float]]:
    """Token rewards of ``RESPONSES`` from transformers alone: log-probabilities of ``sft``, logits of ``qrm``."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    turn: Any = [{"role": "user", "content": PROMPT}]
    manifest = json.loads((folder / "redline.json").read_text())
    if manifest["template"]["style"] == "policy":
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    else:
        settings = manifest["template"]["chat_kwargs"]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, **settings)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [_plain_rewards(model, tokenizer, prompt, response, kind) for response in RESPONSES]


@torch.no_grad()
def _plain_rewards(model: Any, tokenizer: Any, prompt: Sequence[int], response: str, kind: str) -> list[float]:
    target = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    logits = model(torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1]
    taken = logits[range(len(target)), target]
    logprobs: list[float] = (taken - logits.logsumexp(-1)).clamp_min(-10).tolist()
    return logprobs if kind == "sft" else taken.tolist()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs ``redline ARGUMENTS`` in this process and returns what it printed."""

    def command(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["redline", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command_line.run()
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        return printed.out

    return command


@pytest.mark.parametrize("kind", ["sft", "qrm"])
def test_served_rewards_equal_those_of_transformers(
    home: Path, tmp_path: Path, kind: str, here: Callable[..., str]
) -> None:
    out, pairs, port = tmp_path / "rm", home / "pairs.jsonl", free_port()
    succeeded(
        *("train", "--kind", kind, "--pairs", pairs, "--base", home / "base", "--out", out, "--max-steps", 10),
        *("--pairs-per-step", 6, "--learning-rate", 1e-3, "--precision", "float32"),
    )
    with (tmp_path / "rm-logs/metrics.jsonl").open() as log:
        losses = [json.loads(line)["loss"] for line in log]
    assert losses[-1] < losses[0]
    with (
        ended(start("serve", str(out), "--port", str(port), "--dtype", "float32")),
        RewardClient(f"http://127.0.0.1:{port}", retry=NO_RETRY) as client,
    ):
        client.wait_until_ready(90)
        assert client.model().kind == kind
        results = [client.score_one(PROMPT, response) for response in RESPONSES]
        sums = [client.score_one(PROMPT, r, options=ScoreOptions(aggregate="sum")).score for r in RESPONSES]
        succeeded(  # the folder of an sft bundle is a policy
            *("ppo", "--policy", out if kind == "sft" else home / "base", "--prompts", pairs),
            *("--url", f"http://127.0.0.1:{port}", "--out", tmp_path / "policy", "--steps", 1),
            *("--rollouts", 4, "--minibatch", 4, "--sample-batch", 4, "--max-new-tokens", 6),
        )
    for result, total, rewards in zip(results, sums, plain_rewards(out, kind), strict=True):
        assert result.rewards == pytest.approx(rewards, abs=1e-4)
        assert total == pytest.approx(sum(rewards), abs=1e-4 * len(rewards))
        default = sum(rewards) / len(rewards)
        assert result.score == pytest.approx(default, abs=1e-4 * len(rewards))

    here("evaluate", out, "--pairs", pairs, "--out", tmp_path / "report.json")
    measured = json.loads((tmp_path / "report.json").read_text())
    assert measured["accuracy"]["pairs"] == 3 * len(WORDS)
    described = json.loads(here("inspect", out))
    assert (described["kind"], described["default_reading"]) == (kind, "qrm/mean" if kind == "qrm" else "logprob/mean")
    assert f"tags: [reward-model, rlhf, {kind}]" in (out / "README.md").read_text()


def test_a_language_model_is_made_a_bundle_by_command(home: Path, tmp_path: Path, here: Callable[..., str]) -> None:
    arguments = ("derive", "sft", home / "base", "--pairs", home / "pairs.jsonl", "--out", tmp_path / "rm")
    printed = here(*arguments, "--mode", "logprob", "--max-tokens", 200)
    assert "logprob/mean ranks" in printed
    assert "(sft bundle, sha256:" in printed
    manifest = json.loads((tmp_path / "rm/redline.json").read_text())
    assert manifest["max_tokens"] == 200
    assert set(manifest["calibration"]) == {f"{mode}/{how}" for mode in STATISTICS_MODES for how in AGGREGATES}
