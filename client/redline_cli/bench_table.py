"""The tables of ``redline bench``, as plain text of at most 80 columns; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redline.benchmark.results import difference

WIDTH = 80
_NAME = 22
Stored = Mapping[str, Any]
Figures = Mapping[str, Mapping[str, float]]
LOCALISATION_HEADER = "AUC within responses  pooled  prec. detect  alone  found"
RANKING_HEADER = "accuracy"
STYLES_HEADER = "accuracy                 easy normal   hard"


def set_table(set_name: str, task: str, name: str, own: Stored, others: Mapping[str, Stored]) -> str:
    """The table of one set: the scorer, the stored results of ``others`` by name, baselines, and paired differences.

    Args:
        task: ``localisation`` or ``ranking``.
        own, others: stored results of the set, see ``redline.benchmark.results``.
    """
    is_localisation = task == "localisation"
    row = _localisation_row if is_localisation else _ranking_row
    ranking_header = STYLES_HEADER if "hard" in own["figures"] else RANKING_HEADER
    rows = {name: own["figures"], **{other: stored["figures"] for other, stored in others.items()}, **own["baselines"]}
    lines = [
        *_title(set_name, own, is_localisation),
        _line("", LOCALISATION_HEADER if is_localisation else ranking_header),
        *(_line(label, row(figures)) for label, figures in rows.items()),
    ]
    main = "auc" if is_localisation else "accuracy"
    for other, stored in others.items():
        found = difference(own, stored, main)
        if found is not None:
            text = f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] on {found.values}"
            lines.append(_line(f"  minus {other}", text))
    if not is_localisation:
        lines += _subset_lines(own["figures"])
    return "\n".join(lines)


def _title(set_name: str, own: Stored, is_localisation: bool) -> list[str]:
    counts, file = own["counts"], own["file"]
    if is_localisation:
        share = counts["marked_words"] / max(1, counts["words"])
        size = f"{counts['responses']:,} responses ({counts['clean']:,} clean), {counts['words']:,} words, "
        size += f"{share:.1%} marked"
    else:
        size = f"{counts['comparisons']:,} comparisons, {counts['ties']:,} ties"
    lines = [f"{set_name}: {size}"[:WIDTH], f"  licence {file['licence']}; file {file['state']}"[:WIDTH]]
    if counts["failed"]:
        lines.append(f"  not scored: {counts['failed']:,} ({own.get('first_failure') or 'no reason'})"[:WIDTH])
    return lines


def _line(name: str, text: str) -> str:
    short = name if len(name) <= _NAME else name[: _NAME - 1] + "~"
    return f"{short:{_NAME}} {text}".rstrip()[:WIDTH]


def _localisation_row(figures: Figures) -> str:
    names = ("pooled_auc", "precision", "detection", "left_alone", "reported")
    return _interval(figures.get("auc")) + " " + "".join(_mean(figures.get(name), 7) for name in names)


def _ranking_row(figures: Figures) -> str:
    styles = [_mean(figures[name], 7) for name in ("easy", "normal", "hard") if name in figures]
    return _interval(figures.get("accuracy")) + " " + "".join(styles)


def _interval(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return f"{'-':20}"
    bounds = f"[{figure['low']:.3f}, {figure['high']:.3f}]"
    if figure["low"] == figure["high"]:
        bounds = "(one prompt)" if figure["groups"] == 1 else ""
    return f"{figure['mean']:.3f} {bounds}".ljust(20)


def _mean(figure: Mapping[str, float] | None, width: int) -> str:
    return f"{'-' if figure is None else format(figure['mean'], '.3f'):>{width}}"


def _subset_lines(figures: Figures) -> Sequence[str]:
    subsets = {name.split("/", 1)[1]: figure for name, figure in figures.items() if name.startswith("accuracy/")}
    if not subsets:
        return []
    mean = figures.get("subset_mean")
    return [
        _line("  mean of subsets", _interval(mean)),
        *(_line(f"  {name}", f"{_interval(figure)} of {figure['values']:,}") for name, figure in subsets.items()),
    ]
