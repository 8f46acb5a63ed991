"""The figures of a run on real text, section by section: pair accuracy, error spans, policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.real_text.plan import KINDS, MAIN_KINDS
from benchmarks.real_text.run import Run

if TYPE_CHECKING:
    from redline_trainer.evaluation.report import QualityReport

# The error score of seq2seq models, chosen before the results were known: -log pi(y_t). The modes that use the argmax
# find few errors, because the model often copies the response that it is given.
_ERROR_SCORE = "probability/sum"


def all_figures(run: Run, policy: bool) -> dict[str, Any]:
    """Compute or read all figures, section by section, so that a stopped run has complete sections.

    Args:
        policy: whether to correct, choose and train policies, too.
    """
    plan = run.plan
    ranking: dict[str, Any] = {}
    error_scores: dict[str, Any] = {test: {"base surprisal": run.surprisal(test)["spans"]} for test in plan.spans}
    for data in plan.training:
        for kind in KINDS if data in plan.relatives else MAIN_KINDS:
            folder = run.bundle(data, kind)
            for test in dict.fromkeys([data, *plan.preferences, *plan.spans]):
                report = run.quality(folder, test)
                ranking.setdefault(data, {}).setdefault(test, {})[kind] = report
                if report["spans"]:
                    error_scores[test][f"{data} {kind}"] = report["spans"]
        red = run.derived(data)
        for test in plan.spans:
            error_scores[test][f"{data} red"] = run.quality(red, test)["spans"]
    ahead = {test: _auc_differences(models) for test, models in error_scores.items()}
    for detections in [d for models in error_scores.values() for d in models.values()]:
        for detection in detections.values():
            detection.pop("auc_resamples", None)  # large, and not needed for the tables
    policies = evaluation_quality = None
    if policy:
        from benchmarks.real_text.policies import policy_figures

        policies = run.once("policies", lambda: policy_figures(run))
        evaluation_model = run.bundle(plan.judge, "scalar")
        evaluation_quality = {
            test: run.quality(evaluation_model, test) for test in dict.fromkeys([plan.judge, *plan.preferences])
        }
    for data in plan.training:
        for test in plan.ranked:
            reports = {kind: run.quality(run.bundle(data, kind), test) for kind in MAIN_KINDS}
            ranking[data].setdefault(test, {}).update(reports)
    for report in [r for tests in ranking.values() for kinds in tests.values() for r in kinds.values()]:
        report["spans"] = {}  # they are under "blame"
    return {
        "ranking": ranking,
        "blame": error_scores,
        "ahead": ahead,
        "policies": policies,
        "judge": evaluation_quality,
    }


def _auc_differences(models: dict[str, Any]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """AUC of each seq2seq model less that of every other model, on the same responses: difference, low, high."""
    from redline_trainer.evaluation.error_spans import SpanDetection, auc_difference

    detections = {
        name: SpanDetection.model_validate(by_mode.get(_ERROR_SCORE) or next(iter(by_mode.values())))
        for name, by_mode in models.items()
    }
    seq2seq = [name for name in detections if name.endswith((" seq2seq", " published"))]
    others = [name for name in detections if name not in seq2seq]
    return {name: {other: auc_difference(detections[name], detections[other]) for other in others} for name in seq2seq}


def quality_reports(figures: Mapping[str, Any], data: str) -> dict[str, QualityReport]:
    """The reports of the models trained on ``data``, on the test pairs of the same set."""
    from redline_trainer.evaluation.report import QualityReport

    return {kind: QualityReport.model_validate(r) for kind, r in figures["ranking"][data][data].items()}
