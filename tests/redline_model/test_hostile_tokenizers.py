"""A hostile tokenizer is refused in time, or fails only the requests with the texts that break it."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from redline_model.bundle.bundle import Bundle
from redline_model.bundle.loading import load_tokenizer
from redline_model.encoding.encoder import Encoder
from redline_model.encoding.items import Item
from redline_model.errors import BundleError, TokenizerError, UnsupportedError
from redline_model.untrusted import tokenizer_check
from redline_model.untrusted.panics import PanicError, is_panic, panics_as_errors
from redline_model.untrusted.tokenizer_check import check_tokenizer_files
from redline_service.scheduling.thread_pool import ThreadPool
from tests.conftest import TEXTS
from tests.damage import Damage, json_file
from tests.hostile_settings import HARMLESS_SETTINGS, HOSTILE_SETTINGS
from tests.hostile_tokenizers import HOSTILE_TOKENIZERS, SLOW_TOKENIZERS
from tests.redline_model.test_hostile_bundles import assert_refused_within_limits
from tests.redline_service.conftest import with_service
from tests.terminal import run_on_terminal
from tests.tokenizer_families import TOKENIZERS, tokenizer_of


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "copy"))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damage, id=what, marks=[pytest.mark.faults] if what in SLOW_TOKENIZERS else [])
        for what, damage in {**HOSTILE_TOKENIZERS, **HOSTILE_SETTINGS}.items()
    ],
)
def test_a_hostile_tokenizer_is_refused_in_time_and_memory(copy: Path, damage: Damage) -> None:
    damage(copy)
    refusal = assert_refused_within_limits(copy)
    assert str(copy) in str(refusal) or isinstance(refusal, UnsupportedError)


PAIRS = '{"prompt": "p", "chosen": "a", "rejected": "b"}\n'


@pytest.mark.parametrize(
    ("what", "command"),
    [
        ("pattern that backtracks", "serve"),
        ("prefix that cuts a letter", "evaluate"),
        pytest.param("prefix that cuts a letter", "serve", marks=pytest.mark.faults),
        pytest.param("pieces of length 0", "train", marks=pytest.mark.faults),
        pytest.param("table of SentencePiece that leads nowhere", "serve", marks=pytest.mark.faults),
        pytest.param("text that is put in front", "serve", marks=pytest.mark.faults),
    ],
)
def test_commands_end_with_one_line(copy: Path, tmp_path: Path, what: str, command: str) -> None:
    HOSTILE_TOKENIZERS[what](copy)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(PAIRS * 4)
    arguments = {
        "serve": (str(copy), "--port", "0"),
        "evaluate": (str(copy), "--pairs", str(pairs)),
        "train": ("--base", str(copy), "--pairs", str(pairs), "--out", str(tmp_path / "out")),
    }[command]
    status, output, _, took, peak = run_on_terminal(command, *arguments)
    assert status == 1, output
    assert output.count("\n") == 1
    assert output.startswith("redline: ")
    assert took < 40
    assert peak < 1200  # about 600 of them torch and transformers


# Valid cases that must not be refused


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_of_every_family_pass(name: str, tmp_path: Path) -> None:
    tokenizer_of(name).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).is_fast


@pytest.mark.parametrize("what", HARMLESS_SETTINGS)
def test_unusual_but_harmless_settings_are_accepted(copy: Path, bundle: Bundle, what: str) -> None:
    HARMLESS_SETTINGS[what](copy)
    item = Item("a prompt", "its response")
    assert Bundle.load(copy).scorer.encoder.encode(item) == bundle.scorer.encoder.encode(item)


def large_tokenizer() -> str:
    """As large as the largest in use: 260,000 tokens, as many merges, 6,400 added tokens."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    used_letters = letters[:64]
    pairs = [(a, b) for a in used_letters for b in used_letters]
    merges = [*pairs, *((a + b, c) for a, b in pairs for c in used_letters)][: 260_000 - len(letters)]
    vocabulary = {token: n for n, token in enumerate([*letters, *map("".join, merges)])}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    added = [{"id": 260_000 + n, "content": f"<|special_{n}|>", **flags} for n in range(6400)]
    # that of Qwen2
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    splits = {
        "type": "Split",
        "pattern": {"Regex": pattern + r"|\s+(?!\S)|\s+"},
        "behavior": "Isolated",
        "invert": False,
    }
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [splits, by_bytes]},
            "post_processor": None,
            "decoder": by_bytes,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
        }
    )


@pytest.mark.faults
def test_the_largest_tokenizers_pass_with_a_margin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text(large_tokenizer())
    monkeypatch.setattr(tokenizer_check, "_MAX_EXTRA_CPU_S", 2)  # half of the processor time
    check_tokenizer_files(tmp_path)


def test_a_tokenizer_is_tried_once_and_again_after_a_change(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    original = tokenizer_check.run_trial
    monkeypatch.setattr(tokenizer_check, "run_trial", lambda *a: (calls.append(a), original(*a))[1])
    for _ in range(3):
        load_tokenizer(copy)
    assert len(calls) == 1
    HOSTILE_TOKENIZERS["pieces of length 0"](copy)
    for _ in range(2):
        with pytest.raises(BundleError):
            load_tokenizer(copy)
    assert len(calls) == 2


def test_a_tokenizer_that_transformers_builds_itself_is_tried_as_built(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[dict[str, Any]] = []
    original = tokenizer_check.run_trial
    monkeypatch.setattr(tokenizer_check, "run_trial", lambda s, task, x: (tried.append(task), original(s, task, x))[1])
    json_file("tokenizer_config.json", tokenizer_class="GPT2Tokenizer")(copy)
    load_tokenizer(copy)
    assert [sorted({"file", "text"} & set(task)) for task in tried] == [["file"], ["text"]]


# A tokenizer that passed the trial and fails on a text later


def with_bad_rules(bundle: Bundle) -> Bundle:
    """Crashes on a text of snowmen, and makes thousands of tokens of an umbrella."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    loaded = Bundle.load(bundle.folder)
    backend = loaded.scorer.encoder.tokenizer.backend_tokenizer
    slow = pre_tokenizers.Split(Regex("(☃+)+$"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([slow, backend.pre_tokenizer])
    backend.normalizer = normalizers.Replace("☂", "a b " * 8000)
    scorer = loaded.scorer
    scorer.encoder = Encoder(
        scorer.encoder.tokenizer,
        scorer.encoder.template,
        arrangement=scorer.encoder.arrangement,
        vocab_size=scorer.encoder.vocab_size,
        max_tokens=scorer.encoder.max_tokens,
    )
    return loaded


CRASHING, GROWING = "☃" * 40 + "!", "☂"


def test_a_crash_or_too_many_tokens_is_an_error_of_one_item(bundle: Bundle) -> None:
    encoder = with_bad_rules(bundle).scorer.encoder
    for prompt, response in ((TEXTS[0], CRASHING), (CRASHING, TEXTS[0])):
        with pytest.raises(TokenizerError, match="crashed"):
            encoder.encode(Item(prompt, response))
    for prompt, response in ((TEXTS[0], GROWING), (GROWING, TEXTS[0])):
        with pytest.raises(TokenizerError, match=r"tokens of \d+ characters"):
            encoder.encode(Item(prompt, response), is_bounded=False)
    assert encoder.encode(Item("a", "b")).target_ids


def test_a_service_answers_internal_for_the_item_and_continues(bundle: Bundle) -> None:
    good = {"prompt": "a", "response": "b"}

    async def work(http: httpx.AsyncClient) -> list[Any]:
        items = [{"prompt": "a", "response": CRASHING}, good, {"prompt": GROWING, "response": "b"}]
        bodies = [{"items": items}, {"items": [good]}]
        answers = [await http.post("/v1/score", json=body) for body in bodies]
        answers.append(await http.post("/v1/correct", json={"items": items}))
        assert (await http.get("/health/ready")).status_code == 200
        return [answer.json()["items"] for answer in answers]

    first, second, corrected = with_service(with_bad_rules(bundle), work)
    for answer_items in (first, corrected):
        assert [item.get("error", {}).get("code") for item in answer_items] == ["internal", None, "internal"]
    assert second[0]["score"] == pytest.approx(first[1]["score"], abs=1e-4)


def make_panic() -> BaseException:
    from tokenizers import pre_tokenizers

    try:
        pre_tokenizers.FixedLength(length=0).pre_tokenize_str("abc")
    except BaseException as error:
        return error
    raise AssertionError("it did not panic")


def test_a_panic_is_distinguished_from_other_exceptions() -> None:
    panic = make_panic()
    assert not isinstance(panic, Exception)
    assert is_panic(panic)
    assert not any(map(is_panic, (KeyboardInterrupt(), SystemExit(), ValueError(), BundleError())))
    with (
        pytest.raises(PanicError, match=r"^the library crashed: chunk size must be non-zero$"),
        panics_as_errors("the library"),
    ):
        raise panic
    with pytest.raises(KeyboardInterrupt), panics_as_errors("the library"):
        raise KeyboardInterrupt


def test_a_panic_in_a_thread_is_an_ordinary_error_for_the_caller() -> None:
    def crash() -> None:
        raise make_panic()

    async def work() -> None:
        pool = ThreadPool(1, "redline-test")
        with pytest.raises(PanicError, match="chunk size"):
            await pool.run(crash)
        assert await pool.run(lambda: 1) == 1
        pool.stop(1.0)

    asyncio.run(work())


def test_a_panic_ends_a_command_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from redline_cli import app

    def crash() -> None:
        raise make_panic()

    monkeypatch.setattr(app, "app", crash)
    with pytest.raises(SystemExit) as end:
        app.run()
    assert end.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == "redline: a library crashed: chunk size must be non-zero"
