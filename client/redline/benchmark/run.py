"""Runs one set against a scorer: figures with intervals, the values of each response, and baselines that read no text.

Responses are scored in blocks, and of each answer only numbers are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from redline.benchmark.examples import Comparison, MarkedResponse, subsets
from redline.benchmark.scorers import BenchmarkScorer, Scored, Unscored
from redline.benchmark.words import word_error_scores
from redline.errors import ProtocolError, RowsError
from redline.http.exchange import chunks
from redline.measures.intervals import Interval, mean_interval, statistic_interval
from redline.measures.localisation import highest, is_left_alone, pooled_auc, response_measures
from redline.measures.ranking import style_accuracies, win
from redline.messages import Prompt

BLOCK = 128
_POOLED_RESAMPLES = 200
OnProgress = Callable[[int, int], None]


class SetResult(NamedTuple):
    """The result of one scorer on one set.

    ``figures``: intervals by name. ``counts``: numbers of responses, words, failures and so on. ``values``: the values
    of each response (or comparison) by its key, from which paired differences are computed; ``groups``: the group of
    each. ``baselines``: figures of baselines on the same responses, by their names. ``first_failure``: the reason why
    the first of the responses that failed was not scored.
    """

    figures: dict[str, Interval]
    counts: dict[str, int]
    values: dict[str, dict[str, float]]
    groups: dict[str, str]
    baselines: dict[str, dict[str, Interval]]
    first_failure: str | None = None


def run_localisation(
    scorer: BenchmarkScorer, responses: Sequence[MarkedResponse], progress: OnProgress = lambda done, total: None
) -> SetResult:
    """Whether the error scores of words find the words that people marked.

    Figures: ``auc`` (mean of the responses' own AUCs), ``pooled_auc`` (over all words), ``precision`` (at the number of
    marked words), ``detection`` (AUC of the responses' highest error scores: marked against clean responses); with a
    threshold also ``left_alone`` (share of clean responses without a reported word) and ``reported`` (share of marked
    responses with one). Figures that are not defined for the set are left out.

    Args:
        progress: called with the numbers of scored responses and of all.

    Raises:
        RowsError: no response has marked words.
        ProtocolError: the scorer has no token rewards, or scored no response.
        RedlineError: as ``BenchmarkScorer.score`` does.
    """
    if not scorer.has_token_rewards:
        raise ProtocolError("this kind of scorer has one score per response; localisation needs token rewards")
    if not any(any(response.marked) for response in responses):
        raise RowsError("no response has marked words")
    kept: list[MarkedResponse] = []
    scores: list[list[float]] = []
    failures: list[str] = []
    results = _scored(scorer, [(response.prompt, response.text) for response in responses], progress)
    for response, result in zip(responses, results, strict=True):
        found = _word_scores(response, result)
        if isinstance(found, str):
            failures.append(found)
        else:
            kept.append(response)
            scores.append(found)
    _refuse_if_none(kept, failures)
    marked_words = sum(sum(response.marked) for response in kept)
    counts = {
        "responses": len(kept),
        "failed": len(failures),
        "clean": sum(response.is_clean for response in kept),
        "words": sum(len(response.words) for response in kept),
        "marked_words": marked_words,
    }
    values = {r.key: dict(response_measures(s, r.marked)) for r, s in zip(kept, scores, strict=True)}
    lengths = [[float(end - start) for start, end in response.words] for response in kept]
    baselines = {
        "random": _localisation_figures(kept, [[0.0] * len(response.words) for response in kept], None),
        "longer words": _localisation_figures(kept, lengths, None),
    }
    figures = _localisation_figures(kept, scores, scorer.threshold)
    groups = {response.key: response.group for response in kept}
    return SetResult(figures, counts, values, groups, baselines, failures[0] if failures else None)


def run_ranking(
    scorer: BenchmarkScorer, rows: Sequence[Comparison], progress: OnProgress = lambda done, total: None
) -> SetResult:
    """Whether chosen responses have higher scores than rejected ones; ties count half.

    Figures: ``accuracy``; with styles ``easy``, ``normal`` and ``hard``; with subsets one per subset
    (``accuracy/NAME``) and ``subset_mean``, the mean over the subsets.

    Args:
        progress: called with the numbers of scored responses and of all.

    Raises:
        ProtocolError: the scorer scored no row.
        RedlineError: as ``BenchmarkScorer.score`` does.
    """
    items = [(row.prompt, text) for row in rows for text in (*row.chosen, *row.rejected)]
    results = _scored(scorer, items, progress)
    kept: list[Comparison] = []
    values: dict[str, dict[str, float]] = {}
    failures: list[str] = []
    ties = 0
    for row in rows:
        answers = [next(results) for _ in (*row.chosen, *row.rejected)]
        failed = next((answer.reason for answer in answers if isinstance(answer, Unscored)), None)
        if failed is not None:
            failures.append(failed)
            continue
        scores = [answer.score for answer in answers if isinstance(answer, Scored)]
        values[row.key] = _accuracies(scores)
        ties += len(scores) == 2 and scores[0] == scores[1]
        kept.append(row)
    _refuse_if_none(kept, failures)
    lengths = {row.key: [float(len(text)) for text in (*row.chosen, *row.rejected)] for row in kept}
    baselines = {
        "longer response": {key: _accuracies(sizes) for key, sizes in lengths.items()},
        "shorter response": {key: _accuracies([-size for size in sizes]) for key, sizes in lengths.items()},
    }
    return SetResult(
        _ranking_figures(kept, values),
        {"comparisons": len(kept), "failed": len(failures), "ties": ties},
        values,
        {row.key: row.group for row in kept},
        {name: _ranking_figures(kept, found) for name, found in baselines.items()},
        failures[0] if failures else None,
    )


def _scored(
    scorer: BenchmarkScorer, items: Sequence[tuple[Prompt, str]], progress: OnProgress
) -> Iterator[Scored | Unscored]:
    for block in chunks(len(items), BLOCK):
        yield from scorer.score([items[n] for n in block])
        progress(block[-1] + 1, len(items))


def _word_scores(response: MarkedResponse, result: Scored | Unscored) -> list[float] | str:
    """The error score of each word, or the reason why there is none."""
    if isinstance(result, Unscored):
        return result.reason
    scores = word_error_scores(response.words, result.offsets or (), result.rewards or ())
    return "a word of the response has no token" if scores is None else scores


def _refuse_if_none(kept: Sequence[Any], failures: Sequence[str]) -> None:
    if not kept:
        raise ProtocolError(f"nothing was scored: {failures[0] if failures else 'the set is empty'}")


def _localisation_figures(
    responses: Sequence[MarkedResponse], scores: Sequence[Sequence[float]], threshold: float | None
) -> dict[str, Interval]:
    figures: dict[str, Interval] = {}
    groups = [response.group for response in responses]
    measured = [response_measures(s, r.marked) for r, s in zip(responses, scores, strict=True)]
    for name in ("auc", "precision"):
        _add_mean(figures, name, [found.get(name) for found in measured], groups)
    pooled = pooled_auc(scores, [response.marked for response in responses])
    if pooled([1.0] * len(groups)) is not None:
        figures["pooled_auc"] = statistic_interval(pooled, groups, resamples=_POOLED_RESAMPLES)
    is_marked = [any(response.marked) for response in responses]
    decided = [n for n, response in enumerate(responses) if is_marked[n] or response.is_clean]
    detection = pooled_auc([[highest(scores[n])] for n in decided], [[is_marked[n]] for n in decided])
    if detection([1.0] * len(decided)) is not None:
        at = [groups[n] for n in decided]
        figures["detection"] = statistic_interval(detection, at, resamples=_POOLED_RESAMPLES)
    if threshold is not None:
        alone = [is_left_alone(found, threshold) for found in scores]
        clean = [float(alone[n]) if response.is_clean else None for n, response in enumerate(responses)]
        _add_mean(figures, "left_alone", clean, groups)
        reported = [float(not alone[n]) if is_marked[n] else None for n in range(len(responses))]
        _add_mean(figures, "reported", reported, groups)
    return figures


def _add_mean(figures: dict[str, Interval], name: str, values: Sequence[float | None], groups: Sequence[str]) -> None:
    """Add the mean of the values that are defined, if there are any."""
    defined = [(value, group) for value, group in zip(values, groups, strict=True) if value is not None]
    if defined:
        figures[name] = mean_interval([value for value, _ in defined], [group for _, group in defined])


def _accuracies(scores: Sequence[float]) -> dict[str, float]:
    """The accuracies of one row from the scores of its chosen and then its rejected responses."""
    half = len(scores) // 2
    if half == 1:
        return {"accuracy": win(scores[0], scores[1])}
    return dict(style_accuracies(scores[:half], scores[half:]))


def _ranking_figures(rows: Sequence[Comparison], values: Mapping[str, Mapping[str, float]]) -> dict[str, Interval]:
    figures: dict[str, Interval] = {}
    groups = [row.group for row in rows]
    for name in ("accuracy", "easy", "normal", "hard"):
        _add_mean(figures, name, [values[row.key].get(name) for row in rows], groups)
    names = subsets(rows)
    for subset in names:
        at = [row for row in rows if row.subset == subset]
        found = [values[row.key]["accuracy"] for row in at]
        figures[f"accuracy/{subset}"] = mean_interval(found, [row.group for row in at])
    if names:
        figures["subset_mean"] = statistic_interval(_subset_mean(rows, values, names), groups,
                                                    resamples=_POOLED_RESAMPLES)  # fmt: skip
    return figures


def _subset_mean(
    rows: Sequence[Comparison], values: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> Callable[[Sequence[float]], float | None]:
    def mean(weights: Sequence[float]) -> float | None:
        totals = {name: [0.0, 0.0] for name in names}
        for row, weight in zip(rows, weights, strict=True):
            if row.subset in totals:
                totals[row.subset][0] += weight * values[row.key]["accuracy"]
                totals[row.subset][1] += weight
        means = [total / count for total, count in totals.values() if count]
        return fmean(means) if means else None

    return mean
