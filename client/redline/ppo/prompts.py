"""Prompts from JSONL: any file whose rows have a ``prompt``, preference pairs among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redline.errors import CommandError
from redline.jsonl import CheckedRows
from redline.ppo.protocols import Prompt


def load_prompts(path: Path) -> list[Prompt]:
    """Every row's prompt, text or messages, in order.

    Raises:
        CommandError: listing the rows that have none, or that the file cannot be read.
    """
    return [prompt for _, prompt in CheckedRows(path, _prompt)]


def _prompt(where: str, row: dict[str, Any]) -> Prompt:
    prompt = row.get("prompt")
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and all(map(_is_message, prompt))):
        return prompt
    raise CommandError(f"{where}: no 'prompt' of text or messages")


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
