"""``/v1/correct``: each response is rewritten, in rounds, until there is a reason to stop."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from redline.wire import ResponseItem, ScoreItem, ScoreRequest
from redline.wire.correction import CorrectOptions, CorrectRequest
from redline_model.bundle.bundle import Bundle
from redline_model.correction.edits import TextEdit, apply_edits
from redline_model.correction.rewriter import Correction
from redline_model.encoding.items import EncodedItem
from redline_model.scorers.seq2seq import Seq2SeqScorer
from redline_service.engine import Engine
from tests.conftest import build_causal, build_scorer, write_bundle
from tests.redline_service.conftest import with_service

Ask = Callable[..., httpx.Response]
PROMPT = "How do I reset my router?"
RESPONSES = ["Hold the round button.", "I am sorry.", "Grüße aus Köln", "The quick brown fox"]


def items_for(*responses: str) -> list[dict[str, Any]]:
    return [{"id": str(n), "prompt": PROMPT, "response": response} for n, response in enumerate(responses)]


def results_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    items: list[dict[str, Any]] = response.json()["items"]
    return items


async def correct(http: httpx.AsyncClient, items: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    return results_of(await http.post("/v1/correct", json={"items": items, "options": options}))


@pytest.fixture(scope="module")
def brief_bundle(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Bundle:
    """A model with a high probability of ending, so that rewrites are complete; for some of RESPONSES they cycle."""
    model = build_causal(len(tokenizer))
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 2.0
    return write_bundle(tmp_path_factory.mktemp("bundles") / "brief", build_scorer("seq2seq", model, tokenizer))


class ScriptedRewriter:
    """A rewriter that takes its rewrites from a table; a text that is not in the table is rewritten to itself.

    ``min_started``: for some texts, the number of rewrites that must have started before theirs finishes.
    ``failing``: texts whose rewrite runs out of memory.
    ``started``: texts whose rewrite has started. ``passes``: texts of all forward passes.
    """

    def __init__(self, table: dict[str, str | Correction]) -> None:
        self._table = table
        self.min_started: dict[str, int] = {}
        self.failing: set[str] = set()
        self.started: list[str] = []
        self.passes: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self._rewrite_ids = count()
        self._active: dict[int, str] = {}
        self._scorer: Any = None
        self.tokens = 0

    def around(self, bundle: Bundle) -> Bundle:
        """The bundle with a scorer that uses this rewriter."""
        script, original = self, bundle.scorer

        class ScriptedScorer(Seq2SeqScorer):
            def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Any]]:
                script.passes += [item.text for item in items]
                return super().start_forward(items)

            def rewriter(self) -> Any:
                return script

        self._scorer = ScriptedScorer.from_model(original.model, original.encoder, original.extraction)
        return Bundle(bundle.folder, bundle.manifest, self._scorer, bundle.load_options)

    def start(self, items: Sequence[EncodedItem]) -> list[tuple[int, Any]]:
        self.gate.wait(20)
        if any(item.text in self.failing for item in items):
            raise MemoryError
        results = []
        for item, output in zip(items, self._scorer.forward(items), strict=True):
            self.started.append(item.text)
            rewrite_id = next(self._rewrite_ids)
            self._active[rewrite_id] = item.text
            results.append((rewrite_id, output))
        return results

    def active(self) -> list[int]:
        return list(self._active)

    def advance(self, rewrite_ids: Sequence[int]) -> list[tuple[int, Correction]]:
        finished = []
        for rewrite_id in rewrite_ids:
            text = self._active[rewrite_id]
            if len(self.started) >= self.min_started.get(text, 0):
                del self._active[rewrite_id]
                rewrite = self._table.get(text, text)
                finished.append((rewrite_id, Correction(rewrite, True) if isinstance(rewrite, str) else rewrite))
        return finished

    def cancel(self, rewrite_id: int) -> None:
        self._active.pop(rewrite_id, None)


@pytest.mark.parametrize("name", ["bundle", "brief_bundle"])
def test_one_round_equals_the_correction_of_the_score_endpoint(name: str, request: pytest.FixtureRequest) -> None:
    async def work(http: httpx.AsyncClient) -> tuple[Any, Any]:
        body = {"items": items_for(*RESPONSES), "options": {"correction": True}}
        return await correct(http, items_for(*RESPONSES)), results_of(await http.post("/v1/score", json=body))

    corrected, scored = with_service(request.getfixturevalue(name), work)
    for item, correction, score in zip(items_for(*RESPONSES), corrected, scored, strict=True):
        assert correction["id"] == item["id"]
        assert correction["rounds"] == 1
        assert correction["correction"] == score["correction"]
        assert correction["edits"] == score["edits"]
        assert (correction["ended"] == "incomplete") == (not score["correction_complete"])
        assert correction["score_before"] == pytest.approx(score["score"], abs=1e-4)


def test_several_rounds_equal_separate_requests_of_one_round(brief_bundle: Bundle) -> None:
    async def correct_in_requests(http: httpx.AsyncClient, response: str) -> tuple[str, str, int]:
        texts = [response]
        while len(texts) <= 16:
            [result] = await correct(http, items_for(texts[-1]))
            ended = result["ended"]
            if ended == "max_rounds" and result["correction"] in texts:
                ended = "cycle"
            texts.append(result["correction"])
            if ended != "max_rounds":
                break
        return texts[-1], ended, len(texts) - 1

    async def work(http: httpx.AsyncClient) -> tuple[Any, Any]:
        in_rounds = await correct(http, items_for(*RESPONSES), max_rounds=16)
        return in_rounds, [await correct_in_requests(http, response) for response in RESPONSES]

    in_rounds, in_requests = with_service(brief_bundle, work)
    assert [(result["correction"], result["ended"], result["rounds"]) for result in in_rounds] == in_requests
    assert {result["ended"] for result in in_rounds} == {"incomplete", "cycle"}
    assert max(result["rounds"] for result in in_rounds) > 4


def test_the_edits_turn_the_response_into_the_correction(brief_bundle: Bundle) -> None:
    items = with_service(brief_bundle, lambda http: correct(http, items_for(*RESPONSES), max_rounds=3))
    for response, item in zip(RESPONSES, items, strict=True):
        assert apply_edits(response, [TextEdit(**edit) for edit in item["edits"]]) == item["correction"] != response


def test_a_fixed_point_ends_the_rounds_and_both_scores_cost_no_extra_pass(bundle: Bundle) -> None:
    script = ScriptedRewriter({"one": "two", "two": "three"})

    async def work(http: httpx.AsyncClient) -> tuple[Any, Any, list[str]]:
        script.passes.clear()
        corrected = await correct(http, items_for("one", "same"), max_rounds=16)
        passes = list(script.passes)
        return corrected, results_of(await http.post("/v1/score", json={"items": items_for("one", "three")})), passes

    (changed, same), (before, after), passes = with_service(script.around(bundle), work)
    assert (changed["correction"], changed["ended"], changed["rounds"]) == ("three", "fixed_point", 3)
    assert (changed["score_before"], changed["score_after"]) == pytest.approx(
        (before["score"], after["score"]), abs=1e-4
    )
    assert (same["correction"], same["ended"], same["rounds"], same["edits"]) == ("same", "fixed_point", 1, [])
    assert same["score_before"] == same["score_after"]
    assert sorted(passes) == ["one", "same", "three", "two"]  # no text was scored twice


@pytest.mark.parametrize("is_requested", [False, True])
def test_score_after_costs_a_pass_if_the_last_rewrite_was_not_scored(bundle: Bundle, is_requested: bool) -> None:
    script = ScriptedRewriter({"one": "two", "two": "three"})

    async def work(http: httpx.AsyncClient) -> tuple[Any, Any, list[str]]:
        script.passes.clear()
        corrected = await correct(http, items_for("one"), score_after=is_requested)
        passes = list(script.passes)
        return corrected[0], results_of(await http.post("/v1/score", json={"items": items_for("two")}))[0], passes

    result, after, passes = with_service(script.around(bundle), work)
    assert (result["correction"], result["ended"]) == ("two", "max_rounds")
    assert passes == ["one", "two"][: 1 + is_requested]
    assert result.get("score_after") == (pytest.approx(after["score"], abs=1e-4) if is_requested else None)
    assert script.started == ["one"]


def test_the_rounds_end_when_a_text_occurs_again(bundle: Bundle) -> None:
    script = ScriptedRewriter({"one": "two", "two": "three", "three": "two"})
    [result] = with_service(script.around(bundle), lambda http: correct(http, items_for("one"), max_rounds=16))
    assert (result["correction"], result["ended"], result["rounds"]) == ("two", "cycle", 3)
    assert script.started == ["one", "two", "three"]
    assert "score_after" in result  # the text was scored in an earlier round


@pytest.mark.parametrize(
    ("rewrite", "ended"),
    [
        ("", "empty"),
        (Correction("broken o", False), "incomplete"),
        ("word " * 400, "too_long"),
    ],
)
def test_a_rewrite_that_cannot_be_rewritten_again_is_the_correction(
    bundle: Bundle, rewrite: str | Correction, ended: str
) -> None:
    script = ScriptedRewriter({"one": "two", "two": rewrite})
    text = rewrite if isinstance(rewrite, str) else rewrite.text

    async def work(http: httpx.AsyncClient) -> Any:
        return await correct(http, items_for("one", "other"), max_rounds=16, score_after=True)

    result, other = with_service(script.around(bundle), work)
    assert (result["correction"], result["ended"], result["rounds"]) == (text, ended, 2)
    assert ("score_after" in result) == (ended == "incomplete")  # an incomplete rewrite is scored as unfinished
    assert apply_edits("one", [TextEdit(**edit) for edit in result["edits"]]) == text
    assert other["ended"] == "fixed_point"


def test_an_empty_rewrite_in_the_last_round_is_reported_as_empty(bundle: Bundle) -> None:
    script = ScriptedRewriter({"one": "", "two": "three"})
    empty, last = with_service(script.around(bundle), lambda http: correct(http, items_for("one", "two")))
    assert (empty["correction"], empty["ended"]) == ("", "empty")
    assert (last["correction"], last["ended"]) == ("three", "max_rounds")


def test_an_unfinished_response_counts_as_unfinished_in_the_first_round_only(bundle: Bundle) -> None:
    script = ScriptedRewriter({"one": "two"})

    async def work(http: httpx.AsyncClient) -> tuple[Any, Any]:
        items = [{**item, "finished": False} for item in items_for("one", "same")]
        body = {"items": [*items[:1], *items_for("two")]}
        return await correct(http, items, max_rounds=16), results_of(await http.post("/v1/score", json=body))

    (changed, same), (unfinished, finished) = with_service(script.around(bundle), work)
    scores = (unfinished["score"], finished["score"])
    assert (changed["score_before"], changed["score_after"]) == pytest.approx(scores, abs=1e-4)
    assert same["ended"] == "fixed_point"
    assert "score_after" not in same  # the correction is finished, and it was scored as unfinished only


def test_items_do_not_wait_for_each_other(bundle: Bundle) -> None:
    script = ScriptedRewriter({"slow": "slower", "a": "b", "b": "c", "c": "d"})
    script.min_started["slow"] = 5  # it finishes when the fourth rewrite of the other item has started
    slow, quick = with_service(
        script.around(bundle), lambda http: correct(http, items_for("slow", "a"), max_rounds=4), deadline_s=10.0
    )
    assert (slow["correction"], quick["correction"]) == ("slower", "d")


def test_an_item_that_fails_in_a_later_round_does_not_fail_the_others(bundle: Bundle) -> None:
    script = ScriptedRewriter({"one": "two", "a": "b"})
    script.failing = {"two"}
    failed, other = with_service(script.around(bundle), lambda http: correct(http, items_for("one", "a"), max_rounds=3))
    assert failed["error"]["code"] == "out_of_memory"
    assert failed["error"]["retryable"] is True
    assert (other["correction"], other["ended"]) == ("b", "fixed_point")


@pytest.mark.parametrize(
    ("item", "code"),
    [
        ({"prompt": "p", "response": ""}, "empty_response"),
        ({"prompt": [], "response": "x"}, "invalid_prompt"),
        ({"prompt": "p", "response_ids": [7], "tokenizer_fingerprint": "sha256:x"}, "tokenizer_mismatch"),
        ({"prompt": "word " * 600, "response": "x"}, "too_long"),
    ],
)
def test_a_bad_item_has_its_own_error_and_the_others_are_corrected(ask: Ask, item: dict[str, Any], code: str) -> None:
    good, other = items_for("Hold it.", "Wait.")
    first, bad, last = results_of(ask("POST", "/v1/correct", json={"items": [good, {**item, "id": "bad"}, other]}))
    assert (first["id"], last["id"]) == ("0", "1")
    assert first["correction"]
    assert last["correction"]
    assert (bad["id"], bad["error"]["code"], bad["error"]["retryable"]) == ("bad", code, False)


def test_too_long_prompts_are_truncated_if_requested(ask: Ask) -> None:
    body = {"items": [{"prompt": "word " * 600, "response": "x"}], "options": {"on_too_long": "truncate"}}
    assert results_of(ask("POST", "/v1/correct", json=body))[0]["truncated"] is True


def test_token_ids_and_text_get_the_same_correction(ask: Ask, bundle: Bundle) -> None:
    tokenizer = bundle.scorer.encoder.tokenizer
    by_id = {
        "prompt_ids": tokenizer(PROMPT)["input_ids"],
        "response_ids": [*tokenizer(RESPONSES[2])["input_ids"], tokenizer.eos_token_id],
        "tokenizer_fingerprint": bundle.tokenizer_fingerprint,
    }
    first, second = results_of(ask("POST", "/v1/correct", json={"items": [*items_for(RESPONSES[2]), by_id]}))
    assert {**first, "id": None} == {**second, "id": None}


def test_a_request_without_items_gets_no_results(ask: Ask) -> None:
    assert results_of(ask("POST", "/v1/correct", json={"items": []})) == []


@pytest.mark.parametrize(
    ("body", "status", "code", "reason"),
    [
        ({"items": items_for("x"), "options": {"max_rounds": 0}}, 422, "invalid_request", "options.max_rounds"),
        ({"items": items_for("x"), "options": {"max_rounds": 17}}, 422, "invalid_request", "options.max_rounds"),
        ({"items": items_for("x"), "options": {"max_rounds": 1.5}}, 422, "invalid_request", "options.max_rounds"),
        ({"items": items_for("x"), "options": {"mode": "paper"}}, 422, "invalid_request", "options.mode"),
        (
            {"items": [{**items_for("x")[0], "token_offsets": [[0, 1]]}]},
            422,
            "invalid_request",
            "items.0.token_offsets",
        ),
        ({"items": [{"prompt": "p"}]}, 422, "invalid_request", "items.0: give exactly one of 'response'"),
        ({"model": "nope", "items": items_for("x")}, 404, "model_not_found", "nope"),
        ({"items": items_for("x") * 2000}, 413, "request_too_large", "2000"),
    ],
)
def test_bad_requests_are_refused(ask: Ask, body: dict[str, Any], status: int, code: str, reason: str) -> None:
    response = ask("POST", "/v1/correct", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert reason in response.json()["error"]["message"]


def test_a_model_without_a_rewriter_refuses_corrections(scalar_bundle: Bundle) -> None:
    response = with_service(scalar_bundle, lambda http: http.post("/v1/correct", json={"items": items_for("x")}))
    assert (response.status_code, response.json()["error"]["code"]) == (422, "unsupported")


def test_an_encoder_decoder_model_corrects_in_rounds(encoder_decoder_scorer: Seq2SeqScorer, tmp_path: Path) -> None:
    served = write_bundle(tmp_path / "t5", encoder_decoder_scorer)
    items = with_service(served, lambda http: correct(http, items_for("Hold it.", "Wait."), max_rounds=2))
    assert [item["rounds"] >= 1 and math.isfinite(item["score_before"]) for item in items] == [True, True]


def test_the_response_names_model_options_and_token_usage(bundle: Bundle) -> None:
    script = ScriptedRewriter({"one": "two"})
    served = script.around(bundle)

    async def work(http: httpx.AsyncClient) -> tuple[httpx.Response, str]:
        body = {"items": items_for("one", "same"), "options": {"max_rounds": 5}}
        response = await http.post("/v1/correct", json=body)
        await http.post("/v1/score", json={"items": items_for("three"), "options": {"correction": True}})
        return response, (await http.get("/metrics")).text

    response, metrics = with_service(served, work)
    body = response.json()
    assert body["model"] == {"name": "default", "digest": bundle.digest, "kind": "seq2seq"}
    assert body["options"] == {"mode": "logprob", "score_mode": "logprob", "aggregate": "sum", "calibrated": False}
    encoded = [served.scorer.encoder.encode_response(_item(text))[0] for text in ("one", "same", "two")]
    assert body["usage"]["scored_tokens"] == sum(len(ids) + 1 for ids in encoded)
    assert "inference" in response.headers["Server-Timing"]
    # two rounds and one round in the first request, one rewrite in the second
    assert "redline_rewrites_total 4.0" in metrics
    assert 'redline_items_total{outcome="corrected"} 2.0' in metrics
    assert 'redline_requests_total{route="/v1/correct",status="200"} 1.0' in metrics


def _item(text: str) -> Any:
    from redline_model.encoding.items import Item

    return Item(PROMPT, text)


def test_the_openapi_document_describes_the_endpoint(ask: Ask) -> None:
    document = ask("GET", "/openapi.json").json()
    operation = document["paths"]["/v1/correct"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/CorrectRequest")
    assert {"200", "401", "404", "413", "422", "503"} <= set(operation["responses"])
    assert "token_offsets" not in document["components"]["schemas"]["ResponseItem"]["properties"]


def test_the_endpoint_requires_a_key_if_keys_are_set(ask: Ask) -> None:
    body, settings = {"items": items_for("x")}, {"keys": ["secret"]}
    assert ask("POST", "/v1/correct", json=body, settings=settings).status_code == 401
    allowed = ask("POST", "/v1/correct", json=body, settings=settings, headers={"Authorization": "Bearer secret"})
    assert allowed.status_code == 200


# --- deadlines, limits, disconnects ----------------------------------------------------------------


def test_the_deadline_covers_all_rounds_together(bundle: Bundle) -> None:
    script = ScriptedRewriter({"one": "two", "two": "three"})
    script.min_started["two"] = 10**6  # never done

    async def work(http: httpx.AsyncClient) -> tuple[httpx.Response, list[int]]:
        body = {"items": items_for("one", "same"), "options": {"max_rounds": 4}}
        late = await http.post("/v1/correct", json=body, headers={"X-Deadline-S": "0.5"})
        for _ in range(100):
            if not script.active():
                break
            await asyncio.sleep(0.02)
        return late, script.active()

    late, active = with_service(script.around(bundle), work)
    assert (late.status_code, late.json()["error"]["code"]) == (503, "timed_out")
    assert script.started == ["one", "same", "two"]
    assert active == []  # the unfinished rewrite was dropped


def test_no_further_round_is_run_after_the_caller_disconnects(bundle: Bundle) -> None:
    script = ScriptedRewriter({f"t{n}": f"t{n + 1}" for n in range(16)})
    script.min_started["t1"] = 10**6

    async def work(http: httpx.AsyncClient) -> tuple[Any, list[int]]:
        body = {"items": items_for("t0"), "options": {"max_rounds": 9}}
        cancelled = asyncio.create_task(http.post("/v1/correct", json=body))
        for _ in range(500):
            if "t1" in script.started:
                break
            await asyncio.sleep(0.01)
        cancelled.cancel()
        await asyncio.sleep(0.05)
        kept = await correct(http, items_for("kept"))
        return kept, script.active()

    kept, active = with_service(script.around(bundle), work)
    assert kept[0]["correction"] == "kept"
    assert script.started == ["t0", "t1", "kept"]
    assert active == []


def test_requests_beyond_the_queue_limit_are_refused_and_later_rounds_of_accepted_ones_are_not(bundle: Bundle) -> None:
    script = ScriptedRewriter({"one": "two", "two": "three"})

    async def work(http: httpx.AsyncClient) -> list[httpx.Response]:
        script.gate.clear()
        asyncio.get_running_loop().call_later(0.6, script.gate.set)
        posts = []
        for n in range(5):
            body = {"items": items_for("one", f"other {n}", f"more {n}"), "options": {"max_rounds": 3}}
            posts.append(asyncio.create_task(http.post("/v1/correct", json=body)))
            await asyncio.sleep(0.05)
        return [await post for post in posts]

    responses = with_service(script.around(bundle), work, max_queued_tokens=250)
    assert {response.status_code for response in responses} == {200, 503}
    assert responses[0].status_code == 200
    for response in responses:
        if response.status_code == 503:
            assert response.json()["error"]["code"] == "overloaded"
            assert int(response.headers["Retry-After"]) >= 1
        else:
            assert results_of(response)[0]["correction"] == "three"


def test_the_limit_on_concurrent_requests_applies_to_corrections(bundle: Bundle) -> None:
    script = ScriptedRewriter({})

    async def work(http: httpx.AsyncClient) -> list[int]:
        script.gate.clear()
        asyncio.get_running_loop().call_later(0.3, script.gate.set)
        posts = (http.post("/v1/correct", json={"items": items_for("x")}) for _ in range(5))
        return [response.status_code for response in await asyncio.gather(*posts)]

    assert sorted(with_service(script.around(bundle), work, max_queued_requests=2)) == [200, 200, 503, 503, 503]


def test_all_rounds_of_a_request_are_queued_as_one_request(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from redline_service.scheduling.job_queue import JobQueue

    real_add, keys = JobQueue.add, []

    def add(self: JobQueue, items: Any, lengths: Any, **options: Any) -> Any:
        keys.append((options["request"], options["caller"]))
        return real_add(self, items, lengths, **options)

    monkeypatch.setattr(JobQueue, "add", add)
    script = ScriptedRewriter({"one": "two", "a": "b"})
    with_service(script.around(bundle), lambda http: correct(http, items_for("one", "a"), max_rounds=3))
    assert len(keys) == 1 + 1 + 2  # the start-up's own item, both first rounds together, a second round for each
    assert len(set(keys[1:])) == 1


@pytest.mark.parametrize("wait_s", [0.0, 0.02, 0.2])  # while the items are tokenised, queued, rewritten
def test_stopping_the_engine_cancels_a_correction(brief_bundle: Bundle, wait_s: float) -> None:
    async def run() -> None:
        engine = Engine(brief_bundle, max_batch_tokens=64)
        await engine.start()
        items = [ResponseItem(prompt=f"{PROMPT} {n}", response="Hold the round button.") for n in range(200)]
        request = CorrectRequest(items=items, options=CorrectOptions(max_rounds=4))
        working = asyncio.create_task(engine.correct(request, caller="a", deadline_s=60.0))
        await asyncio.sleep(wait_s)
        await engine.stop()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(working, 30)

    asyncio.run(run())


def test_requests_to_a_stopped_engine_are_cancelled(brief_bundle: Bundle) -> None:
    async def run() -> None:
        engine = Engine(brief_bundle, max_batch_tokens=64)
        await engine.start()
        scoring = asyncio.create_task(engine.score(ScoreRequest(items=[ScoreItem(prompt=PROMPT, response="Hold.")])))
        await asyncio.sleep(0)  # the item is being tokenised now
        await engine.stop()
        for late in (scoring, engine.score(ScoreRequest(items=[ScoreItem(prompt=PROMPT, response="Hold.")]))):
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(late, 30)

    asyncio.run(run())


def test_edits_by_words_and_by_groups_lead_to_the_same_text(bundle: Bundle) -> None:
    before, after = "a cold big house", "a warm big home"
    script = ScriptedRewriter({before: after})

    async def work(http: httpx.AsyncClient) -> list[list[dict[str, Any]]]:
        option_sets: list[dict[str, Any]] = [{}, {"edits": "words"}, {"edits": "groups"}]
        corrected = [await correct(http, items_for(before), **options) for options in option_sets]
        scored = await http.post(
            "/v1/score", json={"items": items_for(before), "options": {"correction": True, "edits": "groups"}}
        )
        return [*(items[0]["edits"] for items in corrected), results_of(scored)[0]["edits"]]

    unset, words, groups, scored = with_service(script.around(bundle), work)
    assert (
        unset
        == words
        == [
            {"op": "replace", "start": 2, "end": 6, "text": "warm"},
            {"op": "replace", "start": 11, "end": 16, "text": "home"},
        ]
    )
    assert groups == scored == [{"op": "replace", "start": 2, "end": 16, "text": "warm big home"}]


def test_a_character_cut_by_the_length_limit_is_removed(bundle: Bundle) -> None:
    script = ScriptedRewriter(
        {"one": Correction("wir grü\ufffd\ufffd", False), "two": Correction("a \ufffd b\ufffd", True)}
    )

    async def work(http: httpx.AsyncClient) -> tuple[Any, Any]:
        body = {"items": items_for("one", "two"), "options": {"correction": True}}
        return await correct(http, items_for("one", "two")), results_of(await http.post("/v1/score", json=body))

    for incomplete, complete in with_service(script.around(bundle), work):
        assert incomplete["correction"] == "wir grü"
        assert apply_edits("one", [TextEdit(**edit) for edit in incomplete["edits"]]) == "wir grü"
        assert complete["correction"] == "a \ufffd b\ufffd", "a complete text of the model is not changed"
