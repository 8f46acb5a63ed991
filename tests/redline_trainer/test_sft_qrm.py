"""Training of the kinds sft and qrm: losses equal their formulas, defaults, and what the bundles can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from redline.ppo.policy import CausalPolicy
from redline_model.bundle.bundle import Bundle
from redline_model.encoding.items import EncodedItem
from redline_model.options import CORRECTION_MODES, SFT_MODES, Template
from redline_model.reward_spec import reward_spec
from redline_trainer.objectives.base import Objective
from redline_trainer.objectives.qrm import QRMObjective
from redline_trainer.objectives.sft import SFTObjective
from redline_trainer.train import train
from tests.conftest import build_causal, build_scorer, padded
from tests.redline_trainer.test_train import PAIRS, base, config, encoded

__all__ = ["base"]  # a fixture


def plain_logits(model: Any, item: EncodedItem) -> Tensor:
    """The logits that predict the target's tokens, ``(T, V)``, from transformers alone."""
    ids = torch.tensor([[*item.prefix_ids, *item.target_ids]])
    logits: Tensor = model(ids).logits[0, len(item.prefix_ids) - 1 : -1]
    return logits


def nll(model: Any, item: EncodedItem) -> Tensor:
    return F.cross_entropy(plain_logits(model, item), torch.tensor(item.target_ids), reduction="sum")


def mean_logit(model: Any, item: EncodedItem) -> Tensor:
    return plain_logits(model, item)[range(len(item.target_ids)), item.target_ids].mean()


def loss_and_gradient(objective: Objective[Any], model: Any, pairs: Any) -> tuple[float, Tensor]:
    model.zero_grad()
    loss = objective.loss([example for pair in pairs for example in objective.examples(pair)])
    torch.autograd.backward(loss)
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("kind", ["sft", "qrm"])
def test_loss_and_gradient_equal_those_of_the_formula(tokenizer: Any, kind: str, is_padded: bool) -> None:
    model, plain = build_causal(len(tokenizer)), build_causal(len(tokenizer))
    scorer = build_scorer(kind, padded(model) if is_padded else model, tokenizer)
    pairs = encoded(scorer, PAIRS[:3])
    objective: Objective[Any] = SFTObjective(model) if kind == "sft" else QRMObjective(model)
    loss, gradient = loss_and_gradient(objective, model, pairs)
    if kind == "sft":
        expected = torch.stack([nll(plain, pair.chosen) for pair in pairs]).sum()
    else:
        differences = [mean_logit(plain, pair.chosen) - mean_logit(plain, pair.rejected) for pair in pairs]
        expected = -F.logsigmoid(torch.stack(differences)).sum()
    torch.autograd.backward(expected)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    assert torch.allclose(gradient, torch.cat([p.grad.flatten() for p in plain.parameters()]), rtol=1e-3, atol=1e-5)


def test_sizes_are_tokens_for_sft_and_comparisons_for_qrm(tokenizer: Any) -> None:
    model = build_causal(len(tokenizer))
    [pair] = encoded(build_scorer("qrm", model, tokenizer), PAIRS[:1])
    sft, qrm = SFTObjective(model), QRMObjective(model)
    assert [sft.size(example) for example in sft.examples(pair)] == [len(pair.chosen.target_ids)]
    assert [qrm.size(example) for example in qrm.examples(pair)] == [1]
    with_mismatch = pair._replace(mismatched=pair.rejected)
    assert [example.rejected for example in qrm.examples(with_mismatch)] == [pair.rejected] * 2


@pytest.mark.parametrize("is_padded", [False, True])
def test_a_pass_has_whole_pairs_and_at_most_its_tokens(tokenizer: Any, is_padded: bool) -> None:
    model = build_causal(len(tokenizer))
    pairs = encoded(build_scorer("qrm", model, tokenizer), PAIRS)
    objective = QRMObjective(padded(model) if is_padded else model)
    batches = list(objective.batches(pairs, 200))
    assert sorted(i for batch in batches for i in batch) == list(range(len(pairs)))
    for batch in batches:
        prompts = [len(pairs[i].chosen.prefix_ids) - 1 for i in batch]
        sides = [[len(side.target_ids) for side in (pairs[i].chosen, pairs[i].rejected)] for i in batch]
        packed = sum(prompts) + sum(map(sum, sides))  # the prompts differ
        longest = 2 * len(batch) * max(p + max(s) for p, s in zip(prompts, sides, strict=True))
        assert len(batch) > 1
        assert (longest if is_padded else packed) <= 200


def test_the_default_score_of_a_qrm_bundle_is_the_mean_that_its_loss_ranks(base: str, tmp_path: Path) -> None:
    scorers = {}
    for name, settings in {"qrm": {}, "summed": {"aggregate": "sum"}, "sft": {"kind": "sft"}}.items():
        train(config(base, tmp_path / name, **({"kind": "qrm", "max_steps": 1} | settings)), PAIRS)
        scorers[name] = Bundle.load(tmp_path / name)
    aggregates = {name: reward_spec(bundle.scorer).aggregate for name, bundle in scorers.items()}
    assert aggregates == {"qrm": "mean", "summed": "sum", "sft": "mean"}
    assert scorers["qrm"].manifest.training["aggregate"] == "mean"


def test_an_sft_bundle_is_a_policy_and_scores_its_own_samples_without_correction(base: str, tmp_path: Path) -> None:
    train(config(base, tmp_path / "rm", kind="sft"), PAIRS)
    bundle = Bundle.load(tmp_path / "rm")
    assert bundle.manifest.template == Template.of_policy()
    assert not bundle.scorer.can_correct
    assert not {*CORRECTION_MODES, *SFT_MODES} & set(bundle.scorer.modes)
    policy = CausalPolicy.load(tmp_path / "rm", device="cpu")
    prompt = PAIRS[0].prompt
    [pair] = encoded(bundle.scorer, PAIRS[:1])
    assert policy.prompt_ids(prompt) == pair.chosen.prefix_ids


@pytest.mark.parametrize("mode", [*CORRECTION_MODES, *SFT_MODES])
def test_modes_that_sft_does_not_have_are_refused_before_training(base: str, tmp_path: Path, mode: str) -> None:
    for option in ("mode", "score_mode"):
        with pytest.raises(ValidationError, match="modes of the kind sft are paper"):
            config(base, tmp_path / "rm", kind="sft", **{option: mode})
