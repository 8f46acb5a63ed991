"""Trains a tokenizer and a tiny Llama on demonstrations, and saves them as a transformers model folder."""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import Progress
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: it can encode any text, and each word of the task is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=2,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_llama(vocab_size: int, end_id: int, pad_id: int, hidden: int = 128, layers: int = 3) -> LlamaForCausalLM:
    """A Llama with random weights and fewer than a million parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=hidden,
            intermediate_size=5 * hidden // 2,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            eos_token_id=end_id,
            pad_token_id=pad_id,
            bos_token_id=None,
        )
    )


def encode(tokenizer: Any, prompt: str | Sequence[dict[str, Any]], response: str) -> tuple[list[int], list[int]]:
    """Ids of the prompt in the chat template, and ids of the response, which ends with the end token."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    response_ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    return prompt_ids, [*response_ids, tokenizer.eos_token_id]


def fit(
    model: LlamaForCausalLM,
    examples: Sequence[tuple[list[int], list[int]]],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    observe: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Minimise the mean negative log-likelihood of the responses; returns that of the last batch, in nats per token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    rng = random.Random(seed)
    last = math.inf
    for step in range(steps):
        warmup = min(1.0, (step + 1) / 20)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / steps))
        batch = rng.sample(examples, batch_size)
        longest = max(len(p) + len(a) for p, a in batch)
        ids = torch.full((len(batch), longest), model.config.pad_token_id)
        labels = torch.full((len(batch), longest), -100)
        for row, (prompt, answer) in enumerate(batch):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : end] = torch.tensor(answer)
        logits = model(input_ids=ids, use_cache=False).logits  # causal and padded on the right: no mask is needed
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        last = loss.item()
        observe(step, last)
    return last


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demonstrations", type=Path, required=True, help="JSONL with prompt and response")
    parser.add_argument("--words", type=Path, required=True, help="further text for the vocabulary of the tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rows = [json.loads(line) for line in args.demonstrations.read_text(encoding="utf-8").splitlines()]
    words = args.words.read_text(encoding="utf-8").splitlines()
    tokenizer = train_tokenizer([r["prompt"] for r in rows] + [r["response"] for r in rows] + words * 2)
    model = tiny_llama(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)

    examples = [encode(tokenizer, row["prompt"], row["response"]) for row in rows]
    started = time.perf_counter()
    with Progress() as progress:
        bar = progress.add_task("supervised policy", total=args.steps)

        def observe(step: int, loss: float) -> None:
            progress.update(bar, advance=1, description=f"supervised policy  loss {loss:.3f}")

        last = fit(
            model,
            examples,
            steps=args.steps,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            seed=args.seed,
            observe=observe,
        )
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"wrote {args.out}: {parameters:,} parameters, vocabulary {len(tokenizer)}, "
        f"last loss {last:.3f}, {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
