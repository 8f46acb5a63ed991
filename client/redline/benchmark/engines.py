"""Scorers behind the endpoints of vLLM, SGLang and OpenRLHF."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn

from redline.benchmark.engine_http import EngineHTTP, ItemRefusedError
from redline.benchmark.prompt_texts import PromptTexts, RenderedItem
from redline.benchmark.scorers import Scored, Unscored
from redline.chat_template.errors import RenderError
from redline.errors import ProtocolError
from redline.messages import Prompt
from redline.spans import Span

EngineKind = Literal["vllm", "vllm-classify", "openrlhf", "sglang"]
_REPLACEMENT = "�"
# how far the text of a token may be from the end of the one before, if that one had bytes of a character only
_MAX_GAP = 32


class EngineScorer:
    """One request per response, several at a time.

    - ``vllm``: ``POST /v1/completions`` with ``prompt_logprobs``; token rewards are the log-probabilities of the
      response's tokens, and the score is their sum (or mean). For language models.
    - ``vllm-classify``: ``POST /classify``; the raw score of a reward model. Without a tokenizer the messages are sent,
      and the engine renders them.
    - ``openrlhf``: ``POST /get_reward``, as OpenRLHF's ``--reward.remote_url``.
    - ``sglang``: ``POST /classify`` in SGLang's native form.

    Sources: vLLM 0.33, SGLang 0.5.23, OpenRLHF 0.11.2.

    Args:
        texts: renders the prompts.
        model: name of the model in requests; by default the first that vLLM names.
        aggregate: ``sum`` or ``mean``, of kind ``vllm``.
        threshold: error score above which a word is reported; None for none.
    """

    def __init__(
        self,
        kind: EngineKind,
        http: EngineHTTP,
        *,
        texts: PromptTexts,
        model: str | None = None,
        aggregate: str | None = None,
        threshold: float | None = None,
    ) -> None:
        self.has_token_rewards = kind == "vllm"
        self.threshold = threshold
        self._kind = kind
        self._http = http
        self._texts = texts
        self._model = model
        self._aggregate = aggregate or "sum"
        request: dict[str, Callable[[Prompt, str], Scored]] = {
            "vllm": self._log_probabilities,
            "vllm-classify": self._vllm_score,
            "openrlhf": self._openrlhf_score,
            "sglang": self._sglang_score,
        }
        self._score_one = request[kind]

    def identity(self) -> dict[str, Any]:
        """Kind, model, template and aggregate; raises as ``BenchmarkScorer`` says."""
        if self._kind == "vllm" and self._model is None:
            answer = self._http.get("/v1/models")
            self._model = str(_field(answer, "/v1/models", "data", 0, "id"))
        found: dict[str, Any] = {"kind": self._kind, "model": self._model, "has_template": self._texts.has_template}
        return {**found, "aggregate": self._aggregate} if self._kind == "vllm" else found

    def score(self, items: Sequence[tuple[Prompt, str]]) -> list[Scored | Unscored]:
        """Raises as ``BenchmarkScorer`` says."""
        return self._http.map(self._scored, items)

    def _scored(self, item: tuple[Prompt, str]) -> Scored | Unscored:
        try:
            return self._score_one(*item)
        except (ItemRefusedError, RenderError) as error:
            return Unscored(str(error))

    def _log_probabilities(self, prompt: Prompt, response: str) -> Scored:
        rendered = self._texts.render(prompt, response)
        body = {
            "model": self._model,
            "prompt": rendered.before + rendered.response,
            "prompt_logprobs": 0,
            "max_tokens": 1,
            "temperature": 0.0,
            "add_special_tokens": not self._texts.has_template,
        }
        answer = self._http.post("/v1/completions", body)
        return _response_tokens(_field(answer, "/v1/completions", "choices", 0, "prompt_logprobs"), rendered,
                                self._aggregate)  # fmt: skip

    def _vllm_score(self, prompt: Prompt, response: str) -> Scored:
        body: dict[str, Any] = {"use_activation": False}
        if self._model is not None:
            body["model"] = self._model
        if self._texts.has_template:
            body["input"] = self._texts.render(prompt, response).text
        else:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            body["messages"] = [*messages, {"role": "assistant", "content": response}]
        return Scored(_number(self._http.post("/classify", body), "/classify", "data", -1, "probs", -1))

    def _openrlhf_score(self, prompt: Prompt, response: str) -> Scored:
        rendered = self._texts.render(prompt, response)
        body = {"query": [rendered.text], "prompts": [rendered.before], "labels": [""]}
        return Scored(_number(self._http.post("/get_reward", body), "/get_reward", "rewards", 0))

    def _sglang_score(self, prompt: Prompt, response: str) -> Scored:
        answer = self._http.post("/classify", {"text": self._texts.render(prompt, response).text})
        first = answer[0] if isinstance(answer, list) and answer else answer
        return Scored(_number(first, "/classify", "embedding", 0))


def _response_tokens(entries: Any, rendered: RenderedItem, aggregate: str) -> Scored:
    """The log-probabilities of the tokens that share a character with the response, from vLLM's list for the prompt.

    Each entry but the first, which is None, maps ids to ``{"logprob", "decoded_token"}``; the prompt's own token is the
    first of them.
    """
    if not isinstance(entries, list) or not entries:
        _refuse("/v1/completions")
    tokens: list[str] = []
    logprobs: list[float | None] = []
    for entry in entries:
        if entry is None:
            tokens.append("")
            logprobs.append(None)
            continue
        own = next(iter(entry.values()), None) if isinstance(entry, Mapping) else None
        tokens.append(str(_field(own, "/v1/completions", "decoded_token") or ""))
        logprobs.append(_number(own, "/v1/completions", "logprob"))
    start, end = len(rendered.before), len(rendered.before) + len(rendered.response)
    rewards, offsets = [], []
    for logprob, (first, last) in zip(logprobs, token_positions(rendered.before + rendered.response, tokens),
                                      strict=True):  # fmt: skip
        if logprob is not None and first < last and last > start:
            rewards.append(logprob)
            offsets.append((max(first, start) - start, min(last, end) - start))
    if not rewards:
        raise ItemRefusedError("no token of the answer belongs to the response")
    total = math.fsum(rewards)
    return Scored(total / len(rewards) if aggregate == "mean" else total, rewards, offsets)


def token_positions(text: str, tokens: Sequence[str]) -> list[Span]:
    """The spans of tokens in ``text``, from their decoded texts.

    A token that has only some bytes of a character, or that is not in the text (a token before its beginning), is
    decoded to nothing, to U+FFFD or to a name. It gets what lies between its neighbours, as do white space characters
    that a tokenizer removes when it decodes a single token.
    """
    spans: list[Span] = []
    at, waiting = 0, 0
    for token in tokens:
        found = text.find(token, at, at + len(token) + _MAX_GAP) if token.strip(_REPLACEMENT) else -1
        if found < 0:
            waiting += 1
            continue
        if waiting:
            spans += [(at, found)] * waiting
            waiting, at = 0, found
        # the characters between two tokens, such as a removed blank, belong to the second one
        spans.append((at, found + len(token)))
        at = found + len(token)
    return spans + [(at, len(text))] * waiting


def _field(value: Any, path: str, *keys: str | int) -> Any:
    """``value[key][key]...``. Raises ProtocolError if it is missing."""
    try:
        for key in keys:
            value = value[key]
    except (KeyError, IndexError, TypeError):
        _refuse(path)
    return value


def _number(value: Any, path: str, *keys: str | int) -> float:
    found = _field(value, path, *keys)
    while isinstance(found, list) and len(found) == 1:
        found = found[0]
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
        _refuse(path)
    return float(found)


def _refuse(path: str) -> NoReturn:
    raise ProtocolError(f"the answer of {path} has another form than that of an engine of this --kind")
