"""The scorers red, dpo, ensemble and length_calibrated: formulas by hand, and scores independent of the batch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from redline_model.encoding.items import Item
from redline_model.errors import InvalidPromptError, NonFiniteError, UnsupportedError
from redline_model.extraction import aggregate_rewards, move_score
from redline_model.options import AGGREGATES, Aggregate, EnsembleOptions, Extraction, LengthCurve, Template
from redline_model.reward_spec import RewardSpec, all_reward_specs, reward_spec, spec_key
from redline_model.scorer import ScoredResponse, Scorer, correct_all
from redline_model.scorers.ensemble import EnsembleScorer, combine_members
from redline_model.scorers.length_calibrated import LengthCalibratedScorer
from tests.conftest import (
    build_causal,
    build_dpo,
    build_encoder_decoder,
    build_scalar,
    build_scorer,
    build_tokenizer,
    padded,
)

PROMPT = "How do I reset my router?"
RESPONSES = ["Hold the round button.", "I am sorry.", "世界 🙂", "To reset your router, open the network panel.", "a"]


def items_of(scorer: Scorer[Any]) -> list[Any]:
    texts = [Item(PROMPT + " please" * n, text, is_finished=n == 0) for n in (0, 7) for text in RESPONSES]
    return [scorer.encoder.encode(item) for item in texts]


def curves_of(inner: Scorer[Any]) -> dict[str, LengthCurve]:
    specs = all_reward_specs(inner)
    return {
        spec_key(inner, spec): LengthCurve(lengths=[2, 9, 30], values=[n, -1.5, 0.25 * n])
        for n, spec in enumerate(specs)
    }


def build(kind: str, tokenizer: Any, *, is_padded: bool) -> Scorer[Any]:
    """A scorer of ``kind`` whose passes are padded or packed."""

    def scalar(seed: int, kind: Any = "scalar") -> Scorer[Any]:
        model = build_scalar(len(tokenizer), seed)
        return build_scorer(kind, padded(model) if is_padded else model, tokenizer)

    def seq2seq(seed: int) -> Scorer[Any]:
        model = build_causal(len(tokenizer), seed)
        return build_scorer("seq2seq", padded(model) if is_padded else model, tokenizer)

    if kind == "red":
        return scalar(0, "red")
    if kind in {"sft", "qrm"}:
        model = build_causal(len(tokenizer))
        return build_scorer(kind, padded(model) if is_padded else model, tokenizer)
    if kind == "dpo":
        return build_dpo(tokenizer, is_padded=is_padded)
    if kind == "length_calibrated":
        inner = scalar(0)
        return LengthCalibratedScorer(inner, curves_of(inner))
    members = {
        "ensemble of scalars": lambda: [scalar(0), scalar(1), scalar(2, "red")],
        "ensemble of seq2seq": lambda: [seq2seq(0), seq2seq(1)],
    }[kind]()
    options = EnsembleOptions(members=len(members), combine="mean_minus_variance", variance_weight=0.3)
    return EnsembleScorer(members, options, Extraction())


KINDS = ["red", "dpo", "sft", "qrm", "length_calibrated", "ensemble of scalars", "ensemble of seq2seq"]


@pytest.mark.parametrize("is_padded", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_the_same_alone_and_in_any_batch(kind: str, is_padded: bool, tokenizer: Any) -> None:
    scorer = build(kind, tokenizer, is_padded=is_padded)
    items = items_of(scorer)
    assert (scorer.planner.prefix(items[0]) is None) == is_padded
    batches = list(scorer.planner.batches(items, 60))
    assert sorted(i for batch in batches for i in batch) == list(range(len(items)))
    together, backwards = scorer.forward(items), scorer.forward(items[::-1])[::-1]
    for item, first, second in zip(items, together, backwards, strict=True):
        alone = scorer.forward([item])[0]
        for spec in all_reward_specs(scorer):
            scored = scorer.to_rewards(alone, spec)
            assert len(scored.rewards) == len(item.target_ids)
            assert scored.rewards == pytest.approx(scorer.to_rewards(first, spec).rewards, abs=2e-3)
            assert scored.rewards == pytest.approx(scorer.to_rewards(second, spec).rewards, abs=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_the_aggregate_of_the_token_rewards(kind: str, tokenizer: Any) -> None:
    scorer = build(kind, tokenizer, is_padded=False)
    for outputs in scorer.forward(items_of(scorer)):
        for spec in all_reward_specs(scorer):
            scored = scorer.to_rewards(outputs, spec)
            aggregated = aggregate_rewards(torch.tensor(scored.rewards, dtype=torch.float64), spec.aggregate)
            assert scored.score == pytest.approx(aggregated, abs=1e-6)


@pytest.mark.parametrize("is_padded", [False, True], ids=["packed", "padded"])
def test_red_rewards_are_differences_of_the_scalar_score_of_every_prefix(is_padded: bool, tokenizer: Any) -> None:
    scorer = build("red", tokenizer, is_padded=is_padded)
    scalar_model = build_scalar(len(tokenizer), 0)
    for item, outputs in zip(items_of(scorer), scorer.forward(items_of(scorer)), strict=True):
        values = []
        for t in range(len(item.target_ids) + 1):  # a separate pass for every prefix of the response
            ids = torch.tensor([[*item.prefix_ids, *item.target_ids[:t]]])
            with torch.no_grad():
                values.append(float(scalar_model.score(scalar_model.model(input_ids=ids).last_hidden_state[0, -1])))
        scored = scorer.to_rewards(outputs, RewardSpec(None, "sum"))
        assert scored.rewards == pytest.approx([b - a for a, b in pairwise(values)], abs=1e-3)
        assert scored.score == pytest.approx(values[-1] - values[0], abs=1e-3)
        assert sum(scored.rewards) == pytest.approx(float(outputs[-1]) - float(outputs[0]), abs=1e-9)


def test_dpo_rewards_are_scaled_differences_of_log_probabilities(tokenizer: Any) -> None:
    scorer = build_dpo(tokenizer, beta=0.25)
    for item, outputs in zip(items_of(scorer), scorer.forward(items_of(scorer)), strict=True):
        logprobs = []
        for seed in (1, 2):
            ids = torch.tensor([[*item.prefix_ids, *item.target_ids]])
            with torch.no_grad():
                rows = build_causal(len(tokenizer), seed)(input_ids=ids).logits[0].log_softmax(-1)
            start = len(item.prefix_ids) - 1
            logprobs.append([float(rows[start + t, token]) for t, token in enumerate(item.target_ids)])
        expected = [0.25 * (a - b) for a, b in zip(*logprobs, strict=True)]
        assert scorer.to_rewards(outputs, RewardSpec(None, "sum")).rewards == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("is_padded", [False, True], ids=["packed", "padded"])
def test_a_policy_equal_to_its_reference_gets_no_dpo_reward(is_padded: bool, tokenizer: Any) -> None:
    scorer = build_dpo(tokenizer, seeds=(1, 1), is_padded=is_padded)
    for item, outputs in zip(items_of(scorer), scorer.forward(items_of(scorer)), strict=True):
        assert scorer.to_rewards(outputs, RewardSpec(None, "sum")).rewards == [0.0] * len(item.target_ids)


@pytest.mark.parametrize("chat", [True, False])
def test_a_dpo_prompt_is_the_policy_s_prompt(chat: bool, tokenizer: Any, plain_tokenizer: Any) -> None:
    from redline.ppo.policy import CausalPolicy

    chosen = tokenizer if chat else plain_tokenizer
    scorer = build_dpo(chosen)
    policy = CausalPolicy(scorer.model, chosen)
    prompts: list[Any] = [PROMPT, "Grüße aus Köln!\n\n", " a  b "]
    if chat:
        prompts.append([{"role": "system", "content": "Be kind."}, {"role": "user", "content": PROMPT}])
    for prompt in prompts:
        encoded = scorer.encoder.encode(Item(prompt, "Hold"))
        assert encoded.prefix_ids == policy.prompt_ids(prompt)


def test_an_empty_prompt_is_an_error_for_dpo(plain_tokenizer: Any) -> None:
    scorer = build_dpo(plain_tokenizer)
    with pytest.raises(InvalidPromptError, match="no token of the prompt"):
        scorer.encoder.encode(Item("", "Hold"))


def test_dpo_models_of_different_vocabularies_are_refused(tokenizer: Any) -> None:
    model, other = build_causal(len(tokenizer)), build_causal(len(tokenizer) + 1)
    with pytest.raises(UnsupportedError, match="tokens"):
        build_scorer("dpo", model, tokenizer, reference=other, beta=0.1)


SCORED = [
    ScoredResponse(3.0, [1.0, 2.0], None),
    ScoredResponse(-1.0, [0.0, -1.0], 1),
    ScoredResponse(1.0, [2.0, -1.0], 0),
]


def test_combining_by_hand() -> None:
    def combine_with(combine: Any, aggregate: Aggregate = "sum", **options: Any) -> ScoredResponse:
        return combine_members(SCORED, EnsembleOptions(members=3, combine=combine, **options), aggregate)

    assert combine_with("mean") == ScoredResponse(1.0, [1.0, 0.0], None)
    assert combine_with("min") == SCORED[1]
    # mean 1, population variance ((2)^2 + (-2)^2 + 0) / 3 = 8/3
    less = combine_with("mean_minus_variance", variance_weight=0.75)
    assert less.score == pytest.approx(1.0 - 0.75 * 8 / 3)
    assert less.rewards == pytest.approx([1.0, 0.0 - 2.0])
    assert combine_with("mean_minus_variance", variance_weight=0.0) == combine_with("mean")


def test_the_least_of_equals_is_the_first() -> None:
    equal = [ScoredResponse(1.0, [1.0], None), ScoredResponse(1.0, [1.0], 0)]
    assert combine_members(equal, EnsembleOptions(members=2, combine="min"), "sum") is equal[0]


def test_moving_a_score_moves_its_aggregate_and_the_last_reward_alone() -> None:
    rewards = [1.0, -2.0, 4.0]
    for aggregate in AGGREGATES:
        moved = move_score(rewards, 0.5, aggregate)
        before, after = (aggregate_rewards(torch.tensor(r), aggregate) for r in (rewards, moved))
        assert after - before == pytest.approx(0.5)
        assert moved[:-1] == rewards[:-1]
    assert rewards == [1.0, -2.0, 4.0]


def test_members_that_lay_items_out_differently_are_refused(tokenizer: Any, plain_tokenizer: Any) -> None:
    scalar = build_scorer("scalar", build_scalar(len(tokenizer)), tokenizer)
    other = build_scorer("scalar", build_scalar(len(tokenizer)), tokenizer, template=Template(style="plain"))
    seq2seq = build_scorer("seq2seq", build_causal(len(tokenizer)), tokenizer)
    words = plain_tokenizer.__class__(tokenizer_object=plain_tokenizer.backend_tokenizer, eos_token="<|user|>")
    words.chat_template = tokenizer.chat_template
    other_tokenizer = build_scorer("scalar", build_scalar(len(words)), words, template=scalar.encoder.template)
    changed = build_tokenizer()
    changed.chat_template = "{{ bos_token }}" + changed.chat_template
    own_chat = build_scorer("scalar", build_scalar(len(changed)), changed)
    options = EnsembleOptions(members=2)
    for second, what in (
        (other, "template"),
        (own_chat, "template"),
        (seq2seq, "arrangement"),
        (other_tokenizer, "tokenizer"),
    ):
        with pytest.raises(UnsupportedError, match=f"0 and 1 .* {what}"):
            EnsembleScorer([scalar, second], options, Extraction())
    with pytest.raises(UnsupportedError, match="2 has 1"):
        EnsembleScorer([scalar], options, Extraction())


def test_an_ensemble_has_the_smallest_token_limit_of_its_members(tokenizer: Any) -> None:
    members = [
        build_scorer("scalar", build_scalar(len(tokenizer) + extra), tokenizer, max_tokens=limit)
        for extra, limit in ((0, 90), (8, 70))
    ]
    scorer = EnsembleScorer(members, EnsembleOptions(members=2), Extraction())
    assert scorer.encoder.max_tokens == 70
    assert scorer.encoder.vocab_size == len(tokenizer)


def test_an_ensemble_starts_all_passes_before_it_waits_for_one(tokenizer: Any) -> None:
    scorer = build("ensemble of scalars", tokenizer, is_padded=False)
    assert isinstance(scorer, EnsembleScorer)
    order: list[str] = []
    for number, member in enumerate(scorer.members):

        def start_forward(items: Any, number: int = number, real: Any = member.start_forward) -> Any:
            order.append(f"start {number}")
            collect = real(items)
            return lambda: (order.append(f"collect {number}"), collect())[1]

        member.start_forward = start_forward  # type: ignore[method-assign]
    scorer.forward(items_of(scorer)[:2])
    assert order == [*(f"start {n}" for n in range(3)), *(f"collect {n}" for n in range(3))]


def test_passes_of_padded_and_packed_members_fit_both(tokenizer: Any) -> None:
    members = [build("red", tokenizer, is_padded=is_padded) for is_padded in (False, True)]
    scorer = EnsembleScorer(members, EnsembleOptions(members=2), Extraction())
    items = items_of(scorer)
    assert scorer.planner.prefix(items[0]) is None
    for batch in scorer.planner.batches(items, 80):
        assert len(batch) == 1 or len(batch) * max(scorer.planner.length(items[i]) for i in batch) <= 80


def test_a_length_curve_is_linear_between_knots_and_constant_beyond() -> None:
    curve = LengthCurve(lengths=[2, 6, 10], values=[0.0, 4.0, 2.0])
    assert [curve.at(n) for n in (1, 2, 3, 6, 9, 10, 99)] == pytest.approx([0, 0, 1, 4, 2.5, 2, 2])
    assert LengthCurve(lengths=[5], values=[3.0]).at(1) == 3.0
    for lengths, values in (([1, 1], [0, 0]), ([2, 1], [0, 0]), ([1], [0, 0]), ([], [])):
        with pytest.raises(ValueError, match=r"."):
            LengthCurve(lengths=lengths, values=values)


def test_a_length_calibrated_score_is_the_inner_score_minus_the_curve(tokenizer: Any) -> None:
    scorer = build("length_calibrated", tokenizer, is_padded=False)
    assert isinstance(scorer, LengthCalibratedScorer)
    for item, outputs in zip(items_of(scorer), scorer.forward(items_of(scorer)), strict=True):
        for spec in all_reward_specs(scorer):
            inner, scored = scorer.inner.to_rewards(outputs, spec), scorer.to_rewards(outputs, spec)
            expected = scorer.curves[f"scalar/{spec.aggregate}"].at(len(item.target_ids))
            assert scored.score == pytest.approx(inner.score - expected)
            assert scored.rewards[:-1] == inner.rewards[:-1]


def test_a_reward_specification_without_a_curve_is_refused(scalar_scorer: Scorer[Any]) -> None:
    curves = curves_of(scalar_scorer)
    del curves["scalar/mean"]
    with pytest.raises(UnsupportedError, match="scalar/mean"):
        LengthCalibratedScorer(scalar_scorer, curves)


def test_scorers_that_cannot_write_refuse_corrections(tokenizer: Any, causal_scorer: Scorer[Any]) -> None:
    for kind in KINDS:
        scorer = build(kind, tokenizer, is_padded=False)
        assert not scorer.can_correct
        with pytest.raises(UnsupportedError, match="correction"):
            correct_all(scorer, items_of(scorer)[:1])
    wrapped = LengthCalibratedScorer(causal_scorer, curves_of(causal_scorer))
    assert wrapped.can_correct
    assert correct_all(wrapped, items_of(wrapped)[:1])[0][1] == correct_all(causal_scorer, items_of(wrapped)[:1])[0][1]


def test_an_ensemble_has_the_modes_of_its_members(tokenizer: Any) -> None:
    seq2seq = build("ensemble of seq2seq", tokenizer, is_padded=False)
    assert reward_spec(seq2seq, "paper", "mean") == RewardSpec("paper", "mean")
    scalars = build("ensemble of scalars", tokenizer, is_padded=False)
    assert scalars.modes == ()
    with pytest.raises(UnsupportedError, match="modes"):
        reward_spec(scalars, "paper")


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_an_error_of_one_item(kind: str, tokenizer: Any) -> None:
    scorer = build(kind, tokenizer, is_padded=False)
    broken = tokenizer.convert_tokens_to_ids("z")
    items = [scorer.encoder.encode(Item("Hi", text)) for text in ("good", "zz")]
    with torch.no_grad():
        scorer.models[-1].get_input_embeddings().weight[broken] = float("nan")
    good, bad = scorer.forward(items)
    assert scorer.to_rewards(good, reward_spec(scorer)).rewards
    with pytest.raises(NonFiniteError):
        scorer.to_rewards(bad, reward_spec(scorer))


def test_encoder_decoder_members_make_an_ensemble(plain_tokenizer: Any) -> None:
    members = [
        build_scorer("seq2seq", build_encoder_decoder(len(plain_tokenizer), seed), plain_tokenizer) for seed in (0, 1)
    ]
    scorer = EnsembleScorer(members, EnsembleOptions(members=2), Extraction())
    items = items_of(scorer)
    spec = reward_spec(scorer)
    scores = [[member.to_rewards(m, spec).score for m in member.forward(items)] for member in members]
    actual = [scorer.to_rewards(m, spec).score for m in scorer.forward(items)]
    assert actual == pytest.approx([(a + b) / 2 for a, b in zip(*scores, strict=True)], abs=1e-3)
