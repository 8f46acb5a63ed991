"""Prompts from files of rows that have a ``prompt`` or ``messages``, or are preference pairs; all checked at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from redline.errors import CommandError
from redline.jsonl import SHOWN, refuse_bad_rows
from redline.pairs import parse_prompt
from redline.ppo.protocols import Prompt
from redline.reading import ReadingReport, checked_rows
from redline.row_files import Problems, UnknownFormatError, read_rows


def load_prompts(path: Path) -> list[Prompt]:
    """Every row's prompt, text or messages, in order.

    Raises:
        CommandError: listing the rows that have none, or that the file cannot be read.
    """
    return [prompt for _, prompt in load_prompt_rows(path)]


def load_prompt_rows(path: Path, report: ReadingReport | None = None) -> list[tuple[str, Prompt]]:
    """``(where, prompt)`` of every row, in order.

    Args:
        report: takes bad rows if it skips them, and columns that are not used; by default bad rows are refused.

    Raises:
        CommandError: listing the rows that have no prompt, or that the file cannot be read or holds no other.
    """
    report = report or ReadingReport()

    def parse(where: str, row: dict[str, Any]) -> Prompt:
        return parse_prompt(row, ignore=report.ignore)

    problems = Problems(SHOWN)
    try:
        rows = list(checked_rows(read_rows(path), parse, report, problems))
    except UnknownFormatError as error:
        raise CommandError(str(error)) from error
    refuse_bad_rows(path, problems, report, len(rows))
    return rows


def usable_prompts(
    rows: Iterable[tuple[str, Prompt]],
    prompt_ids: Callable[[Prompt], list[int]],
    report: ReadingReport | None = None,
) -> list[Prompt]:
    """The prompts that a policy can continue, in order; every one is tried before the first is used.

    Args:
        rows: ``(where, prompt)``.
        prompt_ids: the ids that the policy continues; may raise anything for a prompt that it cannot take.
        report: takes the others if it skips bad rows; by default they are refused.

    Raises:
        CommandError: listing the prompts that the policy cannot continue, or that there are no others.
    """
    report = report or ReadingReport()
    usable: list[Prompt] = []
    problems = Problems(SHOWN)
    for where, prompt in rows:
        reason = _refusal(prompt, prompt_ids)
        if reason is None:
            usable.append(prompt)
        elif not report.skip(where, reason):
            problems.add(f"{where}: {reason}")
            if problems.is_full:
                break
    if problems.count:
        raise CommandError("; ".join(problems.shown))
    if not usable:
        raise CommandError("; ".join(["no prompt can be used", *report.skipped.first[:SHOWN]]))
    return usable


def _refusal(prompt: Prompt, prompt_ids: Callable[[Prompt], list[int]]) -> str | None:
    try:
        return None if prompt_ids(prompt) else "the prompt has no tokens"
    except CommandError as error:
        return str(error)
    except Exception as error:  # a chat template may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"the policy's chat template refuses the prompt: {reason}"
