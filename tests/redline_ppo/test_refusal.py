"""A number that is not finite: the step is refused, nothing has changed, and the batch is there to be looked at."""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from redline.client import RewardClient
from redline.errors import StepRefusedError
from redline.ppo import FunctionRewards, PPOConfig, PPOLoop, RemoteRewards, Rollout, Scored, Scores
from redline.ppo.policy import CausalPolicy
from redline.ppo.protocols import TokenOutputs
from redline_cli import app as command_line
from tests.redline_ppo.tiny import PROMPTS, tiny_policy


class Unsound(CausalPolicy):
    """Gives what ``spoil`` makes of its outputs, from the ``spoiled_from``-th pass with gradients on."""

    spoil: Any = None
    spoiled_from = 1
    passes = 0

    def outputs(self, rollouts: Sequence[Rollout], *, entropy_gradient: bool = False) -> TokenOutputs:
        told = super().outputs(rollouts, entropy_gradient=entropy_gradient)
        self.passes += torch.is_grad_enabled()
        return self.spoil(told) if self.spoil is not None and self.passes >= self.spoiled_from else told


def unsound(spoil: Any = None, spoiled_from: int = 1) -> Unsound:
    sound = tiny_policy()
    mine = Unsound(sound.model, sound.tokenizer, max_new_tokens=8)
    mine.spoil, mine.spoiled_from = spoil, spoiled_from
    return mine


class Infinite(torch.autograd.Function):
    """The identity, with a gradient that is infinite."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * math.inf


def without_gradient(told: TokenOutputs) -> TokenOutputs:
    return told if torch.is_grad_enabled() else told._replace(logprobs=told.logprobs + math.nan)


CASES: dict[str, tuple[Any, float, int, str]] = {
    "reward": (None, math.nan, 0, "reward of response 0 at token 7 is nan"),
    "infinite reward": (None, -math.inf, 0, "reward of response 0 at token 7 is -inf"),
    "log-probability": (without_gradient, 1.0, 0, "log-probability of response 0 at token 0 is nan"),
    "value": (lambda told: told._replace(values=told.values / 0), 1.0, 0, "value of response 0"),
    "loss": (lambda told: told._replace(logprobs=told.logprobs * math.nan), 1.0, 1, "loss is nan"),
    "loss of a later update": (lambda told: told._replace(logprobs=told.logprobs * math.nan), 1.0, 4, "loss is nan"),
    "value loss": (lambda told: told._replace(values=told.values + math.inf), 1.0, 3, "loss is"),
    "gradient": (lambda told: told._replace(logprobs=Infinite.apply(told.logprobs)), 1.0, 3, "norm of a gradient"),
    "gradient of the value function": (
        lambda told: told._replace(values=Infinite.apply(told.values)), 1.0, 2, "norm of a gradient",
    ),
}  # fmt: skip


def everything(loop: PPOLoop) -> dict[str, Any]:
    return copy.deepcopy(loop.state())


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("first_step", [True, False])
def test_a_step_with_a_number_that_is_not_finite_changes_nothing(name: str, first_step: bool, tmp_path: Path) -> None:
    spoil, reward, spoiled_from, message = CASES[name]
    mine = unsound()
    given = {"rewards": 1.0}
    seen: list[float] = []
    loop = PPOLoop(
        mine,
        FunctionRewards(lambda rollout: given["rewards"]),
        PROMPTS,
        PPOConfig(steps=3, rollouts=8, sample_batch=4, minibatch=4, learning_rate=1e-3, kl_target=1.0),
        callbacks=[lambda metrics, rollouts, scores: seen.append(metrics["step"])],
        refused=tmp_path / "refused",
    )
    if not first_step:
        loop.step()
    before = everything(loop)
    mine.spoil, mine.spoiled_from, mine.passes, given["rewards"] = spoil, spoiled_from, 0, reward
    with pytest.raises(StepRefusedError) as refused:
        loop.step()
    number = 1 if first_step else 2
    path = tmp_path / f"refused/step-{number}.json"
    assert message in str(refused.value)
    assert f"step {number} is refused" in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert same(before, everything(loop))
    assert all(parameter.grad is None for parameter in mine.parameters())
    assert seen == ([] if first_step else [1.0])
    told = json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert message in told["reason"]
    assert told["step"] == number
    assert len(told["responses"]) == 8
    assert len(told["responses"][0]["rewards"]) == len(told["responses"][0]["response_ids"])
    if "reward" in name:
        assert told["responses"][0]["rewards"][-1] == str(reward)
    else:
        assert "log-probability" in told["responses"][0]
    mine.spoil, given["rewards"] = None, 1.0
    loop.step()  # sound again, and it goes on


def test_a_policy_that_cannot_sample_is_refused_and_no_traceback(tmp_path: Path) -> None:
    mine = tiny_policy()
    loop = PPOLoop(mine, FunctionRewards(lambda r: 1.0), PROMPTS, PPOConfig(rollouts=4), refused=tmp_path)
    with torch.no_grad():
        mine.model.lm_head.weight[3, 3] = math.nan
    with pytest.raises(StepRefusedError, match="logits of a next token are not finite"):
        loop.step()
    assert json.loads((tmp_path / "step-1.json").read_text())["responses"] == []


def test_the_command_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a policy whose weights are NaN, and a service that is not asked."""
    mine = tiny_policy()
    with torch.no_grad():
        mine.model.lm_head.weight[3, 3] = math.nan
    mine.save(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi"}\n')
    model = argparse.Namespace(kind="seq2seq", name="default", digest="sha256:0")
    monkeypatch.setattr(RewardClient, "model", lambda self: model)
    monkeypatch.setattr(RemoteRewards, "refusals", lambda self, prompts: [None] * len(prompts))
    given = f"ppo --policy {tmp_path}/policy --prompts {tmp_path}/prompts.jsonl --out {tmp_path}/out --max-new-tokens 4"
    monkeypatch.setattr(sys, "argv", ["redline", *given.split()])
    with pytest.raises(SystemExit) as ended:
        command_line.run()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("redline: step 1 is refused")
    assert "Traceback" not in said
    assert (tmp_path / "out/refused/step-1.json").exists()
    assert not (tmp_path / "out/policy").exists()


def test_a_score_that_is_not_finite_is_refused_too() -> None:
    class Odd:
        def score(self, rollouts: Sequence[Rollout]) -> Scores:
            return Scores([Scored(math.nan, [0.0] * len(r.response_ids)) for r in rollouts], "sha256:other")

    loop = PPOLoop(tiny_policy(), Odd(), PROMPTS, PPOConfig(rollouts=4))
    loop.digest = "sha256:one"
    with pytest.raises(StepRefusedError, match="score of response 0 is nan"):
        loop.step()
    assert loop.digest == "sha256:one"


def test_a_refused_step_is_written_beside_the_run(tmp_path: Path) -> None:
    loop = PPOLoop(tiny_policy(), FunctionRewards(lambda rollout: math.nan), PROMPTS, PPOConfig(rollouts=4))
    with pytest.raises(StepRefusedError):
        loop.train(tmp_path / "state.pt")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["step-1.json"]


def test_what_stands_in_padding_is_nobody_s_number() -> None:
    """Rows of other lengths: NaN behind the end of a response is no number of the step."""

    mine = unsound()

    def outputs(rollouts: Sequence[Rollout], *, entropy_gradient: bool = False) -> TokenOutputs:
        told = CausalPolicy.outputs(mine, rollouts, entropy_gradient=entropy_gradient)
        lengths = torch.tensor([len(r.response_ids) for r in rollouts]).unsqueeze(1)
        real = torch.arange(told.logprobs.shape[1]) < lengths
        return TokenOutputs(*(torch.where(real, field, math.nan) for field in told))

    mine.outputs = outputs  # type: ignore[method-assign]
    mine._generate = lambda rows: [[5 + n] * (1 + n % 4) + [0] for n in range(len(rows))]  # type: ignore[method-assign]
    settings = {"rollouts": 8, "sample_batch": 8, "minibatch": 4, "learning_rate": 1e-3, "entropy_coefficient": 0.1}
    metrics = PPOLoop(
        mine, FunctionRewards(lambda r: float(len(r.response_ids))), PROMPTS, PPOConfig(**settings)
    ).step()
    assert all(math.isfinite(value) for value in metrics.values())
