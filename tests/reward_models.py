"""Tiny Hugging Face reward models: sequence classifiers with one label, and their tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.conftest import build_tokenizer

# each closes the assistant's turn differently: with the end token, with the end token and text, with text only
TEMPLATES = {
    "llama": (
        "{% for m in messages %}<|{{ m.role }}|>\n\n{{ m.content | trim }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
    ),
    "qwen2": (
        "{% if messages[0].role != 'system' %}<|system|>\nBe helpful.<|end|>\n{% endif %}"
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "gemma2": (
        "{% for m in messages %}{% if m.role == 'user' %}[Q] {{ m.content }} [/Q]{% else %} {{ m.content }} </s>"
        "{% endif %}{% endfor %}"
    ),
    "gpt_neox": None,
}
FAMILIES = list(TEMPLATES)
_CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "gemma2": "Gemma2", "gpt_neox": "GPTNeoX"}


def build_reward_model(family: str, folder: Path, *, pad: str = "<|end|>", labels: int = 1, **options: Any) -> Path:
    """Save a model and its tokenizer; with ``pad`` <|end|> it pads with the end token."""
    tokenizer = build_tokenizer(chat=False)
    tokenizer.chat_template = TEMPLATES[family]
    tokenizer.add_special_tokens({"pad_token": pad})
    name = _CLASSES[family]
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "num_labels": labels,
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**settings, **options})
    getattr(transformers, f"{name}ForSequenceClassification")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def transformers_scores(folder: Path, items: list[tuple[Any, str]], padding_side: str | None = None) -> list[float]:
    """transformers' own logits of (prompt, response) pairs, in one padded batch, or one by one without a side."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    ).eval()
    rows = []
    for prompt, response in items:
        if tokenizer.chat_template is None:
            rows.append(tokenizer(prompt, response)["input_ids"])
            continue
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        messages.append({"role": "assistant", "content": response})
        rows.append(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])
    if padding_side is None:
        return [float(model(input_ids=torch.tensor([row])).logits) for row in rows]
    batch = tokenizer.pad({"input_ids": rows}, padding_side=padding_side, return_tensors="pt")
    return model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits[:, 0].tolist()
