"""``/v1/correct``: the rewrite that scoring offers, made again of itself until there is a reason to stop."""

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
from redline_model.encoding.encoder import EncodedItem
from redline_model.scorers.seq2seq import Seq2SeqScorer
from redline_service.engine import Engine
from tests.conftest import build_causal, build_scorer, write_bundle
from tests.redline_service.conftest import with_service

Ask = Callable[..., httpx.Response]
PROMPT = "How do I reset my router?"
RESPONSES = ["Hold the round button.", "I am sorry.", "Grüße aus Köln", "The quick brown fox"]


def rows(*responses: str) -> list[dict[str, Any]]:
    return [{"id": str(n), "prompt": PROMPT, "response": response} for n, response in enumerate(responses)]


def answers(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    items: list[dict[str, Any]] = response.json()["items"]
    return items


async def correct(http: httpx.AsyncClient, items: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    return answers(await http.post("/v1/correct", json={"items": items, "options": options}))


@pytest.fixture(scope="module")
def brief_bundle(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Bundle:
    """A model that likes to end, so that its rewrites are whole: of RESPONSES, some come round in a cycle."""
    model = build_causal(len(tokenizer))
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 2.0
    return write_bundle(tmp_path_factory.mktemp("bundles") / "brief", build_scorer("seq2seq", model, tokenizer))


class Script:
    """A model's rewriter that reads its rewrites from a table; a text that is not in it stays as it is.

    ``held``: texts whose rewrite waits until as many rewrites have been begun as stand beside them.
    ``cursed``: texts whose rewrite runs out of memory.
    """

    def __init__(self, table: dict[str, str | Correction]) -> None:
        self._table = table
        self.held: dict[str, int] = {}
        self.cursed: set[str] = set()
        self.begun: list[str] = []
        self.passes: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self._tickets = count()
        self._active: dict[int, str] = {}
        self._scorer: Any = None
        self.tokens = 0

    def around(self, bundle: Bundle) -> Bundle:
        """The bundle, its scorer rewriting by this script."""
        script, real = self, bundle.scorer

        class Scripted(Seq2SeqScorer):
            def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Any]]:
                script.passes += [item.text for item in items]
                return super().start_forward(items)

            def rewriter(self) -> Any:
                return script

        self._scorer = Scripted.from_model(real.model, real.encoder, real.extraction)
        return Bundle(bundle.folder, bundle.manifest, self._scorer, bundle.load_options)

    def start(self, items: Sequence[EncodedItem]) -> list[tuple[int, Any]]:
        self.gate.wait(20)
        if any(item.text in self.cursed for item in items):
            raise MemoryError
        started = []
        for item, output in zip(items, self._scorer.forward(items), strict=True):
            self.begun.append(item.text)
            started.append((next(self._tickets), output))
            self._active[started[-1][0]] = item.text
        return started

    def active(self) -> list[int]:
        return list(self._active)

    def advance(self, tickets: Sequence[int]) -> list[tuple[int, Correction]]:
        done = []
        for ticket in tickets:
            text = self._active[ticket]
            if len(self.begun) >= self.held.get(text, 0):
                del self._active[ticket]
                rewrite = self._table.get(text, text)
                done.append((ticket, Correction(rewrite, True) if isinstance(rewrite, str) else rewrite))
        return done

    def cancel(self, rewrite_id: int) -> None:
        self._active.pop(rewrite_id, None)


@pytest.mark.parametrize("name", ["bundle", "brief_bundle"])
def test_one_round_is_the_correction_that_scoring_gives(name: str, request: pytest.FixtureRequest) -> None:
    async def work(http: httpx.AsyncClient) -> tuple[Any, Any]:
        body = {"items": rows(*RESPONSES), "options": {"correction": True}}
        return await correct(http, rows(*RESPONSES)), answers(await http.post("/v1/score", json=body))

    corrected, scored = with_service(request.getfixturevalue(name), work)
    for row, ours, theirs in zip(rows(*RESPONSES), corrected, scored, strict=True):
        assert ours["id"] == row["id"]
        assert ours["rounds"] == 1
        assert ours["correction"] == theirs["correction"]
        assert ours["edits"] == theirs["edits"]
        assert (ours["ended"] == "incomplete") == (not theirs["correction_complete"])
        assert ours["score_before"] == pytest.approx(theirs["score"], abs=1e-4)


def test_iterating_is_what_going_round_by_round_by_hand_gives(brief_bundle: Bundle) -> None:
    async def by_hand(http: httpx.AsyncClient, response: str) -> tuple[str, str, int]:
        seen = [response]
        while len(seen) <= 16:
            one = (await correct(http, rows(seen[-1])))[0]
            ended = one["ended"]
            if ended == "max_rounds" and one["correction"] in seen:
                ended = "cycle"
            seen.append(one["correction"])
            if ended != "max_rounds":
                break
        return seen[-1], ended, len(seen) - 1

    async def work(http: httpx.AsyncClient) -> tuple[Any, Any]:
        return await correct(http, rows(*RESPONSES), max_rounds=16), [await by_hand(http, r) for r in RESPONSES]

    at_once, hand = with_service(brief_bundle, work)
    assert [(one["correction"], one["ended"], one["rounds"]) for one in at_once] == hand
    assert {one["ended"] for one in at_once} == {"incomplete", "cycle"}
    assert max(one["rounds"] for one in at_once) > 4


def test_the_edits_lead_from_the_response_to_the_end(brief_bundle: Bundle) -> None:
    items = with_service(brief_bundle, lambda http: correct(http, rows(*RESPONSES), max_rounds=3))
    for response, one in zip(RESPONSES, items, strict=True):
        assert apply_edits(response, [TextEdit(**edit) for edit in one["edits"]]) == one["correction"] != response


def test_a_fixed_point_ends_it_and_tells_both_scores_for_nothing(bundle: Bundle) -> None:
    script = Script({"one": "two", "two": "three"})

    async def work(http: httpx.AsyncClient) -> tuple[Any, Any, list[str]]:
        script.passes.clear()
        corrected = await correct(http, rows("one", "same"), max_rounds=16)
        passes = list(script.passes)
        return corrected, answers(await http.post("/v1/score", json={"items": rows("one", "three")})), passes

    (moved, same), (before, after), passes = with_service(script.around(bundle), work)
    assert (moved["correction"], moved["ended"], moved["rounds"]) == ("three", "fixed_point", 3)
    assert (moved["score_before"], moved["score_after"]) == pytest.approx((before["score"], after["score"]), abs=1e-4)
    assert (same["correction"], same["ended"], same["rounds"], same["edits"]) == ("same", "fixed_point", 1, [])
    assert same["score_before"] == same["score_after"]
    assert sorted(passes) == ["one", "same", "three", "two"]  # nothing was measured twice


@pytest.mark.parametrize("is_asked", [False, True])
def test_the_score_of_an_unsettled_correction_costs_a_pass_and_is_asked_for(bundle: Bundle, is_asked: bool) -> None:
    script = Script({"one": "two", "two": "three"})

    async def work(http: httpx.AsyncClient) -> tuple[Any, Any, list[str]]:
        script.passes.clear()
        corrected = await correct(http, rows("one"), score_after=is_asked)
        passes = list(script.passes)
        return corrected[0], answers(await http.post("/v1/score", json={"items": rows("two")}))[0], passes

    one, after, passes = with_service(script.around(bundle), work)
    assert (one["correction"], one["ended"]) == ("two", "max_rounds")
    assert passes == ["one", "two"][: 1 + is_asked]
    assert one.get("score_after") == (pytest.approx(after["score"], abs=1e-4) if is_asked else None)
    assert script.begun == ["one"]


def test_a_cycle_stops_where_it_closes(bundle: Bundle) -> None:
    script = Script({"one": "two", "two": "three", "three": "two"})
    (one,) = with_service(script.around(bundle), lambda http: correct(http, rows("one"), max_rounds=16))
    assert (one["correction"], one["ended"], one["rounds"]) == ("two", "cycle", 3)
    assert script.begun == ["one", "two", "three"]
    assert "score_after" in one  # its round told it


@pytest.mark.parametrize(
    ("rewrite", "ended"),
    [
        ("", "empty"),
        (Correction("broken o", False), "incomplete"),
        ("word " * 400, "too_long"),
    ],
)
def test_what_cannot_be_rewritten_again_is_the_correction(
    bundle: Bundle, rewrite: str | Correction, ended: str
) -> None:
    script = Script({"one": "two", "two": rewrite})
    text = rewrite if isinstance(rewrite, str) else rewrite.text

    async def work(http: httpx.AsyncClient) -> Any:
        return await correct(http, rows("one", "fine"), max_rounds=16, score_after=True)

    one, fine = with_service(script.around(bundle), work)
    assert (one["correction"], one["ended"], one["rounds"]) == (text, ended, 2)
    assert ("score_after" in one) == (ended == "incomplete")  # scored as the unfinished text that it is
    assert apply_edits("one", [TextEdit(**edit) for edit in one["edits"]]) == text
    assert fine["ended"] == "fixed_point"


def test_an_empty_rewrite_is_told_from_one_that_was_the_last_to_be_asked_for(bundle: Bundle) -> None:
    script = Script({"one": "", "two": "three"})
    empty, last = with_service(script.around(bundle), lambda http: correct(http, rows("one", "two")))
    assert (empty["correction"], empty["ended"]) == ("", "empty")
    assert (last["correction"], last["ended"]) == ("three", "max_rounds")


def test_an_unfinished_response_is_so_in_the_first_round_only(bundle: Bundle) -> None:
    script = Script({"one": "two"})

    async def work(http: httpx.AsyncClient) -> tuple[Any, Any]:
        items = [{**row, "finished": False} for row in rows("one", "same")]
        body = {"items": [*items[:1], *rows("two")]}
        return await correct(http, items, max_rounds=16), answers(await http.post("/v1/score", json=body))

    (one, same), (cut, whole) = with_service(script.around(bundle), work)
    assert (one["score_before"], one["score_after"]) == pytest.approx((cut["score"], whole["score"]), abs=1e-4)
    assert same["ended"] == "fixed_point"
    assert "score_after" not in same  # the correction has an end, and nothing judged it with one


def test_items_do_not_wait_for_each_other(bundle: Bundle) -> None:
    script = Script({"slow": "slower", "a": "b", "b": "c", "c": "d"})
    script.held["slow"] = 5  # its rewrite comes once the other item has begun its fourth
    slow, quick = with_service(
        script.around(bundle), lambda http: correct(http, rows("slow", "a"), max_rounds=4), deadline_s=10.0
    )
    assert (slow["correction"], quick["correction"]) == ("slower", "d")


def test_an_item_that_fails_in_a_later_round_leaves_the_others_answered(bundle: Bundle) -> None:
    script = Script({"one": "two", "a": "b"})
    script.cursed = {"two"}
    one, other = with_service(script.around(bundle), lambda http: correct(http, rows("one", "a"), max_rounds=3))
    assert one["error"]["code"] == "out_of_memory"
    assert one["error"]["retryable"] is True
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
def test_a_bad_item_has_its_own_error_and_the_others_are_answered(ask: Ask, item: dict[str, Any], code: str) -> None:
    good, other = rows("Hold it.", "Wait.")
    first, bad, last = answers(ask("POST", "/v1/correct", json={"items": [good, {**item, "id": "bad"}, other]}))
    assert (first["id"], last["id"]) == ("0", "1")
    assert first["correction"]
    assert last["correction"]
    assert (bad["id"], bad["error"]["code"], bad["error"]["retryable"]) == ("bad", code, False)


def test_too_long_prompts_are_cut_when_asked(ask: Ask) -> None:
    body = {"items": [{"prompt": "word " * 600, "response": "x"}], "options": {"on_too_long": "truncate"}}
    assert answers(ask("POST", "/v1/correct", json=body))[0]["truncated"] is True


def test_ids_are_corrected_as_text_is(ask: Ask, bundle: Bundle) -> None:
    tokenizer = bundle.scorer.encoder.tokenizer
    by_id = {
        "prompt_ids": tokenizer(PROMPT)["input_ids"],
        "response_ids": [*tokenizer(RESPONSES[2])["input_ids"], tokenizer.eos_token_id],
        "tokenizer_fingerprint": bundle.tokenizer_fingerprint,
    }
    first, second = answers(ask("POST", "/v1/correct", json={"items": [*rows(RESPONSES[2]), by_id]}))
    assert {**first, "id": None} == {**second, "id": None}


def test_no_items_get_no_answers(ask: Ask) -> None:
    assert answers(ask("POST", "/v1/correct", json={"items": []})) == []


@pytest.mark.parametrize(
    ("body", "status", "code", "reason"),
    [
        ({"items": rows("x"), "options": {"max_rounds": 0}}, 422, "invalid_request", "options.max_rounds"),
        ({"items": rows("x"), "options": {"max_rounds": 17}}, 422, "invalid_request", "options.max_rounds"),
        ({"items": rows("x"), "options": {"max_rounds": 1.5}}, 422, "invalid_request", "options.max_rounds"),
        ({"items": rows("x"), "options": {"mode": "paper"}}, 422, "invalid_request", "options.mode"),
        (
            {"items": [{**rows("x")[0], "token_offsets": [[0, 1]]}]},
            422,
            "invalid_request",
            "items.0.token_offsets",
        ),
        ({"items": [{"prompt": "p"}]}, 422, "invalid_request", "items.0: give exactly one of 'response'"),
        ({"model": "nope", "items": rows("x")}, 404, "model_not_found", "nope"),
        ({"items": rows("x") * 2000}, 413, "request_too_large", "2000"),
    ],
)
def test_bad_requests_are_refused(ask: Ask, body: dict[str, Any], status: int, code: str, reason: str) -> None:
    response = ask("POST", "/v1/correct", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert reason in response.json()["error"]["message"]


def test_a_model_that_does_not_write_refuses(scalar_bundle: Bundle) -> None:
    response = with_service(scalar_bundle, lambda http: http.post("/v1/correct", json={"items": rows("x")}))
    assert (response.status_code, response.json()["error"]["code"]) == (422, "unsupported")


def test_an_encoder_decoder_model_corrects_in_rounds(encoder_decoder_scorer: Seq2SeqScorer, tmp_path: Path) -> None:
    served = write_bundle(tmp_path / "t5", encoder_decoder_scorer)
    items = with_service(served, lambda http: correct(http, rows("Hold it.", "Wait."), max_rounds=2))
    assert [one["rounds"] >= 1 and math.isfinite(one["score_before"]) for one in items] == [True, True]


def test_the_answer_names_the_model_the_reading_and_what_it_cost(bundle: Bundle) -> None:
    script = Script({"one": "two"})
    served = script.around(bundle)

    async def work(http: httpx.AsyncClient) -> tuple[httpx.Response, str]:
        body = {"items": rows("one", "same"), "options": {"max_rounds": 5}}
        response = await http.post("/v1/correct", json=body)
        await http.post("/v1/score", json={"items": rows("three"), "options": {"correction": True}})
        return response, (await http.get("/metrics")).text

    response, metrics = with_service(served, work)
    body = response.json()
    assert body["model"] == {"name": "default", "digest": bundle.digest, "kind": "seq2seq"}
    assert body["options"] == {"mode": "margin", "aggregate": "sum", "calibrated": False}
    encoded = [served.scorer.encoder.encode_response(_item(text))[0] for text in ("one", "same", "two")]
    assert body["usage"]["scored_tokens"] == sum(len(ids) + 1 for ids in encoded)
    assert "inference" in response.headers["Server-Timing"]
    assert "redline_rewrites_total 4.0" in metrics  # two, one, and the one of scoring
    assert 'redline_items_total{outcome="corrected"} 2.0' in metrics
    assert 'redline_requests_total{route="/v1/correct",status="200"} 1.0' in metrics


def _item(text: str) -> Any:
    from redline_model.encoding.encoder import Item

    return Item(PROMPT, text)


def test_the_open_api_document_lists_it(ask: Ask) -> None:
    document = ask("GET", "/openapi.json").json()
    operation = document["paths"]["/v1/correct"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/CorrectRequest")
    assert {"200", "401", "404", "413", "422", "503"} <= set(operation["responses"])
    assert "token_offsets" not in document["components"]["schemas"]["ResponseItem"]["properties"]


def test_keys_guard_it(ask: Ask) -> None:
    body, settings = {"items": rows("x")}, {"keys": ["secret"]}
    assert ask("POST", "/v1/correct", json=body, settings=settings).status_code == 401
    allowed = ask("POST", "/v1/correct", json=body, settings=settings, headers={"Authorization": "Bearer secret"})
    assert allowed.status_code == 200


# --- deadlines, bounds, callers that leave ---------------------------------------------------------------


def test_a_deadline_counts_for_all_rounds_together(bundle: Bundle) -> None:
    script = Script({"one": "two", "two": "three"})
    script.held["two"] = 10**6  # never done

    async def work(http: httpx.AsyncClient) -> tuple[httpx.Response, list[int]]:
        body = {"items": rows("one", "same"), "options": {"max_rounds": 4}}
        late = await http.post("/v1/correct", json=body, headers={"X-Deadline-S": "0.5"})
        for _ in range(100):
            if not script.active():
                break
            await asyncio.sleep(0.02)
        return late, script.active()

    late, left = with_service(script.around(bundle), work)
    assert (late.status_code, late.json()["error"]["code"]) == (503, "timed_out")
    assert script.begun == ["one", "same", "two"]
    assert left == []  # nobody waits for it any more


def test_a_caller_who_leaves_between_rounds_costs_no_more(bundle: Bundle) -> None:
    script = Script({f"t{n}": f"t{n + 1}" for n in range(16)})
    script.held["t1"] = 10**6

    async def work(http: httpx.AsyncClient) -> tuple[Any, list[int]]:
        leaver = asyncio.create_task(http.post("/v1/correct", json={"items": rows("t0"), "options": {"max_rounds": 9}}))
        for _ in range(500):
            if "t1" in script.begun:
                break
            await asyncio.sleep(0.01)
        leaver.cancel()
        await asyncio.sleep(0.05)
        stayer = await correct(http, rows("stay"))
        return stayer, script.active()

    stayer, left = with_service(script.around(bundle), work)
    assert stayer[0]["correction"] == "stay"
    assert script.begun == ["t0", "t1", "stay"]
    assert left == []


def test_requests_beyond_the_bounds_are_refused_and_rounds_of_admitted_ones_are_not(bundle: Bundle) -> None:
    script = Script({"one": "two", "two": "three"})

    async def work(http: httpx.AsyncClient) -> list[httpx.Response]:
        script.gate.clear()
        asyncio.get_running_loop().call_later(0.6, script.gate.set)
        posts = []
        for n in range(5):
            body = {"items": rows("one", f"other {n}", f"more {n}"), "options": {"max_rounds": 3}}
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
            assert answers(response)[0]["correction"] == "three"


def test_permits_bound_corrections_too(bundle: Bundle) -> None:
    script = Script({})

    async def work(http: httpx.AsyncClient) -> list[int]:
        script.gate.clear()
        asyncio.get_running_loop().call_later(0.3, script.gate.set)
        posts = (http.post("/v1/correct", json={"items": rows("x")}) for _ in range(5))
        return [response.status_code for response in await asyncio.gather(*posts)]

    assert sorted(with_service(script.around(bundle), work, max_queued_requests=2)) == [200, 200, 503, 503, 503]


def test_all_rounds_of_a_request_take_their_turns_as_one(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from redline_service.scheduling.job_queue import JobQueue

    real, names = JobQueue.add, []

    def add(self: JobQueue, items: Any, lengths: Any, **how: Any) -> Any:
        names.append((how["request"], how["caller"]))
        return real(self, items, lengths, **how)

    monkeypatch.setattr(JobQueue, "add", add)
    script = Script({"one": "two", "a": "b"})
    with_service(script.around(bundle), lambda http: correct(http, rows("one", "a"), max_rounds=3))
    assert len(names) == 1 + 1 + 2  # the start-up's own item, both first rounds at once, a second one each
    assert len(set(names[1:])) == 1


@pytest.mark.parametrize("wait_s", [0.0, 0.02, 0.2])  # while it is tokenised, queued, written
def test_a_service_that_stops_breaks_a_correction_off_as_it_does_a_score(brief_bundle: Bundle, wait_s: float) -> None:
    async def run() -> None:
        engine = Engine(brief_bundle, max_batch_tokens=64)
        await engine.start()
        items = [ResponseItem(prompt=f"{PROMPT} {n}", response="Hold the round button.") for n in range(200)]
        request = CorrectRequest(items=items, options=CorrectOptions(max_rounds=4))
        working = asyncio.create_task(engine.correct(request, caller="me", deadline_s=60.0))
        await asyncio.sleep(wait_s)
        await engine.stop()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(working, 30)

    asyncio.run(run())


def test_what_comes_to_a_stopped_service_is_cancelled_and_never_waits(brief_bundle: Bundle) -> None:
    async def run() -> None:
        engine = Engine(brief_bundle, max_batch_tokens=64)
        await engine.start()
        scoring = asyncio.create_task(engine.score(ScoreRequest(items=[ScoreItem(prompt=PROMPT, response="Hold.")])))
        await asyncio.sleep(0)  # it is being tokenised
        await engine.stop()
        for late in (scoring, engine.score(ScoreRequest(items=[ScoreItem(prompt=PROMPT, response="Hold.")]))):
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(late, 30)

    asyncio.run(run())


def test_edits_come_by_words_or_in_groups_that_lead_to_the_same_text(bundle: Bundle) -> None:
    before, after = "a cold big house", "a warm big home"
    script = Script({before: after})

    async def work(http: httpx.AsyncClient) -> list[list[dict[str, Any]]]:
        bodies: list[dict[str, Any]] = [{}, {"edits": "words"}, {"edits": "groups"}]
        corrected = [await correct(http, rows(before), **options) for options in bodies]
        scored = await http.post(
            "/v1/score", json={"items": rows(before), "options": {"correction": True, "edits": "groups"}}
        )
        return [*(items[0]["edits"] for items in corrected), answers(scored)[0]["edits"]]

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


def test_a_character_that_the_length_limit_cut_is_left_out(bundle: Bundle) -> None:
    script = Script({"one": Correction("wir grü\ufffd\ufffd", False), "two": Correction("a \ufffd b\ufffd", True)})

    async def work(http: httpx.AsyncClient) -> tuple[Any, Any]:
        body = {"items": rows("one", "two"), "options": {"correction": True}}
        return await correct(http, rows("one", "two")), answers(await http.post("/v1/score", json=body))

    for cut, whole in with_service(script.around(bundle), work):
        assert cut["correction"] == "wir grü"
        assert apply_edits("one", [TextEdit(**edit) for edit in cut["edits"]]) == "wir grü"
        assert whole["correction"] == "a \ufffd b\ufffd", "what the model wrote is not touched"
