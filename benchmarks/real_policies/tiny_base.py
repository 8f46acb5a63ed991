"""A tiny random model with a tokenizer trained on the data, for the quick run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.real_policies.tasks import TextTask


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
