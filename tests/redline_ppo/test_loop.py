"""The loop on a real tiny policy: honest first step, learning, exact resume, and every seam's second implementation."""

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


def policy(lora: bool = False, temperature: float = 1.0, max_new_tokens: int = 8, calm: float = 0.3) -> CausalPolicy:
    tokenizer = build_tokenizer()
    model = build_causal(len(tokenizer), seed=1)
    for parameter in model.parameters():  # a calmer start than the scorers': sampling must vary
        parameter.data *= calm
    if lora:
        from peft import LoraConfig, TaskType, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, target_modules="all-linear"))
    return CausalPolicy(model, tokenizer, max_new_tokens=max_new_tokens, temperature=temperature)


def count_e(rollout: Rollout) -> list[float]:
    """One for every token whose text holds an e: visible in the text, and dense."""
    return [float("e" in rollout.text[start:end]) for start, end in rollout.spans]


def config(**settings: Any) -> PPOConfig:
    """For a tiny untrained policy, whose responses are nearly all cut at the limit."""
    given = {"steps": 3, "rollouts": 8, "sample_batch": 4, "minibatch": 4, "epochs": 2, "learning_rate": 1e-3}
    given |= {"cut_responses": "keep", "reward_scale": "auto"}
    return PPOConfig(**(given | settings))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_before_any_update_ratio_is_1_and_kl_is_0(lora: bool, temperature: float) -> None:
    torch.manual_seed(0)
    mine = policy(lora, temperature)
    rollouts = mine.sample(PROMPTS, range(len(PROMPTS)))
    mask = token_mask(rollouts, mine.device)
    with torch.no_grad():
        logprobs = mine.outputs(rollouts).logprobs
        reference = mine.reference_logprobs(rollouts)
        alone = [mine.outputs([rollout]).logprobs[0] for rollout in rollouts]
    assert torch.allclose(logprobs[mask], reference[mask], atol=1e-6)
    for row, rollout in enumerate(rollouts):
        assert torch.allclose(alone[row], logprobs[row, : len(rollout.response_ids)], atol=1e-4)


def test_in_bfloat16_products_are_rounded_and_nothing_else() -> None:
    """Log-probabilities of the same tokens: near those in float32, not equal, and themselves in float32."""
    sound = policy(calm=1.0)
    rounded = CausalPolicy(sound.model, sound.tokenizer, max_new_tokens=8, precision="bfloat16")
    torch.manual_seed(0)
    rollouts = sound.sample(PROMPTS, range(len(PROMPTS)))
    mask = token_mask(rollouts, sound.device)
    with torch.no_grad():
        exact, told = sound.outputs(rollouts), rounded.outputs(rollouts)
    difference = (told.logprobs - exact.logprobs)[mask].abs()
    assert 0 < float(difference.max()) < 0.5
    assert told.logprobs.dtype == told.values.dtype == torch.float32
    assert torch.equal(told.logprobs, rounded.reference_logprobs(rollouts))


def test_logprobs_are_those_of_the_sampling_distribution() -> None:
    """Sampled frequencies of the first token agree with exp(logprob) at the sampling temperature."""
    torch.manual_seed(0)
    mine = policy(temperature=2.0, max_new_tokens=1, calm=1.0)
    rollouts = mine.sample([PROMPTS[0]] * 2000, range(2000))
    counts: dict[int, int] = {}
    for rollout in rollouts:
        counts[rollout.response_ids[0]] = counts.get(rollout.response_ids[0], 0) + 1
    token, count = max(counts.items(), key=lambda entry: entry[1])
    rollout = next(r for r in rollouts if r.response_ids[0] == token)
    with torch.no_grad():
        probability = float(mine.outputs([rollout]).logprobs[0, 0].exp())
    spread = (probability * (1 - probability) / 2000) ** 0.5
    assert abs(count / 2000 - probability) < 5 * spread


def test_rollouts_tell_text_spans_and_end() -> None:
    torch.manual_seed(0)
    mine = policy(max_new_tokens=40)
    for rollout in mine.sample(PROMPTS * 4, range(28)):
        assert len(rollout.spans) == len(rollout.response_ids)
        assert rollout.is_finished == (rollout.response_ids[-1] in mine.end_ids)
        assert not any(i in mine.end_ids for i in rollout.response_ids[:-1])
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
def test_a_policy_learns_what_is_rewarded(settings: dict[str, Any], precision: Any) -> None:
    seen: list[dict[str, float]] = []
    sound = policy()
    loop = PPOLoop(
        CausalPolicy(sound.model, sound.tokenizer, max_new_tokens=8, precision=precision),
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


def test_lora_leaves_the_base_as_it_was_and_saves_a_plain_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    mine = policy(lora=True)
    rollouts = mine.sample(PROMPTS[:2], [0, 1])
    before = mine.reference_logprobs(rollouts)
    PPOLoop(mine, FunctionRewards(count_e), PROMPTS, config()).train()
    assert torch.equal(before, mine.reference_logprobs(rollouts))
    mine.save(tmp_path / "policy")
    saved = AutoModelForCausalLM.from_pretrained(str(tmp_path / "policy")).eval()
    with torch.no_grad():
        now = mine.outputs(rollouts[:1]).logprobs[0]
        ids = torch.tensor([rollouts[0].prompt_ids + rollouts[0].response_ids])
        logprobs = saved(input_ids=ids).logits[0].log_softmax(-1)
    start = len(rollouts[0].prompt_ids)
    again = [float(logprobs[start + t - 1, token]) for t, token in enumerate(rollouts[0].response_ids)]
    assert again == pytest.approx(now.tolist(), abs=1e-4)


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_takes_the_steps_of_an_unbroken_one(tmp_path: Path, lora: bool) -> None:
    def run(steps: int, checkpoint: Path | None) -> tuple[PPOLoop, list[dict[str, float]]]:
        seen: list[dict[str, float]] = []
        loop = PPOLoop(
            policy(lora),
            FunctionRewards(count_e),
            PROMPTS,
            config(steps=steps, kl_target=0.5),
            callbacks=[lambda metrics, rollouts, scores: seen.append(metrics)],
        )
        loop.train(checkpoint, checkpoint_every=1)
        return loop, seen

    whole, all_metrics = run(4, None)
    run(2, tmp_path / "state.pt")
    torch.manual_seed(12345)  # whatever happened in between
    resumed, rest = run(4, tmp_path / "state.pt")
    assert len(rest) == 2
    for mine, theirs in zip(rest, all_metrics[2:], strict=True):
        timeless = {k: v for k, v in mine.items() if not k.startswith("seconds")}
        assert timeless == {k: theirs[k] for k in timeless}
    first, second = whole.policy.state(), resumed.policy.state()
    assert all(torch.equal(first["weights"][n], second["weights"][n]) for n in first["weights"])


def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    PPOLoop(policy(), FunctionRewards(count_e), PROMPTS, config(steps=1)).train(tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="clip"):
        PPOLoop(policy(), FunctionRewards(count_e), PROMPTS, config(clip=0.3)).train(tmp_path / "state.pt")


def test_a_checkpoint_of_another_experiment_is_refused_by_name(tmp_path: Path) -> None:
    def loop(source: str) -> PPOLoop:
        return PPOLoop(policy(), FunctionRewards(count_e), PROMPTS, config(steps=1), identity={"policy": source})

    loop("a").train(tmp_path / "state.pt")
    loop("a").train(tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="policy"):
        loop("b").train(tmp_path / "state.pt")


def test_the_reward_scale_is_of_what_is_summed_up_and_not_of_the_score_shown() -> None:
    class Averaging:
        def score(self, rollouts: Sequence[Rollout]) -> Scores:
            return Scores([Scored(sum(count_e(r)) / 1000, count_e(r)) for r in rollouts], None)

    scales = []
    for source in (Averaging(), FunctionRewards(count_e)):
        loop = PPOLoop(policy(), source, PROMPTS, config())
        loop.step()
        scales.append(loop.reward_scale)
    assert scales[0] == scales[1]


@pytest.mark.parametrize("advantage", ["group", "leave_one_out"])
def test_groups_of_one_are_refused(advantage: str) -> None:
    with pytest.raises(ValueError, match=f"'{advantage}' .* at least 2"):
        config(advantage=advantage)
    with pytest.raises(ValueError, match="multiple"):
        config(samples_per_prompt=3)


class Scripted:
    """A source that names a different model from the second call on."""

    def __init__(self) -> None:
        self.calls = 0

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        self.calls += 1
        return Scores([Scored(0.0, [0.0] * len(r.response_ids)) for r in rollouts], f"sha256:{self.calls > 2}")


def test_a_swapped_reward_model_is_noticed() -> None:
    with pytest.raises(ModelChangedError, match="step 2"):
        PPOLoop(policy(), Scripted(), PROMPTS, config(on_model_change="stop")).train()
    PPOLoop(policy(), Scripted(), PROMPTS, config()).train()


def test_a_swap_within_a_step_is_one_change() -> None:
    class Swapped:
        def __init__(self) -> None:
            self.digests = iter(["A", "A", "A", "B", "B", "B"])  # two batches a step: the second step sees both

        def score(self, rollouts: Sequence[Rollout]) -> Scores:
            return Scores([Scored(0.0, [0.0] * len(r.response_ids)) for r in rollouts], next(self.digests))

    loop = PPOLoop(policy(), Swapped(), PROMPTS, config())
    assert [loop.step()["model_changed"] for _ in range(3)] == [0.0, 1.0, 0.0]
    assert loop.digest == "B"


def test_wrong_numbers_of_rewards_are_an_error_and_never_padded() -> None:
    with pytest.raises(ProtocolError, match="rewards for"):
        PPOLoop(policy(), FunctionRewards(lambda rollout: [1.0]), PROMPTS, config()).step()


def test_a_source_that_gives_up_ends_the_run() -> None:
    class Gone:
        def score(self, rollouts: Sequence[Rollout]) -> Scores:
            raise ConnectionFailedError("gone")

    with pytest.raises(ConnectionFailedError):
        PPOLoop(policy(), Gone(), PROMPTS, config()).step()


def test_weighted_rewards_are_the_weighted_sum_token_by_token() -> None:
    torch.manual_seed(0)
    rollouts = policy().sample(PROMPTS[:3], range(3))
    whole = FunctionRewards(lambda rollout: 2.0)
    mixed = WeightedRewards([(0.5, FunctionRewards(count_e)), (-1.0, whole)]).score(rollouts)
    for rollout, item in zip(rollouts, mixed.items, strict=True):
        expected = [0.5 * e for e in count_e(rollout)]
        expected[-1] -= 2.0
        assert item.rewards == pytest.approx(expected)
        assert item.score == pytest.approx(sum(expected))


def test_every_prompt_comes_once_before_any_comes_again() -> None:
    loop = PPOLoop(policy(), FunctionRewards(count_e), PROMPTS, config(rollouts=4))
    drawn = [prompt for step in range(7) for prompt in loop.step_prompts(step)]
    for epoch in range(4):
        assert sorted(drawn[7 * epoch : 7 * epoch + 7]) == PROMPTS


def test_prompts_too_long_for_the_policy_are_named() -> None:
    mine = policy()
    mine.max_prompt_tokens = 20
    with pytest.raises(PolicyError, match="room for 20"):
        mine.prompt_ids("word " * 30)


def test_metrics_survive_an_unfinished_line_and_a_resume(tmp_path: Path) -> None:
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


def test_the_report_fits_the_line_and_draws(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    loop = PPOLoop(
        policy(),
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
