"""Random requests that are almost valid: bodies of every route with changed parts, and unusual headers."""

from __future__ import annotations

import copy
import json
import random
from typing import Any
from urllib.parse import quote

from tests.attacks.server import BODIES, PROMPT, RESPONSE

_CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
_CONVERSATION = f"<|system|>Be brief.<|end|><|user|>{PROMPT}<|end|><|assistant|>{RESPONSE}<|end|>"
_ITEM = {
    "id": "a",
    "prompt": _CHAT,
    "response": RESPONSE,
    "finished": True,
    "token_offsets": [[0, 4], [4, 8], [8, len(RESPONSE)], [len(RESPONSE), len(RESPONSE)]],
}
_IDS = {"prompt_ids": [5, 6, 7], "response_ids": [8, 9, 0], "tokenizer_fingerprint": "sha256:none"}
# Further valid bodies of the routes.
_MORE_BODIES: list[tuple[str, Any]] = [
    ("/v1/score", {"model": "default", "items": [_ITEM], "options": {"mode": "margin", "on_too_long": "truncate"}}),
    ("/v1/score", {"items": [_IDS, _ITEM], "options": {"aggregate": "last", "correction": True, "calibrated": True}}),
    ("/v1/correct", {"items": [_IDS], "options": {"max_rounds": 2, "score_after": True}}),
    ("/get_reward", {"query": [_CONVERSATION], "prompts": [_CONVERSATION[:70]], "labels": [None]}),
    ("/get_reward", {"query": [_CONVERSATION]}),
    ("/get_reward", {"prompt": _CHAT, "response": RESPONSE, "label": {"a": 1}}),
    ("/get_reward", {"prompt": _CONVERSATION[:80], "response": RESPONSE, "label": 1}),
    ("/classify", {"messages": [*_CHAT, {"role": "assistant", "content": RESPONSE}], "use_activation": True}),
    ("/classify", {"input": [[5, 6, 7], [8, 9]]}),
    ("/classify", {"text": [_CONVERSATION]}),
    ("/classify", {"input_ids": [[5, 6, 7]]}),
    ("/pooling", {"input": [_CONVERSATION], "task": "token_classify", "encoding_format": "float"}),
    ("/pooling", {"input": [5, 6, 7], "task": "classify"}),
    ("/seed_session", {}),
    (
        "/verify",
        {
            "responses_create_params": {
                "input": [{"role": "user", "content": [{"text": PROMPT}]}],
                "instructions": "x",
            },
            "response": {"status": "incomplete", "output": [{"role": "assistant", "content": [{"text": RESPONSE}]}]},
            "extra": [1, {"a": None}],
        },
    ),
]
_FRAGMENTS = [
    *(
        "<|im_start|>user\n",
        "<|im_start|>assistant\n",
        "<|im_end|>",
        "[INST] <<SYS>>",
        "<</SYS>>",
        "[/INST]",
        "</s>",
        "<s>",
    ),
    *("<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>", "Human: ", "\n\nAssistant: ", "### Response:\n"),
    *(
        " ",
        "\n",
        "\t",
        "\u3000",
        "\x1c",
        "\u200b",
        "\u2028",
        "\x00",
        "\ufeff",
        "\ufffd",
        "\ue0000\ue001",
        "e\u0301",
        "🙂",
    ),
    *("a", "word ", "\ufdfa", "\U0010ffff", "ß", "İ", '"', "\\", "{{", "{%", "%s"),
]
_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**300, 0.0, -0.0, 1e308, 5e-324, 1.5),
    *(
        "",
        " ",
        "default",
        "sum",
        "truncate",
        "sha256:none",
        "x" * 3000,
        "1",
        "nan",
        [],
        {},
        [[]],
        [{}],
        {"a": 1},
        [None],
    ),
    *(
        [0, 0],
        [[0, 0]],
        [[1, 0]],
        [[-1, 2]],
        [[0, 10**9]],
        [[0, 1.5]],
        [0],
        ["a"],
        [_ITEM],
        [[[[[]]]]],
        _CHAT,
        {"role": 1},
    ),
    *(
        {"role": "user", "content": None},
        {"role": "tool", "content": "x", "name": "y"},
        [{"type": "text", "text": "x"}],
        [{"type": [], "text": "x"}],
        [{"type": {"text": 1}, "text": ["x"]}],
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1]}}}]},
        {"role": "assistant", "content": "x", "reasoning_content": "t", "name": "n"},
    ),
]
_RAW_JSON = [
    *(
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"-1e999",
        b"9" * 400,
        b"9" * 5000,
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
    ),
    *(
        b'"\\u0000"',
        b'"\xff"',
        b"[" * 150 + b"]" * 150,
        b"[" * 5000,
        b'{"a":' * 300,
        b"01",
        b"'a'",
        b"//",
        b"1.",
        b"tru",
    ),
    *(b"\xef\xbb\xbf{}", b"\xc0\x80", b'"\xed\xa0\x80"', b"\x00", b'{"a":1,"a":2}', b'{"":""}', b'{"\\ud800":1}'),
]
_HEADERS = [
    *(
        "X-Deadline-S: nan",
        "X-Deadline-S: -1",
        "X-Deadline-S: 1e400",
        "X-Deadline-S: 0x10",
        "X-Deadline-S: \xff",
        "X-Deadline-S: ",
    ),
    *(
        "X-Deadline-S: 1e-9",
        "X-Deadline-S: 5",
        "Content-Type: text/plain",
        "Content-Type: application/json; charset=utf-16",
    ),
    *(
        "Content-Type: \xff",
        "Authorization: Bearer",
        "Authorization: \xff\xfe",
        "Authorization: Basic x",
        "X-Request-Id: \xe9",
    ),
    *(
        "X-Request-Id: " + "i" * 200,
        "Accept: \xff",
        "Content-Encoding: gzip",
        "X-Forwarded-For: ::1%x",
        "Expect: 100-continue",
    ),
    *("Cookie: \xff=\xff", "Origin: null", "If-None-Match: *", "Range: bytes=0-"),
]
_PATHS = [
    *(
        "/",
        "/docs",
        "/openapi.json",
        "/v1/models",
        "/v1/models/default",
        "/metrics",
        "/health",
        "/health/live",
        "/healthz",
    ),
    *(
        "/readyz",
        "/health/ready",
        "/v1/models/%00",
        "/v1/models/%ff",
        "/v1/models/" + "a" * 2000,
        "/v1/models/..%2f",
        "//",
    ),
    *("/key", "/key/", "/key//", "/key/%ff/v1/models", "/key/a/key/b/v1/models", "/%2e%2e/", "/nowhere", "/v1/score/"),
]


class Mutator:
    """Generates requests; the same seed generates the same ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def request(self) -> bytes:
        """The next request, as bytes."""
        rng = self._random
        bodies = [*BODIES.items(), *_MORE_BODIES]
        path, body = bodies[rng.randrange(len(bodies))]
        raw = self._body(copy.deepcopy(body))
        method = "POST"
        if rng.random() < 0.1:
            path = rng.choice([*_PATHS, "/" + quote(self._text(), safe="")[:500]])
            method = rng.choice(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
        elif rng.random() < 0.1:
            path = rng.choice(bodies)[0]
        headers = ["Content-Type: application/json"]
        while rng.random() < 0.15:
            headers.append(rng.choice(_HEADERS))
        head = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(raw)}", *headers[::-1]]
        return "\r\n".join([*head, "", ""]).encode("latin-1") + raw

    def _body(self, body: Any) -> bytes:
        rng = self._random
        raw_values: list[bytes] = []
        for _ in range(rng.choice([1, 1, 1, 2, 3, 5])):
            body = self._mutated(body, raw_values)
        raw = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
        for number, value in enumerate(raw_values):
            raw = raw.replace(f'"@raw{number}@"'.encode(), value)
        if rng.random() < 0.06:
            raw = raw[: rng.randrange(len(raw) + 1)]
        if rng.random() < 0.06 and raw:
            position = rng.randrange(len(raw))
            raw = raw[:position] + bytes([rng.randrange(256)]) + raw[position + 1 :]
        return raw

    def _mutated(self, node: Any, raw_values: list[bytes]) -> Any:
        """``node`` with a random change somewhere inside.

        A value that is not JSON is added to ``raw_values`` and replaced by a placeholder.
        """
        rng = self._random
        if isinstance(node, (dict, list)) and node and rng.random() < 0.75:
            keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = rng.choice(keys)
            action = rng.random()
            if action < 0.1:
                del node[key]
            elif action < 0.15 and isinstance(node, list):
                node += [copy.deepcopy(node[key]) for _ in range(rng.choice([1, 2, 50, 1100]))]
            elif action < 0.2 and isinstance(node, dict):
                node[rng.choice(["id", "extra", "text", "input", "messages", "", self._text()])] = self._value(
                    raw_values
                )
            else:
                node[key] = self._mutated(node[key], raw_values)
            return node
        if isinstance(node, str) and rng.random() < 0.6:
            position = rng.randrange(len(node) + 1)
            return node[:position] + self._text() + (node[position:] if rng.random() < 0.7 else "")
        return self._value(raw_values)

    def _value(self, raw_values: list[bytes]) -> Any:
        if self._random.random() < 0.2:
            raw_values.append(self._random.choice(_RAW_JSON))
            return f"@raw{len(raw_values) - 1}@"
        return self._text() if self._random.random() < 0.2 else copy.deepcopy(self._random.choice(_VALUES))

    def _text(self) -> str:
        rng = self._random
        fragments = [rng.choice(_FRAGMENTS) for _ in range(rng.choice([1, 2, 3, 8]))]
        return "".join(fragments) * rng.choice([1, 1, 1, 1, 30, 300])
