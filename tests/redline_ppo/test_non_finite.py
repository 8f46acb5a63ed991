"""A step with a number that is not finite is undone completely, and its batch is written to a file."""

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


class FaultyPolicy(CausalPolicy):
    """Applies ``fault`` to its outputs, from pass number ``faulty_from`` with gradients."""

    fault: Any = None
    faulty_from = 1
    passes = 0

    def outputs(self, rollouts: Sequence[Rollout], *, entropy_gradient: bool = False) -> TokenOutputs:
        outputs = super().outputs(rollouts, entropy_gradient=entropy_gradient)
        self.passes += torch.is_grad_enabled()
        return self.fault(outputs) if self.fault is not None and self.passes >= self.faulty_from else outputs


def faulty_policy(fault: Any = None, faulty_from: int = 1) -> FaultyPolicy:
    plain = tiny_policy()
    policy = FaultyPolicy(plain.model, plain.tokenizer, max_new_tokens=8)
    policy.fault, policy.faulty_from = fault, faulty_from
    return policy


class InfiniteGradient(torch.autograd.Function):
    """The identity with an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * math.inf


def nan_without_gradient(outputs: TokenOutputs) -> TokenOutputs:
    return outputs if torch.is_grad_enabled() else outputs._replace(logprobs=outputs.logprobs + math.nan)


CASES: dict[str, tuple[Any, float, int, str]] = {
    "reward": (None, math.nan, 0, "reward of response 0 at token 7 is nan"),
    "infinite reward": (None, -math.inf, 0, "reward of response 0 at token 7 is -inf"),
    "log-probability": (nan_without_gradient, 1.0, 0, "log-probability of response 0 at token 0 is nan"),
    "value": (lambda out: out._replace(values=out.values / 0), 1.0, 0, "value of response 0"),
    "loss": (lambda out: out._replace(logprobs=out.logprobs * math.nan), 1.0, 1, "loss is nan"),
    "loss of a later update": (lambda out: out._replace(logprobs=out.logprobs * math.nan), 1.0, 4, "loss is nan"),
    "value loss": (lambda out: out._replace(values=out.values + math.inf), 1.0, 3, "loss is"),
    "gradient": (lambda out: out._replace(logprobs=InfiniteGradient.apply(out.logprobs)), 1.0, 3, "norm of a gradient"),
    "gradient of the value function": (
        lambda out: out._replace(values=InfiniteGradient.apply(out.values)), 1.0, 2, "norm of a gradient",
    ),
}  # fmt: skip


def copied_state(loop: PPOLoop) -> dict[str, Any]:
    return copy.deepcopy(loop.state())


def are_equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(are_equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(are_equal(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("first_step", [True, False])
def test_a_step_with_a_number_that_is_not_finite_is_undone(name: str, first_step: bool, tmp_path: Path) -> None:
    fault, reward, faulty_from, message = CASES[name]
    policy = faulty_policy()
    current = {"reward": 1.0}
    seen: list[float] = []
    loop = PPOLoop(
        policy,
        FunctionRewards(lambda rollout: current["reward"]),
        PROMPTS,
        PPOConfig(steps=3, rollouts=8, sample_batch=4, minibatch=4, learning_rate=1e-3, kl_target=1.0),
        callbacks=[lambda metrics, rollouts, scores: seen.append(metrics["step"])],
        refused=tmp_path / "refused",
    )
    if not first_step:
        loop.step()
    before = copied_state(loop)
    policy.fault, policy.faulty_from, policy.passes, current["reward"] = fault, faulty_from, 0, reward
    with pytest.raises(StepRefusedError) as error:
        loop.step()
    number = 1 if first_step else 2
    path = tmp_path / f"refused/step-{number}.json"
    assert message in str(error.value)
    assert f"step {number} was undone" in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert are_equal(before, copied_state(loop))
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert seen == ([] if first_step else [1.0])
    written = json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert message in written["reason"]
    assert written["step"] == number
    assert len(written["responses"]) == 8
    assert len(written["responses"][0]["rewards"]) == len(written["responses"][0]["response_ids"])
    if "reward" in name:
        assert written["responses"][0]["rewards"][-1] == str(reward)
    else:
        assert "log-probability" in written["responses"][0]
    policy.fault, current["reward"] = None, 1.0
    loop.step()  # without the fault the loop continues


def test_logits_that_are_not_finite_undo_the_step(tmp_path: Path) -> None:
    policy = tiny_policy()
    loop = PPOLoop(policy, FunctionRewards(lambda r: 1.0), PROMPTS, PPOConfig(rollouts=4), refused=tmp_path)
    with torch.no_grad():
        policy.model.lm_head.weight[3, 3] = math.nan
    with pytest.raises(StepRefusedError, match="logits of a next token are not finite"):
        loop.step()
    assert json.loads((tmp_path / "step-1.json").read_text())["responses"] == []


def test_the_command_reports_the_step_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The policy has NaN weights. The service is not called."""
    policy = tiny_policy()
    with torch.no_grad():
        policy.model.lm_head.weight[3, 3] = math.nan
    policy.save(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi"}\n')
    model = argparse.Namespace(kind="seq2seq", name="default", digest="sha256:0")
    monkeypatch.setattr(RewardClient, "model", lambda self: model)
    monkeypatch.setattr(RemoteRewards, "refusals", lambda self, prompts: [None] * len(prompts))
    command = (
        f"ppo --policy {tmp_path}/policy --prompts {tmp_path}/prompts.jsonl --out {tmp_path}/out --max-new-tokens 4"
    )
    monkeypatch.setattr(sys, "argv", ["redline", *command.split()])
    with pytest.raises(SystemExit) as exit_info:
        command_line.run()
    assert exit_info.value.code == 1
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1].startswith("redline: step 1 was undone")
    assert "Traceback" not in errors
    assert (tmp_path / "out/refused/step-1.json").exists()
    assert not (tmp_path / "out/policy").exists()


def test_a_score_that_is_not_finite_undoes_the_step() -> None:
    class NanScores:
        def score(self, rollouts: Sequence[Rollout]) -> Scores:
            return Scores([Scored(math.nan, [0.0] * len(r.response_ids)) for r in rollouts], ("sha256:other",))

    loop = PPOLoop(tiny_policy(), NanScores(), PROMPTS, PPOConfig(rollouts=4))
    loop.digest = "sha256:before"
    with pytest.raises(StepRefusedError, match="score of response 0 is nan"):
        loop.step()
    assert loop.digest == "sha256:before"


def test_an_undone_step_is_written_next_to_the_checkpoint(tmp_path: Path) -> None:
    loop = PPOLoop(tiny_policy(), FunctionRewards(lambda rollout: math.nan), PROMPTS, PPOConfig(rollouts=4))
    with pytest.raises(StepRefusedError):
        loop.train(tmp_path / "state.pt")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["step-1.json"]


def test_numbers_in_padding_are_ignored() -> None:
    """Responses have different lengths. NaN after the end of a response must not matter."""
    policy = faulty_policy()

    def outputs_with_nan_padding(rollouts: Sequence[Rollout], *, entropy_gradient: bool = False) -> TokenOutputs:
        outputs = CausalPolicy.outputs(policy, rollouts, entropy_gradient=entropy_gradient)
        lengths = torch.tensor([len(r.response_ids) for r in rollouts]).unsqueeze(1)
        real = torch.arange(outputs.logprobs.shape[1]) < lengths
        return TokenOutputs(*(torch.where(real, field, math.nan) for field in outputs))

    policy.outputs = outputs_with_nan_padding  # type: ignore[method-assign]
    policy._generate = lambda rows: [[5 + n] * (1 + n % 4) + [0] for n in range(len(rows))]  # type: ignore[method-assign]
    settings = {"rollouts": 8, "sample_batch": 8, "minibatch": 4, "learning_rate": 1e-3, "entropy_coefficient": 0.1}
    metrics = PPOLoop(
        policy, FunctionRewards(lambda r: float(len(r.response_ids))), PROMPTS, PPOConfig(**settings)
    ).step()
    assert all(math.isfinite(value) for value in metrics.values())
