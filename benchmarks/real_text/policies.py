"""A language model's answers to real prompts: corrected, the better of two, and after PPO against a service.

An evaluation model scores all of them: a scalar reward model trained on data that nothing else was trained on.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.real_text.run import Run
from benchmarks.speed.backends import free_port
from benchmarks.synthetic.gold_scores import summed_logprobs
from benchmarks.synthetic.local_rewards import score_texts
from benchmarks.synthetic.statistics import mean_with_interval
from redline.ppo import CausalPolicy, Rollout
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.load_options import LoadOptions
from redline_model.encoding.items import Item
from redline_model.reward_spec import reward_spec
from redline_model.scorer import Scorer, correct_all

# the text, and whether it ends with the end token (it was not cut)
Answer = tuple[str, bool]
_BATCH = 16
_BIN = Path(sys.executable).parent


@contextmanager
def service(bundle: Path, log: Path) -> Iterator[str]:
    """The URL of ``redline serve`` in its own process, ready. Raises CalledProcessError if it does not become ready."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(_BIN / "redline"), "serve", str(bundle), "--port", str(port)]
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
    """The policy that ``redline ppo`` trains from the base model, against a service of the chat model of ``kind``."""
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
                *("--epochs", "4", "--learning-rate", "1e-5", "--critic", "linear", "--value-clip", "0.2"),
                *("--value-scale", "none", "--reward-scale", "auto", "--reward-scale-limit", "1000000"),
                *("--cut-responses", "keep", "--precision", "float32"),
            ]
            subprocess.run(command, check=True)
    return out / "policy"


def sample_answers(policy: CausalPolicy, prompts: Sequence[Any], seed: int) -> list[Rollout]:
    """One answer per prompt, at temperature 1."""
    torch.manual_seed(seed)
    return [
        rollout
        for start in range(0, len(prompts), _BATCH)
        for rollout in policy.sample(prompts[start : start + _BATCH], range(len(prompts[start : start + _BATCH])))
    ]


def policy_figures(run: Run) -> dict[str, Any]:
    """For each policy: score by the evaluation model, wins against the base model's answers, length and KL."""
    chat, plan = run.plan.training[1], run.plan
    sets = [
        list({str(p.prompt): p.prompt for p in run.test_pairs(n)}.values())
        for n in dict.fromkeys([chat, *plan.preferences])
    ]
    interleaved = [prompt for row in itertools.zip_longest(*sets) for prompt in row if prompt is not None]
    prompts = interleaved[: plan.prompts]
    base = CausalPolicy.load(run.base, device=run.device, max_new_tokens=plan.new_tokens)
    first, second = (_texts(sample_answers(base, prompts, run.seed + n)) for n in (0, 1))
    texts: dict[str, list[Answer]] = {"base": first}
    kl = {"base": 0.0}  # known for policies only

    # corrected by the seq2seq model, and the better of two by each model: about equal compute
    scorers = {kind: _scorer(run, chat, kind) for kind in ("scalar", "seq2seq")}
    corrector = scorers["seq2seq"]
    encoded = [corrector.encoder.encode(item) for item in _items(prompts, first)]
    texts["corrected"] = [(c.text, c.is_complete) for _, c in correct_all(corrector, encoded)]
    for kind, scorer in scorers.items():
        both_scores = [_scores(scorer, prompts, answers) for answers in (first, second)]
        texts[f"best_of_2_{kind}"] = [
            a if x >= y else b for a, b, x, y in zip(first, second, *both_scores, strict=True)
        ]
    for kind in ("seq2seq", "scalar"):
        policy = CausalPolicy.load(ppo_by_command(run, kind), device=run.device, max_new_tokens=plan.new_tokens)
        rollouts = sample_answers(policy, prompts, run.seed)
        texts[f"ppo_{kind}"] = _texts(rollouts)
        logprobs, base_logprobs = (summed_logprobs(p, rollouts, _BATCH) for p in (policy, base))
        kl[f"ppo_{kind}"] = sum(a - b for a, b in zip(logprobs, base_logprobs, strict=True)) / len(logprobs)

    evaluation_model = _scorer(run, plan.judge, "scalar")
    scores_of = {name: torch.tensor(_scores(evaluation_model, prompts, answers)) for name, answers in texts.items()}
    base_scores = scores_of["base"]
    figures: dict[str, Any] = {}
    for name, scores in scores_of.items():
        decided = scores.ne(base_scores).double()
        wins = mean_with_interval([scores.gt(base_scores).double()], [decided], [[str(p) for p in prompts]])
        lengths = [len(base.tokenizer(text, add_special_tokens=False)["input_ids"]) for text, _ in texts[name]]
        figures[name] = {
            "score": float(scores.mean()),
            "wins_against_base": wins,
            "tokens": sum(lengths) / len(lengths),
            "kl": kl.get(name),
        }
    return {"judge": plan.judge, "prompts": len(prompts), "answers": figures}


def _texts(rollouts: Sequence[Rollout]) -> list[Answer]:
    return [(rollout.text, rollout.is_finished) for rollout in rollouts]


def _scorer(run: Run, data: str, kind: str) -> Scorer[Any]:
    load_options = LoadOptions(device=run.device)
    return Bundle.load(run.bundle(data, kind), load_options, max_tokens=run.plan.max_tokens).scorer


def _items(prompts: Sequence[Any], answers: Sequence[Answer]) -> list[Item]:
    # an empty response cannot be scored, so it is scored as a space
    return [Item(prompt, text or " ", done) for prompt, (text, done) in zip(prompts, answers, strict=True)]


def _scores(scorer: Scorer[Any], prompts: Sequence[Any], answers: Sequence[Answer]) -> list[float]:
    return [scored.score for scored, _ in score_texts(scorer, _items(prompts, answers), reward_spec(scorer))]
