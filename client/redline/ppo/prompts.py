"""Prompts from files of rows that have a ``prompt`` or ``messages``, or are preference pairs; all checked at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from redline.errors import RedlineError, RowsError
from redline.files.row_files import Problems, UnknownFormatError, read_rows
from redline.ppo.protocols import Prompt
from redline.preference_data.checked_rows import MAX_REPORTED, refuse_bad_rows
from redline.preference_data.row_report import RowReport, checked_rows
from redline.preference_data.rows import parse_prompt

MAX_ASKED = 10_000
_ASKED_AT_ONCE = 32


def load_prompts(path: Path) -> list[Prompt]:
    """Every row's prompt, text or messages, in order.

    Raises:
        RowsError: listing the rows that have none, or that the file cannot be read.
    """
    return [prompt for _, prompt in load_prompt_rows(path)]


def load_prompt_rows(path: Path, report: RowReport | None = None) -> list[tuple[str, Prompt]]:
    """``(where, prompt)`` of every row, in order.

    Args:
        report: takes bad rows if it skips them, and columns that are not used; by default bad rows are refused.

    Raises:
        RowsError: listing the rows that have no prompt, or that the file cannot be read or holds no other.
    """
    report = report or RowReport()

    def parse(where: str, row: dict[str, Any]) -> Prompt:
        return parse_prompt(row, ignore=report.ignore)

    problems = Problems(MAX_REPORTED)
    try:
        rows = list(checked_rows(read_rows(path), parse, report, problems))
    except UnknownFormatError as error:
        raise RowsError(str(error)) from error
    refuse_bad_rows(path, problems, report, len(rows))
    return rows


def usable_prompts(
    rows: Iterable[tuple[str, Prompt]],
    prompt_ids: Callable[[Prompt], list[int]],
    report: RowReport | None = None,
) -> list[Prompt]:
    """The prompts of ``usable_rows``, which says what is raised."""
    return [prompt for _, prompt in usable_rows(rows, prompt_ids, report)]


def usable_rows(
    rows: Iterable[tuple[str, Prompt]],
    prompt_ids: Callable[[Prompt], list[int]],
    report: RowReport | None = None,
) -> list[tuple[str, Prompt]]:
    """The rows whose prompts a policy can continue, in order; every one is tried before the first is used.

    Args:
        rows: ``(where, prompt)``.
        prompt_ids: the ids that the policy continues; may raise anything for a prompt that it cannot take.
        report: takes the others if it skips bad rows; by default they are refused.

    Raises:
        RowsError: listing the prompts that the policy cannot continue, or that there are no others.
    """
    return _kept(((where, prompt, _refusal(prompt, prompt_ids)) for where, prompt in rows), report or RowReport())


def scorable_rows(
    rows: Sequence[tuple[str, Prompt]],
    ask: Callable[[list[Prompt]], Sequence[str | None]],
    report: RowReport | None = None,
) -> list[tuple[str, Prompt]]:
    """The rows whose prompts a reward service takes, in order; it is asked before the first is used.

    Every distinct prompt is asked about once, at most the first ``MAX_ASKED`` of them; those behind are taken unasked.

    Args:
        rows: ``(where, prompt)``.
        ask: why the service refuses each of some prompts, None where it does not; may raise anything.
        report: takes the others if it skips bad rows; by default they are refused.

    Raises:
        RowsError: listing the prompts that the service refuses, or that there are no others.
    """
    distinct = {_key(prompt): prompt for _, prompt in rows}
    reasons: dict[str, str | None] = {}
    asked = list(distinct)[:MAX_ASKED]
    for keys in (asked[at : at + _ASKED_AT_ONCE] for at in range(0, len(asked), _ASKED_AT_ONCE)):
        reasons.update(zip(keys, ask([distinct[key] for key in keys]), strict=True))
    return _kept(((where, prompt, reasons.get(_key(prompt))) for where, prompt in rows), report or RowReport())


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt, sort_keys=True)


def _kept(rows: Iterable[tuple[str, Prompt, str | None]], report: RowReport) -> list[tuple[str, Prompt]]:
    """Those of ``(where, prompt, reason)`` that there is no reason against."""
    kept: list[tuple[str, Prompt]] = []
    problems = Problems(MAX_REPORTED)
    for where, prompt, reason in rows:
        if reason is None:
            kept.append((where, prompt))
        elif not report.skip(where, reason):
            problems.add(f"{where}: {reason}")
            if problems.is_full:
                break
    if problems.count:
        raise RowsError("; ".join(problems.shown))
    if not kept:
        raise RowsError("; ".join(["no prompt can be used", *report.skipped.first[:MAX_REPORTED]]))
    return kept


def _refusal(prompt: Prompt, prompt_ids: Callable[[Prompt], list[int]]) -> str | None:
    try:
        return None if prompt_ids(prompt) else "the prompt has no tokens"
    except RedlineError as error:
        return str(error)
    except Exception as error:  # a chat template may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"the policy's chat template refuses the prompt: {reason}"
