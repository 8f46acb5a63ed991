"""Figures of a policy's sampled texts: the deciding figure of the task, and what must be kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from benchmarks.real_policies.evaluators import (
    Fluency,
    GrammarFindings,
    MissingPackageError,
    ReferenceOverlap,
    SentenceEmbeddings,
    Toxicity,
)
from benchmarks.real_policies.tasks import TextTask

Figures = dict[str, float | None]
_T = TypeVar("_T")


class Sample(NamedTuple):
    """One sampled text.

    ``kl``: an estimate of the KL divergence from the start policy, in nats (``kl_of`` in ``training``).
    """

    prompt: str
    text: str
    is_finished: bool
    kl: float


class Metric(NamedTuple):
    """How a figure is shown. ``better``: 1 if more is better, -1 if less is, 0 if neither."""

    heading: str
    digits: int
    better: int


METRICS: dict[str, Metric] = {
    "findings_per_100_words": Metric("findings per 100 words", 2, -1),
    "findings": Metric("findings per text", 2, -1),
    "clean_share": Metric("texts without a finding", 2, 1),
    "toxicity": Metric("toxicity", 3, -1),
    "toxic_share": Metric("texts above 0.5", 3, -1),
    "kl": Metric("KL, nats", 2, 0),
    "words": Metric("words", 1, 0),
    "finished_share": Metric("finished", 2, 1),
    "distinct_2": Metric("distinct 2-grams", 3, 1),
    "diversity": Metric("diversity", 3, 1),
    "topic": Metric("topic kept", 3, 1),
    "topic_shift": Metric("topic shift", 3, -1),
    "fluency": Metric("fluency, nats per token", 2, 1),
    "chrf": Metric("chrF", 1, 1),
}


@dataclass(frozen=True)
class Evaluators:
    """The evaluators of a task; None for one that is not there. ``missing``: messages about missing packages."""

    findings: GrammarFindings | None = None
    toxicity: Toxicity | None = None
    overlap: ReferenceOverlap | None = None
    embeddings: SentenceEmbeddings | None = None
    fluency: Fluency | None = None
    missing: tuple[str, ...] = ()


def load_evaluators(task: TextTask, base: Path, device: str, *, may_miss: bool) -> Evaluators:
    """The evaluators of ``task``; ``base`` is the language model that measures fluency.

    Raises:
        MissingPackageError: a package is not installed and not ``may_miss``.
    """
    missing: list[str] = []

    def loaded(make: Callable[[], _T]) -> _T | None:
        try:
            return make()
        except MissingPackageError as error:
            if not may_miss:
                raise
            missing.append(str(error))
            return None

    findings = loaded(GrammarFindings) if task.name == "grammar" else None
    toxicity = loaded(Toxicity) if task.name == "toxicity" else None
    overlap = loaded(ReferenceOverlap)
    embeddings = loaded(lambda: SentenceEmbeddings(device))
    return Evaluators(findings, toxicity, overlap, embeddings, Fluency(base, device), tuple(missing))


def text_figures(
    evaluators: Evaluators,
    samples: Sequence[Sample],
    start: Sequence[Sample],
    references: Mapping[str, Sequence[str]],
) -> Figures:
    """The figures of ``samples``.

    ``topic``: mean cosine of each text's embedding with that of a text of the start policy for the same prompt.
    ``topic_shift``: energy distance of the two sets of embeddings (``energy_distance``).
    ``diversity``: 1 less the mean cosine of two texts.

    Args:
        start: samples of the start policy, for the same prompts in the same order.
        references: prompt -> texts that ``chrf`` compares with; prompts without are left out.
    """
    texts = [sample.text for sample in samples]
    words = [len(text.split()) for text in texts]
    figures: Figures = {
        "kl": _mean([sample.kl for sample in samples]),
        "words": _mean(words),
        "finished_share": _mean([sample.is_finished for sample in samples]),
        "distinct_2": distinct_share(texts, 2),
    }
    if evaluators.findings is not None:
        findings = evaluators.findings(texts)
        figures["findings"] = _mean(findings)
        figures["findings_per_100_words"] = 100 * sum(findings) / max(1, sum(words))
        figures["clean_share"] = _mean([n == 0 for n in findings])
    if evaluators.toxicity is not None:
        probabilities = evaluators.toxicity(texts)
        figures["toxicity"] = _mean(probabilities)
        figures["toxic_share"] = _mean([p > 0.5 for p in probabilities])
    if evaluators.fluency is not None:
        figures["fluency"] = _mean([value for value in evaluators.fluency(texts) if value is not None])
    if evaluators.overlap is not None and references:
        compared = [sample for sample in samples if sample.prompt in references]
        overlaps = evaluators.overlap([s.text for s in compared], [references[s.prompt] for s in compared])
        figures["chrf"] = _mean(overlaps)
    if evaluators.embeddings is not None:
        vectors, others = (evaluators.embeddings([s.text for s in part]) for part in (samples, start))
        figures["diversity"] = 1 - _mean_cosine(vectors)
        figures["topic"] = float((vectors * others).sum(-1).mean())
        figures["topic_shift"] = energy_distance(vectors, others)
    return figures


def distinct_share(texts: Sequence[str], n: int) -> float | None:
    """Number of different word n-grams of all texts, divided by the number of all n-grams; None if there are none."""
    grams = [
        tuple(words[i : i + n]) for words in (text.lower().split() for text in texts) for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else None


def energy_distance(first: Tensor, second: Tensor) -> float:
    """``2 E|a - b| - E|a - a'| - E|b - b'|`` of two sets of vectors (Székely and Rizzo 2013), 0 for one distribution.

    Pairs of a vector with itself are left out, so the estimate is unbiased and may be slightly negative.
    """
    within = [float(_distances(part, part).sum() / (len(part) * (len(part) - 1))) for part in (first, second)]
    return 2 * float(_distances(first, second).mean()) - sum(within)


def _distances(first: Tensor, second: Tensor) -> Tensor:
    distances: Tensor = torch.linalg.vector_norm(first.unsqueeze(1) - second.unsqueeze(0), dim=-1)
    return distances


def _mean_cosine(vectors: Tensor) -> float:
    count = len(vectors)
    return float(((vectors @ vectors.T).sum() - vectors.square().sum()) / (count * (count - 1)))


def _mean(values: Sequence[float | bool]) -> float | None:
    return sum(values) / len(values) if values else None
