"""A real language model's answers to real prompts: corrected, best of two, and after PPO against a service.

All are judged by a scalar model fitted on other data, which none of them has met.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment.judging import summed_logprobs
from benchmarks.experiment.real_run import Run
from benchmarks.experiment.results import mean_with_interval
from benchmarks.experiment.rewards import judge_texts
from redline.ppo import CausalPolicy, Rollout
from redline_model.bundle import Bundle
from redline_model.loading import Placement
from redline_model.scorers import correct_all, reading_of
from redline_model.template import Item

_BATCH = 16
_BIN = Path(sys.executable).parent


@contextmanager
def service(bundle: Path, log: Path) -> Iterator[str]:
    """``redline serve`` in a process of its own, ready, as its URL. Raises CalledProcessError if it is not."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    command = [str(_BIN / "redline"), "serve", str(bundle), "--port", url.rsplit(":", 1)[1]]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ)
    try:
        subprocess.run([str(_BIN / "redline"), "health", "--url", url, "--wait-s", "300"], check=True)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


def ppo_by_command(run: Run, kind: str) -> Path:
    """``redline ppo`` of the base against a service of the chat set's model of ``kind``; the policy it leaves."""
    chat, plan = run.plan.training[1], run.plan
    out = run.out / "policies" / f"ppo-{kind}"
    if not (out / "policy").exists():
        shutil.rmtree(out, ignore_errors=True)
        with service(run.bundle(chat, kind), run.out / "policies" / f"serve-{kind}.log") as url:
            command = [
                str(_BIN / "redline"),
                "ppo",
                *("--url", url, "--policy", str(run.base), "--out", str(out)),
                *("--prompts", str(run.data / f"{chat}.train.jsonl.gz")),
                *("--steps", str(plan.ppo_steps), "--rollouts", str(plan.rollouts)),
                *("--max-new-tokens", str(plan.new_tokens), "--seed", str(run.seed)),
            ]
            subprocess.run(command, check=True)
    return out / "policy"


def sampled(policy: CausalPolicy, prompts: Sequence[Any], seed: int) -> list[Rollout]:
    """One answer a prompt, at temperature 1."""
    torch.manual_seed(seed)
    return [
        rollout
        for start in range(0, len(prompts), _BATCH)
        for rollout in policy.sample(prompts[start : start + _BATCH], range(len(prompts[start : start + _BATCH])))
    ]


def policy_figures(run: Run) -> dict[str, Any]:
    """Judge's scores, wins against the base's own answers, lengths and KL."""
    chat, plan = run.plan.training[1], run.plan
    sets = [
        list({str(p.prompt): p.prompt for p in run.tested(n)}.values())
        for n in dict.fromkeys([chat, *plan.preferences])
    ]
    in_turn = [prompt for row in itertools.zip_longest(*sets) for prompt in row if prompt is not None]
    prompts = in_turn[: plan.prompts]
    placement = Placement(device=run.device)
    base = CausalPolicy.load(run.base, device=run.device, max_new_tokens=plan.new_tokens)
    first, second = (sampled(base, prompts, run.seed + n) for n in (0, 1))
    texts: dict[str, list[tuple[str, bool]]] = {"base": [(r.text, r.is_finished) for r in first]}
    kl: dict[str, float | None] = {"base": 0.0}

    # rewritten by the seq2seq model, and the better of two by the scalar one: about equal compute
    writer = Bundle.load(run.bundle(chat, "seq2seq"), placement, max_tokens=plan.max_tokens).scorer
    encoded = [
        writer.encoder.encode(Item(p, r.text or " ", r.is_finished)) for p, r in zip(prompts, first, strict=True)
    ]
    texts["corrected"] = [(c.text, c.is_complete) for _, c in correct_all(writer, encoded)]
    kl["corrected"] = None
    for kind in ("scalar", "seq2seq"):
        scores = [
            _scores(run.bundle(chat, kind), run, prompts, [(r.text, r.is_finished) for r in s]) for s in (first, second)
        ]
        best = [a if x >= y else b for a, b, x, y in zip(first, second, *scores, strict=True)]
        texts[f"best_of_2_{kind}"] = [(r.text, r.is_finished) for r in best]
        kl[f"best_of_2_{kind}"] = None
    for kind in ("seq2seq", "scalar"):
        policy = CausalPolicy.load(ppo_by_command(run, kind), device=run.device, max_new_tokens=plan.new_tokens)
        rollouts = sampled(policy, prompts, run.seed)
        texts[f"ppo_{kind}"] = [(r.text, r.is_finished) for r in rollouts]
        now, then = (summed_logprobs(p, rollouts, _BATCH) for p in (policy, base))
        kl[f"ppo_{kind}"] = sum(a - b for a, b in zip(now, then, strict=True)) / len(now)

    judge = run.bundle(plan.judge, "scalar")
    verdicts = {name: torch.tensor(_scores(judge, run, prompts, answers)) for name, answers in texts.items()}
    figures: dict[str, Any] = {}
    for name, scores in verdicts.items():
        decided = (scores != verdicts["base"]).double()
        wins = mean_with_interval([(scores > verdicts["base"]).double()], [decided])
        lengths = [len(base.tokenizer(text, add_special_tokens=False)["input_ids"]) for text, _ in texts[name]]
        figures[name] = {
            "score": float(scores.mean()),
            "wins_against_base": wins,
            "tokens": sum(lengths) / len(lengths),
            "kl": kl[name],
        }
    return {"judge": plan.judge, "prompts": len(prompts), "answers": figures}


def _scores(bundle: Path, run: Run, prompts: Sequence[Any], answers: Sequence[tuple[str, bool]]) -> list[float]:
    scorer = Bundle.load(bundle, Placement(device=run.device), max_tokens=run.plan.max_tokens).scorer
    # an answer of no words at all is judged as a blank: the judge must say something of it
    items = [Item(p, text or " ", done) for p, (text, done) in zip(prompts, answers, strict=True)]
    return [judged.score for judged, _ in judge_texts(scorer, items, reading_of(scorer))]
