"""Training of the kinds other than seq2seq, of ODIN and of label smoothing: losses, learning, resuming, evaluation."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file

from redline_model.bundle.bundle import Bundle
from redline_model.bundle.load_options import LoadOptions
from redline_model.errors import UnsupportedError
from redline_model.options import AGGREGATES, STATISTICS_MODES
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import Scorer
from redline_model.scorers.dpo import REFERENCE
from redline_trainer.adapters import trainable_model, unwrapped
from redline_trainer.config import TrainConfig
from redline_trainer.encode_pairs import encode_pairs
from redline_trainer.evaluation.accuracy import evaluate
from redline_trainer.objectives.bradley_terry import ScalarObjective
from redline_trainer.objectives.dpo import DPOObjective
from redline_trainer.objectives.factory import make_objective
from redline_trainer.objectives.label_smoothing import SmoothedLabels
from redline_trainer.objectives.odin import ODINObjective
from redline_trainer.train import StepReport, checkpoint_path, resumable_step, train
from tests.conftest import build_dpo, build_encoder_decoder, build_scalar, build_scorer, build_tokenizer, padded
from tests.redline_trainer.test_train import PAIRS, base, config, encoded

__all__ = ["base"]  # a fixture

VARIANTS: dict[str, dict[str, Any]] = {
    "red": {"kind": "red"},
    "dpo": {"kind": "dpo"},
    "sft": {"kind": "sft"},
    "qrm": {"kind": "qrm"},
    "qrm with mismatches": {"kind": "qrm", "mismatch": True},
    "odin": {"kind": "scalar", "odin": True},
    "smoothed": {"kind": "scalar", "smoothing_rate": 0.5},
    "smoothed odin": {"kind": "red", "odin": True, "smoothing_rate": 0.5},
}


def total_score(scorer: Scorer[Any], item: Any) -> float:
    return scorer.to_rewards(scorer.forward([item])[0], RewardSpec(None, "sum")).score


@pytest.mark.parametrize("is_padded", [False, True])
def test_the_dpo_loss_equals_its_formula(tokenizer: Any, is_padded: bool) -> None:
    scorer = build_dpo(tokenizer, beta=0.5, is_padded=is_padded)
    pairs = encoded(scorer, PAIRS[:3])
    objective = DPOObjective(scorer.models[0], 0.5, reference=scorer.models[1])
    with torch.no_grad():
        loss = float(objective.loss(pairs))
    # the scorer's own score is beta * delta
    differences = [total_score(scorer, p.chosen) - total_score(scorer, p.rejected) for p in pairs]
    assert loss == pytest.approx(-sum(float(F.logsigmoid(torch.tensor(d))) for d in differences), rel=1e-3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_first_dpo_loss_is_log_2(base: str, tmp_path: Path, method: str) -> None:
    seen: list[StepReport] = []
    settings = config(base, tmp_path / "rm", kind="dpo", method=method, max_steps=1, lora_dropout=0.0)
    train(settings, PAIRS, observers=[seen.append])
    assert seen[0].loss == pytest.approx(math.log(2), abs=1e-6)


def test_with_adapters_the_reference_is_the_base(base: str, tmp_path: Path) -> None:
    settings = config(base, tmp_path / "rm", kind="dpo", method="lora", lora_dropout=0.3)
    model = trainable_model(settings, LoadOptions(device="cpu"))
    scorer = build_dpo(build_tokenizer(), seeds=(0, 0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    for module in model.modules():  # the base's own dropout must not affect the reference
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    pairs = encoded(scorer, PAIRS[:2])
    torch.manual_seed(0)
    with torch.no_grad():
        adapter_loss = float(make_objective(settings, model, 2).loss(pairs))
        torch.manual_seed(0)
        frozen = DPOObjective(unwrapped(model), settings.beta, reference=scorer.models[1])
        frozen_loss = float(frozen.loss(pairs))
    assert adapter_loss == pytest.approx(frozen_loss, rel=1e-3)


def test_a_dpo_bundle_is_a_policy_and_contains_its_reference(base: str, tmp_path: Path) -> None:
    from redline.ppo.policy import CausalPolicy

    train(config(base, tmp_path / "rm", kind="dpo", beta=0.3), PAIRS)
    manifest = Bundle.load(tmp_path / "rm").manifest
    assert manifest.beta == 0.3
    policy = CausalPolicy.load(tmp_path / "rm", device="cpu")
    before, after = load_file(Path(base) / "model.safetensors"), policy.model.state_dict()
    reference = load_file(tmp_path / "rm" / REFERENCE / "model.safetensors")
    assert all(torch.equal(reference[name], before[name]) for name in before)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    CausalPolicy.load(tmp_path / "rm" / REFERENCE, device="cpu")


def test_kinds_of_decoder_only_models_with_an_encoder_decoder_are_errors(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(chat=False)
    build_encoder_decoder(len(tokenizer)).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    for kind in ("dpo", "red", "sft", "qrm"):
        with pytest.raises(UnsupportedError, match=f"{kind} reward models are decoder-only"):
            train(config(str(tmp_path / "t5"), tmp_path / "rm", kind=kind), PAIRS)


@pytest.mark.parametrize("name", VARIANTS)
def test_training_lowers_the_loss(base: str, tmp_path: Path, name: str) -> None:
    seen: list[StepReport] = []
    settings = {"max_steps": 40, "learning_rate": 1e-3, "pairs_per_step": 8, "checkpoint_every": 1000}
    train(
        config(base, tmp_path / "rm", **settings, **VARIANTS[name]),
        PAIRS,
        held_out=PAIRS[:4],
        observers=[seen.append],
    )
    first, last = (sum(report.loss for report in part) for part in (seen[:4], seen[-4:]))
    # ODIN's loss goes to -1, minus the correlation of its length head with the length
    assert last < (0.5 * first if "odin" not in name else first - 2.0)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_has_the_result_of_an_uninterrupted_one(
    base: str, tmp_path: Path, name: str, method: str
) -> None:
    settings = {**VARIANTS[name], "method": method, "max_steps": 12, "checkpoint_every": 7}

    def run(out: str, stop_after: int | None = None) -> list[float]:
        losses: list[float] = []

        def observe(report: StepReport) -> None:
            losses.append(report.loss)
            if report.step == stop_after:
                raise KeyboardInterrupt

        train(config(base, tmp_path / out, **settings), PAIRS, observers=[observe])
        return losses

    unbroken = run("unbroken")
    with pytest.raises(KeyboardInterrupt):
        run("broken", stop_after=9)
    assert resumable_step(tmp_path / "broken") == 7
    assert run("broken") == unbroken[7:]
    digests = [Bundle.load(tmp_path / out).manifest.files["model.safetensors"] for out in ("unbroken", "broken")]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_bundle_has_the_figures_that_the_trainer_reports(base: str, tmp_path: Path, name: str) -> None:
    result = train(config(base, tmp_path / "rm", **VARIANTS[name]), PAIRS[:16], held_out=PAIRS[16:])
    bundle = Bundle.load(tmp_path / "rm")
    again = evaluate(bundle.scorer, encoded(bundle.scorer, PAIRS[16:]), 8192)
    assert result.evaluation is not None
    assert again.evaluation == result.evaluation
    names = STATISTICS_MODES if name == "sft" else (VARIANTS[name]["kind"],)
    assert set(bundle.manifest.calibration) == {f"{n}/{aggregate}" for n in names for aggregate in AGGREGATES}
    for key, fit in again.calibration.items():
        assert fit.temperature == pytest.approx(bundle.manifest.calibration[key].temperature, rel=1e-4)
    assert bundle.manifest.training["odin"] == VARIANTS[name].get("odin", False)


def test_an_odin_bundle_is_a_scalar_model_with_one_label(base: str, tmp_path: Path) -> None:
    for method in ("full", "lora"):
        train(config(base, tmp_path / method, kind="scalar", odin=True, method=method), PAIRS)
        names = load_file(tmp_path / method / "model.safetensors")
        assert names["score.weight"].shape[0] == 1
        assert not any("length" in name for name in names)
        bundle = Bundle.load(tmp_path / method)
        assert bundle.manifest.kind == "scalar"
        assert bundle.scorer.model.config.num_labels == 1


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_odin_loss_equals_its_formula(tokenizer: Any, sign: float) -> None:
    scalar_scorer = build_scorer("scalar", build_scalar(len(tokenizer)), tokenizer)
    scalar_scorer.model.score.weight.data *= sign
    pairs = encoded(scalar_scorer, PAIRS[:5])
    objective = ODINObjective(scalar_scorer.model, length_weight=0.7, orthogonality_weight=0.2)
    sides = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    with torch.no_grad():
        quality = objective.forward(sides)
        length = objective.length_head(objective.forward.pooled(sides)).squeeze(-1)
        loss = float(objective.loss(pairs))
    tokens = torch.tensor([float(len(side.target_ids)) for side in sides])
    quality_correlation, length_correlation = (
        float(torch.corrcoef(torch.stack([head, tokens]))[0, 1]) for head in (quality, length)
    )
    wq, wl = scalar_scorer.model.score.weight.detach().flatten(), objective.length_head.weight.detach().flatten()
    cosine = abs(float(wq @ wl / (wq.norm() * wl.norm())))
    total = quality + length
    ranking = -float(F.logsigmoid(total[:5] - total[5:]).sum())
    assert loss == pytest.approx(
        ranking + 5 * (0.7 * (abs(quality_correlation) - length_correlation) + 0.2 * cosine), rel=1e-4
    )


def test_odin_warns_once_about_one_pair_per_pass(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    scorer = build_scorer("scalar", build_scalar(len(tokenizer)), tokenizer)
    pairs = encoded(scorer, PAIRS[:2])
    objective = ODINObjective(scorer.model)
    objective.loss(pairs)
    assert not caplog.records
    objective.loss(pairs[:1])
    objective.loss(pairs[:1])
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_length_head_learns(base: str, tmp_path: Path) -> None:
    heads: list[torch.Tensor] = []
    settings = config(base, tmp_path / "rm", kind="scalar", odin=True, checkpoint_every=1, max_steps=4)

    def look(report: StepReport) -> None:
        path = checkpoint_path(settings.out)
        if path.exists():
            heads.append(torch.load(path, weights_only=False)["objective"]["length_head"])

    train(settings, PAIRS, observers=[look])
    assert len(heads) == 3
    assert not any(torch.equal(a, b) for a, b in pairwise(heads))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_odin_has_gradients_for_both_heads_and_the_body(base: str, tmp_path: Path, method: str) -> None:
    settings = config(base, tmp_path / "rm", kind="scalar", odin=True, method=method)
    model = trainable_model(settings, LoadOptions(device="cpu"))
    objective = make_objective(settings, model, 4)
    scorer = build_dpo(build_tokenizer())
    objective.loss(encode_pairs(scorer.encoder, PAIRS[:4], "error")[0]).backward()
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad and "lora_A" not in n}
    assert any("score" in name for name in learning)
    for name, parameter in [*learning.items(), ("length head", objective.parameters()[0])]:
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_a_label_moves_at_each_visit_by_hand() -> None:
    labels = SmoothedLabels(3, 0.25)
    d = torch.tensor([2.0, -1.0], requires_grad=True)
    loss = labels.loss_and_update([2, 0], d)
    assert float(loss.detach()) == pytest.approx(-sum(float(F.logsigmoid(torch.tensor(v))) for v in (2.0, -1.0)))
    after = [0.75 + 0.25 / (1 + math.exp(-v)) for v in (2.0, -1.0)]
    assert labels.values.tolist() == pytest.approx([after[1], 1.0, after[0]])
    loss.backward()
    assert d.grad is not None
    y = after[0]
    second = labels.loss_and_update([2], torch.tensor([0.5]))
    s = 1 / (1 + math.exp(-0.5))
    assert float(second) == pytest.approx(-y * math.log(s) - (1 - y) * math.log(1 - s))
    assert float(labels.values[2]) == pytest.approx(0.75 * y + 0.25 * s)


def test_hard_labels_are_the_bradley_terry_loss(scalar_scorer: Scorer[Any]) -> None:
    pairs = encoded(scalar_scorer, PAIRS[:4])
    with torch.no_grad():
        hard = ScalarObjective(scalar_scorer.model).loss(pairs)
        soft = ScalarObjective(scalar_scorer.model, SmoothedLabels(4, 0.0)).loss(pairs)
    assert float(soft) == pytest.approx(float(hard), rel=1e-5)


def test_labels_belong_to_their_pairs_in_all_epochs_and_microbatches(base: str, tmp_path: Path) -> None:
    losses: dict[int, list[float]] = {}
    for tokens in (100_000, 100):
        seen: list[StepReport] = []
        settings = config(
            base, tmp_path / str(tokens), kind="scalar", smoothing_rate=0.7, max_batch_tokens=tokens, max_steps=12
        )
        train(settings, PAIRS, observers=[seen.append])
        losses[tokens] = [report.loss for report in seen]
    assert losses[100] == pytest.approx(losses[100_000], rel=1e-3)


def test_options_of_other_kinds_are_errors() -> None:
    for kind in ("seq2seq", "dpo", "sft", "qrm"):
        for option in ({"odin": True}, {"smoothing_rate": 0.1}):
            with pytest.raises(ValidationError, match="scalar and red"):
                TrainConfig(base="b", out=Path("o"), kind=kind, **option)  # type: ignore[arg-type]


def test_padded_dpo_models_have_batches_of_whole_pairs(tokenizer: Any) -> None:
    scorer = build_dpo(tokenizer)
    objective = DPOObjective(padded(scorer.models[0]), 0.1, reference=padded(scorer.models[1]))
    pairs = encoded(scorer, PAIRS)
    batches = list(objective.batches(pairs, 200))
    assert sorted(i for batch in batches for i in batch) == list(range(len(pairs)))
    assert len(batches) > 1
