"""Trains the base model, the start policy, reward models and policies of the open task, each a folder on disk."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.open_notes.plan import (
    CHOSEN_FAULT_RATE,
    FAULT_RATE,
    PAIRS_DOMAIN,
    POLICY_DOMAIN,
    Plan,
)
from benchmarks.synthetic.tasks.note_language import DOMAINS
from benchmarks.synthetic.tasks.notes import DECIDES, Decides, draw_note, faulty_words, with_faults
from benchmarks.synthetic.training import INSTRUCTION
from examples.quickstart.supervised import encode, fit, tiny_llama, train_tokenizer
from redline.benchmark.words import word_spans
from redline.preference_data.rows import Pair
from redline.spans import Span
from redline_trainer.config import TrainConfig
from redline_trainer.train import train

_REPEAT = "say that again ."


def train_base(out: Path, plan: Plan, seed: int) -> None:
    """A model of faulty notes of both domains that can also repeat what it has written, as pretrained models can."""
    rng = random.Random(f"{seed}/base")
    rows = []
    for _ in range(plan.notes):
        note = draw_note(DOMAINS[rng.choice(sorted(DOMAINS))], rng.choice(DECIDES), rng)
        rows.append((note.prompt, with_faults(note, FAULT_RATE, rng)))
    tokenizer = train_tokenizer([text for row in rows for text in row] + [INSTRUCTION, _REPEAT] * 2)
    torch.manual_seed(seed)
    model = tiny_llama(
        len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, hidden=plan.hidden_size, layers=plan.layers
    )
    repeated = [encode(tokenizer, _repeat_prompt(*row), row[1]) for row in rows[: plan.notes // 2]]
    written = [encode(tokenizer, *row) for row in rows]
    fit(model, repeated, steps=plan.copy_steps, batch_size=32, learning_rate=2e-3, seed=seed)
    fit(model, repeated + written, steps=plan.mixed_steps, batch_size=32, learning_rate=1e-3, seed=seed)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _repeat_prompt(prompt: str, response: str) -> list[dict[str, str]]:
    turns = (("user", prompt), ("assistant", response), ("user", _REPEAT))
    return [{"role": role, "content": content} for role, content in turns]


def train_start_policy(out: Path, base: Path, level: Decides, plan: Plan, seed: int) -> None:
    """``base`` fine-tuned on faulty notes of the policy's domain."""
    rng = random.Random(f"{seed}/policy")
    rows = []
    for _ in range(plan.pairs):
        note = draw_note(DOMAINS[POLICY_DOMAIN], level, rng)
        rows.append((note.prompt, with_faults(note, FAULT_RATE, rng)))
    tokenizer = AutoTokenizer.from_pretrained(str(base), trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(str(base), trust_remote_code=False)
    examples = [encode(tokenizer, *row) for row in rows]
    fit(model, examples, steps=plan.policy_steps, batch_size=32, learning_rate=5e-4, seed=seed)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def training_pairs(level: Decides, count: int, seed: int) -> list[Pair]:
    """Pairs of the other domain: a faulty note, and the same note with hardly any fault."""
    rng = random.Random(f"{seed}/pairs")
    pairs: list[Pair] = []
    while len(pairs) < count:
        note = draw_note(DOMAINS[PAIRS_DOMAIN], level, rng)
        rejected, chosen = with_faults(note, FAULT_RATE, rng), with_faults(note, CHOSEN_FAULT_RATE, rng)
        if chosen != rejected:
            pairs.append(Pair(note.prompt, chosen, rejected, f"pair {len(pairs)}"))
    return pairs


def test_pairs(level: Decides, count: int, seed: int) -> list[Pair]:
    """Pairs of the policy's domain, whose faulty words are marked."""
    rng = random.Random(f"{seed}/test")
    pairs: list[Pair] = []
    while len(pairs) < count:
        note = draw_note(DOMAINS[POLICY_DOMAIN], level, rng)
        rejected = with_faults(note, FAULT_RATE, rng)
        if rejected != note.text:
            pairs.append(Pair(note.prompt, note.text, rejected, f"test {len(pairs)}", faulty_spans(rejected)))
    return pairs


def faulty_spans(text: str) -> tuple[Span, ...]:
    """The characters of the words that the least repair changes."""
    return tuple(span for span, is_faulty in zip(word_spans(text), faulty_words(text), strict=True) if is_faulty)


def test_prompts(level: Decides, count: int, seed: int) -> tuple[list[str], float]:
    """Prompts of the policy's domain, and the mean number of words of notes without faults."""
    rng = random.Random(f"{seed}/prompts")
    notes = [draw_note(DOMAINS[POLICY_DOMAIN], level, rng) for _ in range(count)]
    return [note.prompt for note in notes], sum(len(note.text.split()) for note in notes) / count


def train_model(
    out: Path, base: Path, pairs: Sequence[Pair], steps: int, seed: int, options: Mapping[str, Any]
) -> None:
    """A bundle at ``out``, trained as by ``redline train`` with ``options``; nothing is held out."""
    settings = {
        "base": str(base),
        "out": out,
        "max_steps": steps,
        "held_out_share": 0.0,
        "instruction": INSTRUCTION,
        "checkpoint_every": steps + 1,
        "precision": "float32",
        "seed": seed,
    }
    train(TrainConfig.model_validate({**settings, **options}), pairs, overwrite=True)
