"""Reads prompts from files, and checks that the policy and the reward model accept them before training.

A row has a ``prompt`` or ``messages``, or is a preference pair.
"""

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

MAX_CHECKED = 10_000
_CHECKED_AT_ONCE = 32


def load_prompts(path: Path) -> list[Prompt]:
    """Every row's prompt, text or messages, in order.

    Raises:
        RowsError: rows have no prompt (the message lists them), or the file cannot be read.
    """
    return [prompt for _, prompt in load_prompt_rows(path)]


def load_prompt_rows(path: Path, report: RowReport | None = None) -> list[tuple[str, Prompt]]:
    """``(where, prompt)`` of every row, in order.

    Args:
        report: collects unused columns and, if it skips bad rows, those rows. By default bad rows are an error.

    Raises:
        RowsError: rows have no prompt (the message lists them), the file cannot be read, or no row is left.
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
    """The prompts of ``usable_rows``. Raises the same errors."""
    return [prompt for _, prompt in usable_rows(rows, prompt_ids, report)]


def usable_rows(
    rows: Iterable[tuple[str, Prompt]],
    prompt_ids: Callable[[Prompt], list[int]],
    report: RowReport | None = None,
) -> list[tuple[str, Prompt]]:
    """The rows whose prompts the policy can continue, in order. All prompts are rendered before this returns.

    Args:
        rows: ``(where, prompt)``.
        prompt_ids: returns the token ids of a prompt; may raise any exception for a prompt that it does not support.
        report: collects the other rows if it skips bad rows. By default they are an error.

    Raises:
        RowsError: the policy cannot continue some prompts (the message lists them), or no row is left.
    """
    return _accepted_rows(
        ((where, prompt, _refusal(prompt, prompt_ids)) for where, prompt in rows), report or RowReport()
    )


def scorable_rows(
    rows: Sequence[tuple[str, Prompt]],
    check: Callable[[list[Prompt]], Sequence[str | None]],
    report: RowReport | None = None,
) -> list[tuple[str, Prompt]]:
    """The rows whose prompts the reward service accepts, in order.

    Each of the first ``MAX_CHECKED`` distinct prompts is checked once. Further prompts are accepted without a check.

    Args:
        rows: ``(where, prompt)``.
        check: returns for each prompt the reason why the service refuses it, None if it does not. Its exceptions are
            not caught.
        report: collects the other rows if it skips bad rows. By default they are an error.

    Raises:
        RowsError: the service refuses some prompts (the message lists them), or no row is left.
    """
    distinct = {_key(prompt): prompt for _, prompt in rows}
    reasons: dict[str, str | None] = {}
    checked = list(distinct)[:MAX_CHECKED]
    for keys in (checked[start : start + _CHECKED_AT_ONCE] for start in range(0, len(checked), _CHECKED_AT_ONCE)):
        reasons.update(zip(keys, check([distinct[key] for key in keys]), strict=True))
    return _accepted_rows(((where, prompt, reasons.get(_key(prompt))) for where, prompt in rows), report or RowReport())


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt, sort_keys=True)


def _accepted_rows(rows: Iterable[tuple[str, Prompt, str | None]], report: RowReport) -> list[tuple[str, Prompt]]:
    """``(where, prompt)`` of the rows ``(where, prompt, reason)`` without a reason to skip them."""
    accepted: list[tuple[str, Prompt]] = []
    problems = Problems(MAX_REPORTED)
    for where, prompt, reason in rows:
        if reason is None:
            accepted.append((where, prompt))
        elif not report.skip(where, reason):
            problems.add(f"{where}: {reason}")
            if problems.is_full:
                break
    if problems.count:
        raise RowsError("; ".join(problems.shown))
    if not accepted:
        raise RowsError("; ".join(["no prompt can be used", *report.skipped.first[:MAX_REPORTED]]))
    return accepted


def _refusal(prompt: Prompt, prompt_ids: Callable[[Prompt], list[int]]) -> str | None:
    try:
        return None if prompt_ids(prompt) else "the prompt has no tokens"
    except RedlineError as error:
        return str(error)
    except Exception as error:  # a chat template may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"the policy's chat template refuses the prompt: {reason}"
