"""Every scorer kind over HTTP: the scores equal those of the scorer itself, and the client accepts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from redline.http.exchange import correct_batch, score_batch
from redline.preference_data.rows import Pair
from redline.wire import ScoreOptions, ScoreResponse
from redline.wire.correction import CorrectOptions, CorrectResponse
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.derive import derive_ensemble, derive_red
from redline_model.encoding.items import Item
from redline_model.reward_spec import all_reward_specs, reward_spec, spec_key
from redline_trainer.evaluation.length_calibration import derive_length_calibrated, evaluate_on
from tests.conftest import build_causal, build_dpo, build_scalar, build_scorer, write_bundle
from tests.redline_service.conftest import with_service

PROMPT = "How do I reset my router?"
RESPONSES = ["Hold the round button.", "I am sorry.", "世界 🙂"]
PAIRS = [Pair(f"{PROMPT} {n}", "Hold the button. " * (n % 3 + 1), "Go away.", f"t:{n}") for n in range(8)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, bundle: Bundle) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("served")
    scalars = [
        write_bundle(folder / f"s{n}", build_scorer("scalar", build_scalar(len(tokenizer), n), tokenizer), "scalar")
        for n in range(2)
    ]
    write_bundle(folder / "dpo", build_dpo(tokenizer), "dpo")
    languages = [
        write_bundle(folder / kind, build_scorer(kind, build_causal(len(tokenizer)), tokenizer), kind)
        for kind in ("sft", "qrm")
    ]
    measure = evaluate_on(PAIRS, [])
    derive_red(scalars[0].folder, folder / "red", evaluate=measure)
    derive_ensemble(
        [folder / "red", scalars[1].folder], folder / "ensemble", combine="mean_minus_variance", evaluate=measure
    )
    derive_length_calibrated(scalars[0].folder, folder / "length_calibrated", PAIRS)
    derive_length_calibrated(bundle.folder, folder / "length_calibrated seq2seq", PAIRS)
    for single in languages:
        kind = single.manifest.kind
        derive_length_calibrated(single.folder, folder / f"length_calibrated {kind}", PAIRS)
        derive_ensemble([single.folder, single.folder], folder / f"ensemble {kind}", evaluate=measure)
    return {name: Bundle.load(folder / name, prefix_cache_tokens=200) for name in KINDS}


KINDS = ["red", "dpo", "ensemble", "length_calibrated", "length_calibrated seq2seq"]
KINDS += ["sft", "qrm", "length_calibrated sft", "length_calibrated qrm", "ensemble sft", "ensemble qrm"]


def ask(bundle: Bundle, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    async def work(http: httpx.AsyncClient) -> httpx.Response:
        return await (http.get(path) if body is None else http.post(path, json=body))

    return with_service(bundle, work)


@pytest.mark.parametrize("kind", KINDS)
def test_served_scores_of_a_kind_equal_its_scorer_s(kind: str, served: dict[str, Bundle]) -> None:
    bundle = served[kind]
    items = [{"prompt": PROMPT, "response": text} for text in RESPONSES]
    for spec in all_reward_specs(bundle.scorer):
        options = {"mode": spec.mode, "aggregate": spec.aggregate}
        answer = ask(bundle, "/v1/score", {"items": items, "options": options})
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"]["kind"] == kind.split()[0]
        for text, item in zip(RESPONSES, answer.json()["items"], strict=True):
            encoded = bundle.scorer.encoder.encode(Item(PROMPT, text))
            expected = bundle.scorer.to_rewards(bundle.scorer.forward([encoded])[0], spec)
            assert item["score"] == pytest.approx(expected.score, abs=2e-3)
            assert item["rewards"] == pytest.approx(expected.rewards, abs=2e-3)
            assert len(item["offsets"]) == len(item["rewards"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_endpoint_describes_the_kind(kind: str, served: dict[str, Bundle]) -> None:
    bundle = served[kind]
    info = ask(bundle, "/v1/models/default").json()
    assert info["kind"] == kind.split()[0]
    assert info["digest"] == bundle.digest
    assert info["tokenizer_fingerprint"] == bundle.tokenizer_fingerprint
    assert (info["device"], info["dtype"]) == ("cpu", "float32")
    assert bool(info["modes"]) == ("seq2seq" in kind or "sft" in kind)
    calibrations = dict.fromkeys(["dpo", "sft", "qrm"], 0)
    calibrations |= dict.fromkeys(["length_calibrated seq2seq", "length_calibrated sft", "ensemble sft"], 18)
    assert len(info["calibration"]) == calibrations.get(kind, 3)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in {"dpo", "sft", "qrm"}])
def test_calibrated_scores_are_on_the_kind_s_own_scale(kind: str, served: dict[str, Bundle]) -> None:
    bundle = served[kind]
    scores = []
    for calibrated in (False, True):
        options = {"calibrated": calibrated}
        body = {"items": [{"prompt": PROMPT, "response": RESPONSES[0]}], "options": options}
        scores.append(ask(bundle, "/v1/score", body).json()["items"][0]["score"])
    fit = bundle.manifest.calibration[spec_key(bundle.scorer, reward_spec(bundle.scorer))]
    assert scores[1] == pytest.approx((scores[0] - fit.mean) / fit.temperature, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_only_seq2seq_kinds_write_corrections(kind: str, served: dict[str, Bundle]) -> None:
    items = [{"prompt": PROMPT, "response": text} for text in RESPONSES]
    answer = ask(served[kind], "/v1/score", {"items": items, "options": {"correction": True}})
    if "seq2seq" in kind:
        assert all(isinstance(item["correction"], str) for item in answer.json()["items"])
    else:
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "unsupported"


def test_a_bundle_can_be_moved(served: dict[str, Bundle], tmp_path: Path) -> None:
    moved = served["ensemble"].folder.rename(tmp_path / "moved")
    try:
        assert Bundle.load(moved).digest == served["ensemble"].digest
    finally:
        moved.rename(served["ensemble"].folder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_client_accepts_the_scores_of_a_kind(kind: str, served: dict[str, Bundle]) -> None:
    bundle = served[kind]
    ids = bundle.scorer.encoder.tokenizer("Hold it.", add_special_tokens=False)["input_ids"]
    by_id = {"prompt": PROMPT, "tokenizer_fingerprint": bundle.tokenizer_fingerprint}
    end = bundle.scorer.encoder.tokenizer.eos_token_id
    items = [
        *(
            {"id": str(n), "prompt": PROMPT, "response": text}
            for n, text in enumerate([*RESPONSES, " é\u0301\u200b\n"])
        ),
        {"prompt": PROMPT, "response": "Hold the", "finished": False},
        {"id": "", "prompt": PROMPT, "response": "Hold it.", "token_offsets": [(0, 2), (1, 4), (4, 8), (8, 8)]},
        {"prompt": PROMPT, "response": "", "token_offsets": [(0, 0)]},
        {**by_id, "response_ids": ids},
        {**by_id, "response_ids": [*ids, end]},
        {**by_id, "response_ids": [*ids[:1], *ids]},
        {"prompt": PROMPT, "response": ""},
    ]
    for number, spec in enumerate(all_reward_specs(bundle.scorer)):
        key = spec_key(bundle.scorer, spec)
        for is_calibrated in {False, key in bundle.manifest.calibration}:
            options = ScoreOptions(
                mode=spec.mode,
                aggregate=spec.aggregate,
                calibrated=is_calibrated,
                correction=bundle.scorer.can_correct and number == 0,
            )
            batch = score_batch(items, "default", options)
            answer = ask(bundle, batch.path, batch.body(range(len(items))))
            batch.add(range(len(items)), ScoreResponse.model_validate_json(answer.content, strict=True))
            assert [position for position, _ in batch.result().failures] == [len(items) - 1]  # the empty response


@pytest.mark.parametrize("kind", ["length_calibrated seq2seq"])
def test_the_client_accepts_the_corrections_of_a_kind(kind: str, served: dict[str, Bundle]) -> None:
    bundle = served[kind]
    ids = bundle.scorer.encoder.tokenizer("Hold it.", add_special_tokens=False)["input_ids"]
    items = [
        *({"id": str(n), "prompt": PROMPT, "response": text} for n, text in enumerate(RESPONSES)),
        {"prompt": PROMPT, "response": "Hold the", "finished": False},
        {"prompt": PROMPT, "response_ids": ids, "tokenizer_fingerprint": bundle.tokenizer_fingerprint},
    ]
    for max_rounds in (1, 4):
        for score_after in (False, True):
            options = CorrectOptions(max_rounds=max_rounds, score_after=score_after)
            batch = correct_batch(items, "default", options)
            answer = ask(bundle, batch.path, batch.body(range(len(items))))
            batch.add(range(len(items)), CorrectResponse.model_validate_json(answer.content, strict=True))
            assert batch.result().failures == []
