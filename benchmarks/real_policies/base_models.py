"""Base models: the given one without a default system turn, and a tiny random one for the quick run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.real_policies.tasks import TextTask

_SYSTEM_TURN = "<|im_start|>system"
_SHORT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def short_base(out: Path, base: Path) -> Path:
    """``base``, or a copy at ``out`` whose chat template adds no system turn of its own.

    The turn that SmolLM2's template adds is 18 tokens long, a quarter of a sequence here, and says nothing about the
    task. Other templates are left as they are.
    """
    if not out.exists():
        from transformers import AutoTokenizer

        from redline.files.atomic import atomic_folder

        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
        turn = [{"role": "user", "content": "a"}]
        if _SYSTEM_TURN not in tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True):
            return base
        tokenizer.chat_template = _SHORT_TEMPLATE
        with atomic_folder(out) as folder:
            shutil.copytree(base, folder, dirs_exist_ok=True)
            tokenizer.save_pretrained(folder)
    return out


def tiny_base(out: Path, data: Path, tasks: Sequence[TextTask]) -> Path:
    """A Llama with random weights and a byte-level tokenizer at ``out``, unless they are there. Returns ``out``."""
    if not out.exists():
        import torch

        from examples.quickstart.supervised import tiny_llama, train_tokenizer
        from redline.files.atomic import atomic_folder
        from redline_trainer.load_pairs import load_pairs

        pairs = [pair for task in tasks for pair in load_pairs([data / f"{task.data}.train.jsonl.gz"])[0][:500]]
        texts = [task.instruction for task in tasks] + [text for p in pairs for text in (p.chosen, p.rejected)]
        tokenizer = train_tokenizer(texts)
        torch.manual_seed(0)
        model = tiny_llama(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, hidden=32, layers=2)
        with atomic_folder(out) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return out
