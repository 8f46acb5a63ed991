"""Training: losses equal their formulas, runs can be resumed, and the bundle has the reported figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from redline.causal_lm.cpu_precision import choose
from redline.preference_data.row_report import RowReport
from redline.preference_data.rows import Pair
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.loading import load_tokenizer
from redline_model.bundle.make_encoder import make_encoder
from redline_model.encoding.items import Item
from redline_model.errors import BundleError, DataError
from redline_model.options import Template
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import Scorer
from redline_trainer.adapters import trainable_model, unwrapped
from redline_trainer.checkpoint import ResumeError
from redline_trainer.config import TrainConfig
from redline_trainer.encode_pairs import EncodedPair, encode_pairs
from redline_trainer.evaluation.accuracy import evaluate
from redline_trainer.objectives.bradley_terry import ScalarObjective
from redline_trainer.objectives.factory import default_learning_rate
from redline_trainer.objectives.seq2seq import Seq2SeqObjective
from redline_trainer.optimizer_step import DivergedError, StepReport, run_optimizer_step
from redline_trainer.train import (
    checkpoint_path,
    learning_rate_at,
    resumable_step,
    step_indices,
    train,
)
from tests.conftest import build_encoder_decoder, build_tokenizer, save_base

WORDS = ["round", "red", "blue", "green", "small", "left"]
PAIRS = [
    Pair(
        f"How do I reset my router {n}?",
        f"Hold the {w} button.",
        f"Eat the {w} soup, it is {n} days old.",
        f"t:{n}",
    )
    for n, w in enumerate(WORDS * 4)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_base(tmp_path_factory.mktemp("base")))


def config(base: str, out: Path, **settings: Any) -> TrainConfig:
    defaults = {
        "max_steps": 6,
        "pairs_per_step": 4,
        "learning_rate": 1e-3,
        "held_out_share": 0.3,
        "checkpoint_every": 2,
    }
    return TrainConfig(base=base, out=out, **(defaults | settings))


def encoded(scorer: Scorer[Any], pairs: list[Pair]) -> list[EncodedPair]:
    return encode_pairs(scorer.encoder, pairs, "error")[0]


def plain_nll(scorer: Scorer[Any], source: str, target: str) -> float:
    """``-sum log pi(target | prompt, source)`` from full logits."""
    encoder = scorer.encoder
    x, y = encoder.encode(Item(PAIRS[0].prompt, source)), encoder.encode(Item(PAIRS[0].prompt, target))
    ids = [*x.prefix_ids, *x.response_ids, *x.instruction_ids, *y.target_ids]
    with torch.no_grad():
        logprobs = scorer.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    start = len(ids) - len(y.target_ids)
    return -sum(float(logprobs[start + t - 1, token]) for t, token in enumerate(y.target_ids))


def test_the_seq2seq_loss_is_the_negative_log_likelihood_of_both_mappings(causal_scorer: Scorer[Any]) -> None:
    pair = encoded(causal_scorer, PAIRS[:1])[0]
    w, l = PAIRS[0].chosen, PAIRS[0].rejected  # noqa: E741
    for weight in (0.0, 0.5, 1.0):
        objective = Seq2SeqObjective(causal_scorer.model, identity_weight=weight)
        with torch.no_grad():
            loss = float(objective.loss(objective.examples(pair)))
        expected = plain_nll(causal_scorer, l, w) + weight * plain_nll(causal_scorer, w, w)
        assert loss == pytest.approx(expected, rel=1e-4)


def test_the_scalar_loss_is_that_of_bradley_terry(scalar_scorer: Scorer[Any]) -> None:
    pairs = encoded(scalar_scorer, PAIRS[:3])
    objective = ScalarObjective(scalar_scorer.model)
    with torch.no_grad():
        loss = float(objective.loss(pairs))
    scores = [
        [
            scalar_scorer.to_rewards(scalar_scorer.forward([side])[0], RewardSpec(None, "sum")).score
            for side in (p.chosen, p.rejected)
        ]
        for p in pairs
    ]
    expected = -sum(float(torch.nn.functional.logsigmoid(torch.tensor(w - r))) for w, r in scores)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_the_loss_of_a_step_does_not_depend_on_microbatches(base: str, tmp_path: Path) -> None:
    losses: dict[int, list[float]] = {}
    for tokens in (100_000, 100):
        seen: list[StepReport] = []
        train(config(base, tmp_path / str(tokens), max_batch_tokens=tokens), PAIRS, observers=[seen.append])
        losses[tokens] = [report.loss for report in seen]
    assert losses[100] == pytest.approx(losses[100_000], rel=1e-3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_resumed_run_has_the_result_of_an_uninterrupted_one(base: str, tmp_path: Path, method: str) -> None:
    settings: dict[str, Any] = {"method": method, "lora_dropout": 0.1 if method == "lora" else 0.0}
    unbroken = train(config(base, tmp_path / "unbroken", **settings), PAIRS)

    class Killed(BaseException):
        pass

    def kill(report: StepReport) -> None:
        if report.step == 5:
            raise Killed

    broken = config(base, tmp_path / "broken", **settings)
    with pytest.raises(Killed):
        train(broken, PAIRS, observers=[kill])
    assert not broken.out.exists()
    assert resumable_step(broken.out) == 4
    seen: list[StepReport] = []
    resumed = train(broken, PAIRS, observers=[seen.append])
    assert [report.step for report in seen] == [5, 6]
    weights = "model.safetensors"
    assert resumed.manifest.files[weights] == unbroken.manifest.files[weights]
    assert not checkpoint_path(broken.out).exists()


def test_a_checkpoint_of_another_run_is_an_error(base: str, tmp_path: Path) -> None:
    def stop(report: StepReport) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(base, tmp_path / "out"), PAIRS, observers=[stop])
    with pytest.raises(ResumeError, match="other settings"):
        train(config(base, tmp_path / "out", seed=9), PAIRS)
    with pytest.raises(ResumeError, match="other settings or data"):
        train(config(base, tmp_path / "out"), PAIRS[:-3])


@pytest.mark.parametrize("kind", ["seq2seq", "scalar"])
def test_the_bundle_has_the_figures_that_the_trainer_reports(base: str, tmp_path: Path, kind: str) -> None:
    result = train(config(base, tmp_path / "rm", kind=kind), PAIRS[:16], held_out=PAIRS[16:])
    bundle = Bundle.load(tmp_path / "rm")
    again = evaluate(bundle.scorer, encoded(bundle.scorer, PAIRS[16:]), 8192)
    assert result.evaluation is not None
    for name, interval in again.evaluation.accuracy.items():
        assert interval == result.evaluation.accuracy[name]
    for figure in ("correction_loss", "identity_loss", "identity_copy_rate"):
        outputs, served = getattr(result.evaluation, figure), getattr(again.evaluation, figure)
        assert served == (outputs if outputs is None else pytest.approx(outputs, rel=1e-5))
    for key, fit in again.calibration.items():
        assert fit.temperature == pytest.approx(bundle.manifest.calibration[key].temperature, rel=1e-4)


def test_training_lowers_the_loss_and_ranks_pairs(base: str, tmp_path: Path) -> None:
    seen: list[StepReport] = []
    settings = config(base, tmp_path / "rm", max_steps=80, learning_rate=3e-3, pairs_per_step=8, checkpoint_every=1000)
    result = train(settings, PAIRS, held_out=PAIRS[:6], observers=[seen.append])
    assert seen[-1].loss < 0.3 * seen[0].loss
    assert result.evaluation is not None
    assert result.evaluation.accuracy["margin/sum"].mean == 1.0


def test_qlora_trains_and_saves_a_plain_bundle(base: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    seen: list[StepReport] = []
    train(config(base, tmp_path / "rm", method="qlora", max_steps=3), PAIRS, observers=[seen.append])
    assert len(seen) == 3
    assert Bundle.load(tmp_path / "rm").manifest.training["method"] == "qlora"


@pytest.mark.filterwarnings("error:.*autograd kernel was not registered.*:UserWarning")
def test_qlora_gradients_reach_every_layer(base: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    settings = config(base, tmp_path / "rm", method="qlora")
    model = trainable_model(settings, LoadOptions(device="cpu"))
    tokenizer = load_tokenizer(base)
    encoder = make_encoder("seq2seq", unwrapped(model).config, tokenizer, Template.fitting(tokenizer), 512)
    objective = Seq2SeqObjective(unwrapped(model))
    objective.loss(objective.examples(encode_pairs(encoder, PAIRS[:1], "error")[0][0])).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and "lora_B" in n}
    assert len(gradients) == 2 * 7  # seven projections in each of two layers
    assert all(g is not None and float(g.abs().max()) > 0 for g in gradients.values())


def test_encoder_decoder_models_train(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(chat=False)
    folder = tmp_path / "t5"
    build_encoder_decoder(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    train(config(str(folder), tmp_path / "rm", max_steps=2), PAIRS)
    assert Bundle.load(tmp_path / "rm").scorer.model.config.is_encoder_decoder


def test_every_pair_that_is_too_long_is_reported_before_training(base: str, tmp_path: Path) -> None:
    pairs = [
        *PAIRS,
        Pair("word " * 400, "yes", "no", "f.jsonl:7"),
        Pair("p", "word " * 400, "no", "f.jsonl:9"),
    ]
    with pytest.raises(DataError) as caught:
        train(config(base, tmp_path / "rm", held_out_share=0.0), pairs)
    assert "f.jsonl:7" in str(caught.value)
    assert "f.jsonl:9" in str(caught.value)
    result = train(config(base, tmp_path / "rm", on_too_long="skip", held_out_share=0.0), pairs)
    assert result.skipped_pairs == 2
    assert result.training_pairs == len(PAIRS)


UNUSABLE = [
    Pair("p", "Hold  it.", "Hold  it.", "f.jsonl:1"),  # equal texts have equal token ids
    Pair("p", "yes", "no", "f.jsonl:2", tools=[{"name": "weather"}]),
    Pair("word " * 400, "yes", "no", "f.jsonl:3"),
]
REASONS = ["the same token ids", "'tools'", "tokens"]


def test_pairs_that_cannot_be_used_are_an_error_or_skipped_with_their_reasons(
    causal_scorer: Scorer[Any], base: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="3 pairs cannot be used") as caught:
        encode_pairs(causal_scorer.encoder, [*PAIRS, *UNUSABLE], "error")
    lines = str(caught.value).splitlines()[1:]
    report = RowReport(skips=True, file=tmp_path / "skipped.jsonl")
    result = train(config(base, tmp_path / "rm", held_out_share=0.0), [*PAIRS, *UNUSABLE], row_report=report)
    assert (result.training_pairs, result.skipped_pairs) == (len(PAIRS), 0)
    written = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    for number, reason in enumerate(REASONS):
        assert f"f.jsonl:{number + 1}: " in lines[number]
        assert reason in lines[number]
        assert (written[number]["file"], written[number]["row"]) == ("f.jsonl", number + 1)
        assert reason in written[number]["reason"]
    with pytest.raises(DataError, match=r"(?s)no pairs are left to train on.*f\.jsonl:1: "):
        train(config(base, tmp_path / "other"), UNUSABLE, row_report=RowReport(skips=True))


def test_pairs_with_equal_token_ids_are_an_error(causal_scorer: Scorer[Any]) -> None:
    from tokenizers import normalizers

    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    encoder = make_encoder("seq2seq", causal_scorer.model.config, tokenizer, causal_scorer.encoder.template, None)
    with pytest.raises(DataError, match=r"f\.jsonl:1: 'chosen' and 'rejected' have the same token ids"):
        encode_pairs(encoder, [Pair("p", "Hold it.", "hold it.", "f.jsonl:1")], "error")
    assert len(encode_pairs(encoder, [Pair("p", "Hold it.", "hold on.", "f.jsonl:1")], "error")[0]) == 1


def test_a_prompt_is_truncated_for_the_longest_sequence_of_its_pair(causal_scorer: Scorer[Any]) -> None:
    from redline_model.bundle.make_encoder import make_encoder as encoder_for

    tokenizer = causal_scorer.encoder.tokenizer
    encoder = encoder_for("seq2seq", causal_scorer.model.config, tokenizer, causal_scorer.encoder.template, 250)
    pair = Pair("word " * 200, "Hold the button. " * 4, "Eat.", "t:1")
    (encoded,), _ = encode_pairs(encoder, [pair], "truncate")
    assert encoded.chosen.prefix_ids == encoded.rejected.prefix_ids, "both sides have one prompt"
    longest = max(
        encoder.length(len(s.prefix_ids), len(s.response_ids), len(s.instruction_ids), len(t.target_ids))
        for s in encoded[:2]
        for t in (encoded.chosen, s)
    )
    assert longest == 250


def test_bad_bases_and_outputs_are_errors_before_training(base: str, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(BundleError, match="exists"):
        train(config(base, tmp_path / "taken"), PAIRS)
    with pytest.raises(BundleError, match="no model configuration"):
        train(config(str(tmp_path / "nowhere"), tmp_path / "rm"), PAIRS)


def test_every_pair_is_used_once_per_epoch() -> None:
    seen = [i for step in range(10) for i in step_indices(step, 25, 5, seed=1)]
    assert sorted(seen[:25]) == list(range(25)) == sorted(seen[25:])
    assert seen[:25] != seen[25:]


def test_the_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate_at(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0) == rates[9]
    assert rates[-1] == pytest.approx(0.11)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("kind", ["seq2seq", "scalar", "dpo", "sft", "qrm"])
def test_a_step_that_is_not_finite_is_not_applied(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float, where: str, kind: str
) -> None:
    class BadGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * bad

    seen: list[StepReport] = []
    changed: list[bool] = []

    def faulty_step(
        step: int, rate: float, config: TrainConfig, objective: Any, *args: Any, **options: Any
    ) -> StepReport:
        if step < 2:
            return run_optimizer_step(step, rate, config, objective, *args, **options)
        learning, plain = args[2], type(objective).loss
        before = [p.detach().clone() for p in learning]
        monkeypatch.setattr(
            objective,
            "loss",
            lambda examples: (
                plain(objective, examples) * bad if where == "loss" else BadGradient.apply(plain(objective, examples))
            ),
        )
        try:
            return run_optimizer_step(step, rate, config, objective, *args, **options)
        finally:
            changed.append(any(not torch.equal(a, b) for a, b in zip(before, learning, strict=True)))

    monkeypatch.setattr("redline_trainer.train.run_optimizer_step", faulty_step)
    out = tmp_path / "rm"
    with pytest.raises(DivergedError, match=r"^step 3 was not applied.*rm\.refused-step-3\.jsonl$") as caught:
        train(config(base, out, kind=kind, held_out_share=0.0), PAIRS, observers=[seen.append])
    assert "\n" not in str(caught.value)
    assert len(seen) == 2
    assert changed == [False]
    assert not out.exists()
    rows = [json.loads(line) for line in (tmp_path / "rm.refused-step-3.jsonl").read_text().splitlines()]
    expected = [PAIRS[i] for i in step_indices(2, len(PAIRS), 4, 0)]
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [
        (pair.prompt, pair.chosen, pair.rejected) for pair in expected
    ]


@pytest.mark.parametrize(
    ("settings", "parameters", "rate"),
    [
        ({"kind": "seq2seq"}, 135_000_000, 2e-5),
        ({"kind": "scalar"}, 135_000_000, 1e-5),
        ({"kind": "red"}, 7_000_000_000, 1e-5),
        ({"kind": "sft"}, 135_000_000, 2e-5),
        ({"kind": "qrm"}, 135_000_000, 1e-5),
        ({"kind": "dpo"}, 1_000_000_000, 1e-6),
        ({"kind": "dpo"}, 7_000_000_000, 1e-6),
        ({"kind": "dpo"}, 250_000_000, 2e-6),
        ({"kind": "dpo"}, 40_000_000, 5e-6),
        ({"kind": "dpo"}, 100_000, 1e-5),
        ({"kind": "dpo", "method": "lora"}, 1_000_000_000, 1e-5),
        ({"kind": "seq2seq", "method": "qlora"}, 7_000_000_000, 2e-4),
    ],
)
def test_default_learning_rates_suit_pretrained_bases(settings: dict[str, Any], parameters: int, rate: float) -> None:
    config = TrainConfig(base="b", out=Path("o"), **settings)
    assert default_learning_rate(config, parameters) == pytest.approx(rate)


def test_the_bundle_records_the_default_learning_rate(base: str, tmp_path: Path) -> None:
    seen: list[StepReport] = []
    settings = config(base, tmp_path / "rm", kind="dpo", learning_rate=None, max_steps=1, warmup_share=0.0)
    result = train(settings, PAIRS, observers=[seen.append])
    assert seen[0].learning_rate == pytest.approx(1e-5)  # a tiny model
    assert result.manifest.training["learning_rate"] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("precision", "speeds", "has_bfloat16"),
    [
        ("auto", (50.0, 400.0), True),
        ("auto", (50.0, 60.0), False),
        ("bfloat16", (50.0, 60.0), True),
        ("float32", (50.0, 400.0), False),
    ],
)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_on_a_cpu_the_precision_follows_the_measurement_and_weights_stay_float32(
    base: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    speeds: tuple[float, float],
    has_bfloat16: bool,
    method: str,
) -> None:
    monkeypatch.delenv("REDLINE_CPU_PRECISION", raising=False)
    monkeypatch.setattr("redline.causal_lm.cpu_precision._cached", choose(*speeds))
    plain, seen = Seq2SeqObjective.loss, []

    def watched(self: Seq2SeqObjective, examples: Any) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return plain(self, examples)

    monkeypatch.setattr(Seq2SeqObjective, "loss", watched)
    settings = config(base, tmp_path / "rm", precision=precision, method=method, max_steps=1, device="cpu")
    assert all(p.dtype == torch.float32 for p in trainable_model(settings, LoadOptions(dtype="float32")).parameters())
    train(settings, PAIRS)
    assert set(seen) == {has_bfloat16}
    from safetensors import safe_open

    with safe_open(tmp_path / "rm/model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
