"""Prompts from JSONL: any file whose rows have a ``prompt``, preference pairs among them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from redline.errors import CommandError
from redline.ppo.protocols import Prompt


def load_prompts(path: Path) -> list[Prompt]:
    """Every row's prompt, text or messages, in order.

    Raises:
        CommandError: listing the rows that have none (the first ten), or that the file cannot be read.
    """
    opener = gzip.open if path.name.endswith(".gz") else open
    prompts: list[Prompt] = []
    problems: list[str] = []
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    problems.append(f"{path}:{number}: not JSON: {error}")
                    continue
                prompt = row.get("prompt") if isinstance(row, dict) else None
                if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and all(map(_is_message, prompt))):
                    prompts.append(prompt)
                else:
                    problems.append(f"{path}:{number}: no 'prompt' of text or messages")
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise CommandError(f"{path}: cannot be read: {error}") from error
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CommandError("; ".join(problems[:10]) + more)
    if not prompts:
        raise CommandError(f"{path}: holds no prompts")
    return prompts


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
