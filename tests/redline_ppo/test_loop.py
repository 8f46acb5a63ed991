"""The PPO loop on a tiny policy: the first step, learning, exact resume, and every interface with another object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from redline.errors import (
    CheckpointError,
    ConnectionFailedError,
    ModelChangedError,
    PolicyError,
    ProtocolError,
    RowsError,
)
from redline.files.metrics_log import MetricsLog, read_metrics
from redline.ppo import (
    CausalPolicy,
    FunctionRewards,
    PPOConfig,
    PPOLoop,
    Rollout,
    Scored,
    Scores,
    WeightedRewards,
)
from redline.ppo.loop import token_mask
from redline.ppo.prompts import load_prompts
from redline.ppo.report import write_report
from tests.conftest import build_causal, build_tokenizer

PROMPTS = [f"How do I reset my router {n}?" for n in range(7)]


def build_policy(
    lora: bool = False, temperature: float = 1.0, max_new_tokens: int = 8, weight_scale: float = 0.3
) -> CausalPolicy:
    tokenizer = build_tokenizer()
    model = build_causal(len(tokenizer), seed=1)
    for parameter in model.parameters():  # smaller weights than the scorers', so that samples vary
        parameter.data *= weight_scale
    if lora:
        from peft import LoraConfig, TaskType, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, target_modules="all-linear"))
    return CausalPolicy(model, tokenizer, max_new_tokens=max_new_tokens, temperature=temperature)


def count_e(rollout: Rollout) -> list[float]:
    """1.0 for every token whose text contains an e."""
    return [float("e" in rollout.text[start:end]) for start, end in rollout.spans]


def config(**settings: Any) -> PPOConfig:
    """Settings for a tiny untrained policy, whose responses are nearly all cut at the token limit."""
    defaults = {"steps": 3, "rollouts": 8, "sample_batch": 4, "minibatch": 4, "epochs": 2, "learning_rate": 1e-3}
    defaults |= {"cut_responses": "keep", "reward_scale": "auto"}
    return PPOConfig(**(defaults | settings))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_before_any_update_ratio_is_1_and_kl_is_0(lora: bool, temperature: float) -> None:
    torch.manual_seed(0)
    policy = build_policy(lora, temperature)
    rollouts = policy.sample(PROMPTS, range(len(PROMPTS)))
    mask = token_mask(rollouts, policy.device)
    with torch.no_grad():
        logprobs = policy.outputs(rollouts).logprobs
        reference = policy.reference_logprobs(rollouts)
        alone = [policy.outputs([rollout]).logprobs[0] for rollout in rollouts]
    assert torch.allclose(logprobs[mask], reference[mask], atol=1e-6)
    for row, rollout in enumerate(rollouts):
        assert torch.allclose(alone[row], logprobs[row, : len(rollout.response_ids)], atol=1e-4)


def test_bfloat16_rounds_matrix_products_only() -> None:
    """Log-probabilities are close to those of float32, not equal, and have dtype float32."""
    float32_policy = build_policy(weight_scale=1.0)
    rounded = CausalPolicy(float32_policy.model, float32_policy.tokenizer, max_new_tokens=8, precision="bfloat16")
    torch.manual_seed(0)
    rollouts = float32_policy.sample(PROMPTS, range(len(PROMPTS)))
    mask = token_mask(rollouts, float32_policy.device)
    with torch.no_grad():
        exact, outputs = float32_policy.outputs(rollouts), rounded.outputs(rollouts)
    difference = (outputs.logprobs - exact.logprobs)[mask].abs()
    assert 0 < float(difference.max()) < 0.5
    assert outputs.logprobs.dtype == outputs.values.dtype == torch.float32
    assert torch.equal(outputs.logprobs, rounded.reference_logprobs(rollouts))


def test_logprobs_are_those_of_the_sampling_distribution() -> None:
    """Frequencies of the first sampled token agree with exp(logprob) at the sampling temperature."""
    torch.manual_seed(0)
    policy = build_policy(temperature=2.0, max_new_tokens=1, weight_scale=1.0)
    rollouts = policy.sample([PROMPTS[0]] * 2000, range(2000))
    counts: dict[int, int] = {}
    for rollout in rollouts:
        counts[rollout.response_ids[0]] = counts.get(rollout.response_ids[0], 0) + 1
    token, count = max(counts.items(), key=lambda entry: entry[1])
    rollout = next(r for r in rollouts if r.response_ids[0] == token)
    with torch.no_grad():
        probability = float(policy.outputs([rollout]).logprobs[0, 0].exp())
    spread = (probability * (1 - probability) / 2000) ** 0.5
    assert abs(count / 2000 - probability) < 5 * spread


def test_rollouts_have_text_spans_and_end() -> None:
    torch.manual_seed(0)
    policy = build_policy(max_new_tokens=40)
    for rollout in policy.sample(PROMPTS * 4, range(28)):
        assert len(rollout.spans) == len(rollout.response_ids)
        assert rollout.is_finished == (rollout.response_ids[-1] in policy.end_ids)
        assert not any(i in policy.end_ids for i in rollout.response_ids[:-1])
        if rollout.is_finished:
            assert rollout.spans[-1] == (len(rollout.text), len(rollout.text))


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        ({}, "float32"),
        ({"advantage": "group", "samples_per_prompt": 4}, "float32"),
        ({"advantage": "leave_one_out", "samples_per_prompt": 4}, "float32"),
        ({"microbatch": 2}, "float32"),
        ({"kl_target": 1.0}, "float32"),
        ({}, "bfloat16"),
    ],
)
def test_a_policy_learns_from_its_rewards(settings: dict[str, Any], precision: Any) -> None:
    seen: list[dict[str, float]] = []
    plain = build_policy()
    loop = PPOLoop(
        CausalPolicy(plain.model, plain.tokenizer, max_new_tokens=8, precision=precision),
        FunctionRewards(count_e),
        PROMPTS,
        config(
            steps=12,
            rollouts=32,
            sample_batch=32,
            minibatch=16,
            learning_rate=3e-3,
            kl_coefficient=0.01,
            **settings,
        ),
        callbacks=[lambda metrics, rollouts, scores: seen.append(metrics)],
    )
    loop.train()
    assert sum(m["score"] for m in seen[-3:]) / 3 > sum(m["score"] for m in seen[:3]) / 3 + 0.5
    assert seen[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert seen[-1]["kl"] > 0.1
    assert {parameter.dtype for parameter in loop.policy.parameters()} == {torch.float32}


def test_lora_does_not_change_the_base_and_saves_a_plain_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    policy = build_policy(lora=True)
    rollouts = policy.sample(PROMPTS[:2], [0, 1])
    before = policy.reference_logprobs(rollouts)
    PPOLoop(policy, FunctionRewards(count_e), PROMPTS, config()).train()
    assert torch.equal(before, policy.reference_logprobs(rollouts))
    policy.save(tmp_path / "policy")
    saved = AutoModelForCausalLM.from_pretrained(str(tmp_path / "policy")).eval()
    with torch.no_grad():
        now = policy.outputs(rollouts[:1]).logprobs[0]
        ids = torch.tensor([rollouts[0].prompt_ids + rollouts[0].response_ids])
        logprobs = saved(input_ids=ids).logits[0].log_softmax(-1)
    start = len(rollouts[0].prompt_ids)
    again = [float(logprobs[start + t - 1, token]) for t, token in enumerate(rollouts[0].response_ids)]
    assert again == pytest.approx(now.tolist(), abs=1e-4)


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_takes_the_same_steps_as_an_uninterrupted_one(tmp_path: Path, lora: bool) -> None:
    def run(steps: int, checkpoint: Path | None) -> tuple[PPOLoop, list[dict[str, float]]]:
        seen: list[dict[str, float]] = []
        loop = PPOLoop(
            build_policy(lora),
            FunctionRewards(count_e),
            PROMPTS,
            config(steps=steps, kl_target=0.5),
            callbacks=[lambda metrics, rollouts, scores: seen.append(metrics)],
        )
        loop.train(checkpoint, checkpoint_every=1)
        return loop, seen

    unbroken, all_metrics = run(4, None)
    run(2, tmp_path / "state.pt")
    torch.manual_seed(12345)  # the state of the generator must not matter
    resumed, rest = run(4, tmp_path / "state.pt")
    assert len(rest) == 2
    for resumed_metrics, unbroken_metrics in zip(rest, all_metrics[2:], strict=True):
        timeless = {k: v for k, v in resumed_metrics.items() if not k.startswith("seconds")}
        assert timeless == {k: unbroken_metrics[k] for k in timeless}
    first, second = unbroken.policy.state(), resumed.policy.state()
    assert all(torch.equal(first["weights"][n], second["weights"][n]) for n in first["weights"])


def test_a_checkpoint_of_other_settings_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    PPOLoop(build_policy(), FunctionRewards(count_e), PROMPTS, config(steps=1)).train(tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="clip"):
        PPOLoop(build_policy(), FunctionRewards(count_e), PROMPTS, config(clip=0.3)).train(tmp_path / "state.pt")


def test_a_checkpoint_of_another_policy_is_an_error_that_names_the_policy(tmp_path: Path) -> None:
    def loop(source: str) -> PPOLoop:
        return PPOLoop(build_policy(), FunctionRewards(count_e), PROMPTS, config(steps=1), identity={"policy": source})

    loop("a").train(tmp_path / "state.pt")
    loop("a").train(tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="policy"):
        loop("b").train(tmp_path / "state.pt")


def test_the_reward_scale_depends_on_summed_rewards_and_not_on_the_reported_score() -> None:
    class Averaging:
        def score(self, rollouts: Sequence[Rollout]) -> Scores:
            return Scores([Scored(sum(count_e(r)) / 1000, count_e(r)) for r in rollouts])

    scales = []
    for source in (Averaging(), FunctionRewards(count_e)):
        loop = PPOLoop(build_policy(), source, PROMPTS, config())
        loop.step()
        scales.append(loop.reward_scale)
    assert scales[0] == scales[1]


@pytest.mark.parametrize("advantage", ["group", "leave_one_out"])
def test_group_advantages_need_several_samples_per_prompt(advantage: str) -> None:
    with pytest.raises(ValueError, match=f"'{advantage}' .* at least 2"):
        config(advantage=advantage)
    with pytest.raises(ValueError, match="multiple"):
        config(samples_per_prompt=3)


class ReplacedModel:
    """A reward source whose digest changes after the second call."""

    def __init__(self) -> None:
        self.calls = 0

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        self.calls += 1
        return Scores([Scored(0.0, [0.0] * len(r.response_ids)) for r in rollouts], (f"sha256:{self.calls > 2}",))


def test_a_replaced_reward_model_stops_the_run_if_configured() -> None:
    with pytest.raises(ModelChangedError, match="step 2"):
        PPOLoop(build_policy(), ReplacedModel(), PROMPTS, config(on_model_change="stop")).train()
    PPOLoop(build_policy(), ReplacedModel(), PROMPTS, config()).train()


def test_digest_of_scores_is_deprecated() -> None:
    items = [Scored(1.0, [1.0])]
    assert Scores(items).digests == ()
    assert Scores(items, ("A", "B")) == Scores(items, ["A", "B"]) == (items, ("A", "B"))
    for old, digests in (("A", ("A",)), ("A+B", ("A", "B"))):
        with pytest.warns(DeprecationWarning, match="digests"):
            assert Scores(items, digest=old).digests == digests
        with pytest.warns(DeprecationWarning, match="digests"):
            assert Scores(items, old).digests == digests
        with pytest.warns(DeprecationWarning, match="digests"):
            assert Scores(items, digests).digest == old
    with pytest.warns(DeprecationWarning, match="digests"):
        assert Scores(items, None).digests == ()
    with pytest.warns(DeprecationWarning, match="digests"):
        assert Scores(items).digest is None


def test_a_weighted_sum_has_one_joined_digest_per_state_of_its_models() -> None:
    class Source:
        def __init__(self, *digests: str) -> None:
            self.digests = digests

        def score(self, rollouts: Sequence[Rollout]) -> Scores:
            return Scores([Scored(0.0, [0.0] * len(r.response_ids)) for r in rollouts], self.digests)

    def digests(*sources: Source) -> tuple[str, ...]:
        return WeightedRewards([(1.0, source) for source in sources]).score([]).digests

    assert digests(Source("A"), Source(), Source("C")) == ("A|C",)
    assert digests(Source("A", "B"), Source("C")) == ("A|C", "B|C")
    assert digests(Source(), Source()) == ()


def test_a_replacement_within_a_step_is_one_change() -> None:
    class ReplacedInStep:
        def __init__(self) -> None:
            self.digests = iter(
                ["A", "A", "A", "B", "B", "B"]
            )  # two batches per step: both models score in the second step

        def score(self, rollouts: Sequence[Rollout]) -> Scores:
            return Scores([Scored(0.0, [0.0] * len(r.response_ids)) for r in rollouts], (next(self.digests),))

    loop = PPOLoop(build_policy(), ReplacedInStep(), PROMPTS, config())
    assert [loop.step()["model_changed"] for _ in range(3)] == [0.0, 1.0, 0.0]
    assert loop.digest == "B"


def test_a_wrong_number_of_rewards_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="rewards for"):
        PPOLoop(build_policy(), FunctionRewards(lambda rollout: [1.0]), PROMPTS, config()).step()


def test_an_error_of_the_reward_source_ends_the_run() -> None:
    class Unreachable:
        def score(self, rollouts: Sequence[Rollout]) -> Scores:
            raise ConnectionFailedError("gone")

    with pytest.raises(ConnectionFailedError):
        PPOLoop(build_policy(), Unreachable(), PROMPTS, config()).step()


def test_weighted_rewards_are_the_weighted_sum_token_by_token() -> None:
    torch.manual_seed(0)
    rollouts = build_policy().sample(PROMPTS[:3], range(3))
    constant = FunctionRewards(lambda rollout: 2.0)
    mixed = WeightedRewards([(0.5, FunctionRewards(count_e)), (-1.0, constant)]).score(rollouts)
    for rollout, item in zip(rollouts, mixed.items, strict=True):
        expected = [0.5 * e for e in count_e(rollout)]
        expected[-1] -= 2.0
        assert item.rewards == pytest.approx(expected)
        assert item.score == pytest.approx(sum(expected))


def test_every_prompt_is_used_once_before_any_is_used_again() -> None:
    loop = PPOLoop(build_policy(), FunctionRewards(count_e), PROMPTS, config(rollouts=4))
    prompts = [prompt for step in range(7) for prompt in loop.step_prompts(step)]
    for epoch in range(4):
        assert sorted(prompts[7 * epoch : 7 * epoch + 7]) == PROMPTS


def test_a_prompt_that_is_too_long_for_the_policy_is_an_error() -> None:
    policy = build_policy()
    policy.max_prompt_tokens = 20
    with pytest.raises(PolicyError, match="room for 20"):
        policy.prompt_ids("word " * 30)


def test_metrics_are_complete_after_an_unfinished_line_and_a_resume(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in range(1, 5):
        log.write({"step": step, "score": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "sc')
    again = MetricsLog(tmp_path, resumed_at=2)
    again.write({"step": 3, "score": 30.0})
    again.close()
    assert [row["score"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 30.0]
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_report_has_a_summary_and_plots(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    loop = PPOLoop(
        build_policy(),
        FunctionRewards(count_e),
        PROMPTS,
        config(),
        callbacks=[lambda m, rollouts, scores: log.write(m)],
    )
    loop.train()
    log.close()
    summary = write_report(tmp_path)
    assert summary["steps"] == 3
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (tmp_path / "plots.png").read_bytes().startswith(b"\x89PNG")


def test_prompts_are_read_from_pairs_and_bad_rows_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    messages = [{"role": "user", "content": "hi"}]
    path.write_text("\n".join(json.dumps(row) for row in [{"prompt": "a", "chosen": "b"}, {"prompt": messages}]))
    assert load_prompts(path) == ["a", messages]
    path.write_text('{"prompt": 3}\n{"prompt": "fine"}\n{}\n')
    with pytest.raises(RowsError, match=r"p\.jsonl:1: .*p\.jsonl:3: "):
        load_prompts(path)
    path.write_text('{"prompt": "fine"}\nnot json\n[]\n')
    with pytest.raises(RowsError, match=r"p\.jsonl:2: not JSON.*p\.jsonl:3: a row must be an object"):
        load_prompts(path)
