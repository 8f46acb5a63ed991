"""Writes the report of the demo: ``report.json`` for programs, and ``report.html`` for people, in a single file."""

from __future__ import annotations

import io
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from redline.files.metrics_log import read_metrics
from redline.text.edit_groups import grouped
from redline.wire import Edit

COLOURS = {"ppo_seq2seq": "#1d6fb8", "ppo_scalar": "#b3261e"}
NAMES = {
    "supervised": "supervised policy",
    "ppo_scalar": "PPO, Bradley-Terry rewards",
    "ppo_seq2seq": "PPO, seq2seq token rewards",
}
# share of benign prompts refused from which the report calls the policy collapsed
COLLAPSE = 0.5


def write_report(run: Path, *, seed: int) -> Path:
    """Write both reports of a finished run; returns the path of the HTML file."""
    figures = json.loads((run / "judge" / "figures.json").read_text())
    stages = json.loads((run / "stages.json").read_text())
    summaries = {n: json.loads((run / n / "summary.json").read_text()) for n in COLOURS}
    manifests = {k: json.loads((run / f"rm_{k}/bundle/redline.json").read_text()) for k in ("seq2seq", "scalar")}
    report: dict[str, Any] = {
        "policies": figures,
        "scalar_collapsed": figures["ppo_scalar"]["benign_refusal_rate"] >= COLLAPSE,
        "reward_models": {k: m["metrics"] for k, m in manifests.items()},
        "ppo": summaries,
        "seconds": {**stages["seconds"], "total": sum(stages["seconds"].values())},
        "commands": stages["commands"],
        "seed": seed,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("torch", "transformers")},
        },
    }
    (run / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    html = environment.get_template("report.html.j2").render(
        report=report,
        names=NAMES,
        curves=Markup(_curves(run)),
        samples=_samples(run),
        accuracy=_accuracy(report["reward_models"]),
    )
    path = run / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def _accuracy(models: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The pair accuracy of each model with its default mode, which is the first."""
    return {kind: next(iter(metrics["accuracy"].values())) for kind, metrics in models.items()}


def _curves(run: Path) -> str:
    """Four panels as inline SVG. The units of the two scores differ, so each is scaled to its own range, 0 to 1."""
    panels = {
        "score": "score by the policy's own reward model (scaled)",
        "kl": "KL from the supervised policy (nats per response)",
        "response_tokens": "response length (tokens)",
        "entropy": "entropy (nats per token)",
    }
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    FigureCanvasSVG(figure)
    for panel, (key, title) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(2, 2, panel)
        for name, colour in COLOURS.items():
            rows = read_metrics(run / name / "metrics.jsonl")
            values = [row[key] for row in rows]
            if key == "score":
                low, high = min(values), max(values)
                values = [(v - low) / (high - low or 1.0) for v in values]
            axes.plot([row["step"] for row in rows], values, color=colour, linewidth=1.8, label=NAMES[name])
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("PPO step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if panel == 1:
            axes.legend(fontsize=8, frameon=False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _samples(run: Path) -> list[dict[str, Any]]:
    """Prompts with the answers of the three policies, each as a heat map of the seq2seq model's token rewards."""
    rows = [json.loads(line) for line in (run / "judge" / "samples.jsonl").read_text().splitlines()]
    scores = [json.loads(line) for line in (run / "judge" / "samples.seq2seq.jsonl").read_text().splitlines()]
    by_prompt: dict[str, dict[str, Any]] = {}
    for row, score in zip(rows, scores, strict=True):
        number, policy = row["id"].split("/")
        entry = by_prompt.setdefault(number, {"prompt": row["prompt"], "answers": {}})
        entry["answers"][policy] = {
            "heat": heat_map(row["response"], score["rewards"], score["offsets"]),
            "redline": redline(row["response"], [Edit(**edit) for edit in score["edits"]]),
            "is_changed": bool(score["edits"]),
            "gold": row["gold"],
            "score": score["score"],
        }
    return list(by_prompt.values())


def heat_map(text: str, rewards: list[float], offsets: list[list[int]]) -> Markup:
    """The text as HTML: the background of each token is the colour of its reward; the title holds the number."""
    parts: list[Markup] = []
    position = 0
    for reward, (start, end) in zip(rewards, offsets, strict=True):
        parts.append(escape(text[position:start]))
        piece = text[max(position, start) : end] or ("⏎" if start == len(text) else "")
        strength = min(1.0, abs(reward) / 6.0)
        colour = f"rgba(29,140,70,{strength:.2f})" if reward > 0 else f"rgba(214,50,40,{strength:.2f})"
        parts.append(Markup('<span style="background:{}" title="{:+.2f}">{}</span>').format(colour, reward, piece))
        position = max(position, end)
    return Markup("").join([*parts, escape(text[position:])])


def redline(text: str, edits: list[Edit]) -> Markup:
    """The text as HTML with the model's correction, in groups of edits: ``del`` and ``ins`` elements."""
    parts: list[Markup] = []
    position = 0
    for edit in grouped(text, edits):
        parts.append(escape(text[position : edit.start]))
        if edit.end > edit.start:
            parts.append(Markup("<del>{}</del>").format(text[edit.start : edit.end]))
        if edit.text:
            parts.append(Markup("<ins>{}</ins>").format(edit.text))
        position = edit.end
    return Markup("").join([*parts, escape(text[position:])])
