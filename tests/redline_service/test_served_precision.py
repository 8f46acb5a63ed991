"""Scores over HTTP equal offline scores in the CPU precision that was chosen, and callers can see the precision."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from redline.causal_lm import cpu_precision as module
from redline.causal_lm.cpu_precision import ENVIRONMENT
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.load_options import LoadOptions
from redline_model.encoding.items import Item
from redline_model.reward_spec import reward_spec
from redline_model.scorer import Scorer
from tests.conftest import build_causal, build_dpo, build_scalar, build_scorer, write_bundle
from tests.redline_service.conftest import with_service

ITEMS = [
    {"prompt": "How do I reset my router?", "response": "Hold the round button and wait ten seconds."},
    {"prompt": "How do I reset my router?", "response": "I am sorry, but I cannot help with that."},
    {"prompt": "Grüße?", "response": "The quick brown fox jumps over the lazy dog."},
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["seq2seq", "scalar", "red", "dpo", "sft", "qrm"])
def test_http_and_offline_scores_are_equal(
    kind: Any,
    precision: str,
    causal_scorer: Scorer[Any],
    tokenizer: Any,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    speeds = (50.0, 400.0) if precision == "bfloat16" else (50.0, 20.0)
    monkeypatch.setattr(module, "_cached", module.choose(*speeds))
    if kind in {"scalar", "red"}:
        scorer = build_scorer(kind, build_scalar(len(tokenizer)), tokenizer)
    elif kind in {"sft", "qrm"}:
        scorer = build_scorer(kind, build_causal(len(tokenizer)), tokenizer)
    else:
        scorer = causal_scorer if kind == "seq2seq" else build_dpo(tokenizer)
    folder = write_bundle(tmp_path / "rm", scorer, kind).folder
    offline, served = Bundle.load(folder, LoadOptions(device="cpu")), Bundle.load(folder, LoadOptions(device="cpu"))
    offline_scorer = offline.scorer
    assert str(offline_scorer.model.dtype) == f"torch.{precision}"

    async def work(http: httpx.AsyncClient) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        answers = [(await http.post("/v1/score", json={"items": [item]})).json()["items"][0] for item in ITEMS]
        return answers, (await http.get("/v1/models")).json()["models"][0]

    answers, info = with_service(served, work)
    for item, answer in zip(ITEMS, answers, strict=True):
        encoded = offline_scorer.encoder.encode(Item(item["prompt"], item["response"]))
        [output] = offline_scorer.forward([encoded])
        scored = offline_scorer.to_rewards(output, reward_spec(offline_scorer))
        assert answer["score"] == pytest.approx(scored.score, abs=1e-6)
        assert answer["rewards"] == pytest.approx(scored.rewards, abs=1e-6)
    assert info["dtype"] == precision
    expected = {"chosen": precision, "float32_gflops": speeds[0], "bfloat16_gflops": speeds[1]}
    assert info["cpu_precision"] == expected
