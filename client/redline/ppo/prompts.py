"""Prompts from JSONL: any file whose rows have a ``prompt``, preference pairs among them."""

from __future__ import annotations

from pathlib import Path

from redline.jsonl import new_problems, read_rows, refuse_if_any
from redline.ppo.protocols import Prompt


def load_prompts(path: Path) -> list[Prompt]:
    """Every row's prompt, text or messages, in order.

    Raises:
        CommandError: listing the rows that have none, or that the file cannot be read.
    """
    prompts: list[Prompt] = []
    problems = new_problems()
    for where, row in read_rows(path):
        prompt = row.get("prompt")
        if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and all(map(_is_message, prompt))):
            prompts.append(prompt)
        else:
            problems.add(f"{where}: no 'prompt' of text or messages")
    refuse_if_any(problems)
    return prompts


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
