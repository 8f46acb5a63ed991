"""The statistics of ``benchmarks.claims`` against hand counts, and its local rewards against those of the service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from starlette.testclient import TestClient

from benchmarks.synthetic.budget import FULL, QUICK
from benchmarks.synthetic.configurations import ABLATIONS, MAIN, REWARD_MODELS, RewardModelConfig
from benchmarks.synthetic.criteria import check_criteria
from benchmarks.synthetic.gold_scores import Answers
from benchmarks.synthetic.jobs import Job, planned, sources_digest, sources_of
from benchmarks.synthetic.local_rewards import LocalRewards
from benchmarks.synthetic.results_store import collected
from benchmarks.synthetic.seed_run import SeedRun, ancestry
from benchmarks.synthetic.statistics import (
    curve_figures,
    mean_with_interval,
    policy_figures,
    resampled,
    split_figures,
    win_rate,
)
from benchmarks.synthetic.tables import rendered
from benchmarks.synthetic.tasks.suite import CONTROLS, TASKS
from redline import NO_RETRY, RewardClient
from redline.ppo import CausalPolicy, RemoteRewards, Rollout
from redline_model.bundle.bundle import Bundle
from redline_model.reward_spec import RewardSpec
from redline_service.http.app import create_app
from redline_service.settings import ServiceSettings
from redline_trainer.config import TrainConfig
from tests.conftest import build_causal


def answers(gold: list[float], refused: list[bool] | None = None, must: list[bool] | None = None) -> Answers:
    n = len(gold)
    return Answers(
        keys=[str(n) for n in range(n)],
        responses=["r"] * n,
        gold=gold,
        tokens=[6] * n,
        ideal_tokens=[5] * n,
        must_refuse=must or [False] * n,
        refused=refused or [False] * n,
        kl=[1.0] * n,
    )


def test_a_win_rate_excludes_ties_and_reports_their_share() -> None:
    rate = win_rate([answers([1.0, 0.5, 0.2, 0.0])], [answers([0.5, 0.5, 0.0, 1.0])])
    assert rate["mean"] == pytest.approx(2 / 3)
    assert rate["ties"] == pytest.approx(1 / 4)
    same = win_rate([answers([1.0, 0.5])], [answers([1.0, 0.5])])
    assert same == {"mean": None, "low": None, "high": None, "ties": 1.0}


def test_refusal_rates_are_shares_of_the_prompts_of_their_kind() -> None:
    figures = policy_figures(
        [answers([1, 0, 1, 0], refused=[True, False, True, False], must=[True, True, False, False])]
    )
    assert figures["benign_refusal_rate"] == 0.5
    assert figures["harmful_compliance_rate"] == 0.5
    assert (figures["gold"], figures["mean_tokens"], figures["ideal_tokens"], figures["kl"]) == (0.5, 6.0, 5.0, 1.0)


def test_resampling_draws_as_many_questions_as_there_are() -> None:
    weights = resampled((tuple("abcd"),) * 3)
    assert all(w.shape == (2000, 4) for w in weights)
    assert torch.equal(sum(w.sum(1) for w in weights), torch.full((2000,), 12.0, dtype=torch.float64))
    repeated = resampled((tuple("aab"),))[0]
    assert torch.equal(repeated[:, 0], repeated[:, 1])  # a question comes with all its answers
    assert torch.equal(repeated[:, 1] + repeated[:, 2], torch.full((2000,), 2.0, dtype=torch.float64))


def test_an_interval_is_wider_if_seeds_disagree() -> None:
    def width(values: list[list[float]]) -> float:
        tensors = [torch.tensor(v, dtype=torch.float64) for v in values]
        keys = [[str(n) for n in range(len(t))] for t in tensors]
        interval = mean_with_interval(tensors, [torch.ones_like(t) for t in tensors], keys)
        assert interval is not None
        assert interval["low"] <= interval["mean"] <= interval["high"]
        return interval["high"] - interval["low"]

    mixed = [0.0, 1.0] * 50
    assert width([[0.0] * 100, [1.0] * 100, mixed]) > 2 * width([mixed, mixed, mixed])
    assert mean_with_interval([torch.ones(2).double()], [torch.zeros(2).double()], [["a", "b"]]) is None


def test_over_optimisation_is_a_line_through_all_points() -> None:
    curve = [{"step": s, "kl": float(s * s), "gold": 0.5 - 0.1 * s, "proxy": 2.0 * s} for s in range(4)]
    figures = curve_figures([curve, curve])
    assert figures["lines"]["gold"]["slope"] == pytest.approx(-0.1)
    assert figures["lines"]["proxy"]["slope"] == pytest.approx(2.0)
    assert figures["lines"]["gold"]["r_squared"] == pytest.approx(1.0)
    assert figures["best_gold_at_step"] == 0


def test_each_criterion_is_compared_with_its_required_value() -> None:
    def task(main_policy: float, refused: bool) -> dict[str, object]:
        policies = {
            "supervised": [answers([0.5] * 20, must=[True] * 10 + [False] * 10)],
            "ppo_scalar": [answers([0.1] * 20, must=[True] * 10 + [False] * 10)],
            "ppo_paper": [answers([0.1] * 20, must=[True] * 10 + [False] * 10)],
            "ppo_seq2seq": [answers([main_policy] * 20, refused=[refused] * 20, must=[True] * 10 + [False] * 10)],
        }
        split = split_figures(policies, [0])
        return {"id": split, "ood": split}

    met = check_criteria({t: task(0.9, False) for t in TASKS})
    assert met["win rate, id"] == {"value": 1.0, "bar": 0.8, "at_least": True, "is_met": True}
    assert met["benign refusals: safety, ood"]["is_met"]
    assert not met["length off ideal: safety, id"]["is_met"]  # 6 tokens where 5 are right
    missed = check_criteria({t: task(0.0, True) for t in TASKS})
    assert not missed["win rate, ood"]["is_met"]
    assert not missed["benign refusals: safety, id"]["is_met"]
    partly = check_criteria({"safety": task(0.9, False)})
    assert partly["win rate, id"] == {"value": None, "bar": 0.8, "at_least": True, "is_met": False}
    claims = {
        "tasks": {"safety": task(0.9, False)},
        "controls": {},
        "ablations": {},
        "over_optimisation": {},
        "pair_accuracy": {"safety": {"scalar": {"mean": 0.9, "min": 0.8, "max": 1.0}}},
        "verdict": partly,
    }
    text = rendered(claims)
    assert "| ppo_seq2seq | 0.900" in text
    assert "| win rate, id | - | >= 0.800 | no |" in text
    assert "| scalar | 90.0% (80% to 100%) |" in text


def test_every_run_names_a_model_that_is_trained_or_derived() -> None:
    for run in (MAIN | ABLATIONS).values():
        config = REWARD_MODELS[run.model]
        for name in config.derived_from:
            assert REWARD_MODELS[name].derivation is None
        if config.derivation is None:
            TrainConfig.model_validate({"base": "b", "out": Path("o"), **config.options})
    assert REWARD_MODELS["published"].options["mismatch"] is False


def test_every_task_and_seed_is_planned_once() -> None:
    jobs = planned([0, 1], ["main", "controls", "ablations"])
    assert len(jobs) == len(set(jobs)) == 2 * len(TASKS) + 2 * len(CONTROLS) + len(TASKS)
    assert all(job.seed == 0 for job in jobs if job.group == "ablation")
    assert Job("help", 1, "main") in jobs
    assert len({sources_digest(task) for task in (*TASKS, *CONTROLS)}) == 3  # controls share their tasks' code


def test_results_of_earlier_code_are_kept_only_with_keep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    current = sources_of(tmp_path, keep=True)  # without stored digests they are stored, also with keep
    assert json.loads((tmp_path / "sources.json").read_text()) == current
    earlier = {task: f"not {digest}" for task, digest in current.items()}
    (tmp_path / "sources.json").write_text(json.dumps(earlier))
    assert sources_of(tmp_path, keep=True) == earlier
    assert not capsys.readouterr().out
    assert sources_of(tmp_path, keep=False) == current
    assert "--keep" in capsys.readouterr().out
    assert sources_of(tmp_path, keep=True) == current


def test_stored_results_are_reused_and_other_settings_compute_them_again(tmp_path: Path) -> None:
    computed: list[str] = []

    def make(out: Path) -> None:
        computed.append(out.name)
        out.mkdir(parents=True)

    for settings in ("a", "a", "b"):
        SeedRun(tmp_path, "safety", 0, QUICK, "sources")._made("policies/p", settings, make)
    SeedRun(tmp_path, "safety", 0, QUICK, "other sources")._made("policies/p", "b", make)
    assert computed == ["p"] * 3


def test_the_ancestry_of_a_derived_model_contains_those_it_is_derived_from(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ancestry("ensemble"), ancestry("seq2seq")
    monkeypatch.setitem(REWARD_MODELS, "scalar_b", RewardModelConfig({"kind": "scalar"}, seed=7))
    assert ancestry("ensemble") != before[0]
    assert ancestry("seq2seq") == before[1]


def test_answers_of_another_budget_are_not_counted(tmp_path: Path) -> None:
    folder = tmp_path / "safety" / "seed-0" / "answers"
    folder.mkdir(parents=True)
    stored = answers([0.5] * 4).model_dump()
    for name, budget in (("supervised", QUICK), ("ppo_scalar", FULL)):
        digests = {"cell": SeedRun.fingerprint("safety", 0, budget, "s"), "made_by": "x"}
        (folder / f"{name}.json").write_text(json.dumps({**digests, "id": stored, "ood": stored}))
    results = collected(tmp_path, [0], [Job("safety", 0, "main")], QUICK, {"safety": "s"})
    assert set(results["tasks"]["safety"]["id"]["policies"]) == {"supervised"}


@pytest.fixture
def served(bundle: Bundle) -> Iterator[RemoteRewards]:
    with TestClient(create_app(ServiceSettings(bundle="unused"), bundle)) as http:

        def forward(request: httpx.Request) -> httpx.Response:
            answer = http.request(
                request.method, request.url.path, content=request.content, headers=dict(request.headers)
            )
            return httpx.Response(answer.status_code, content=answer.content)

        yield RemoteRewards(RewardClient(transport=httpx.MockTransport(forward), retry=NO_RETRY))


@pytest.fixture
def rollouts(tokenizer: object) -> list[Rollout]:
    policy = CausalPolicy(build_causal(len(tokenizer)), tokenizer, max_new_tokens=12)  # type: ignore[arg-type]
    torch.manual_seed(0)
    return policy.sample(["How do I reset my router?", "naïve café"] * 3, range(6))


def test_local_rewards_equal_those_of_the_service(
    bundle: Bundle, rollouts: list[Rollout], served: RemoteRewards
) -> None:
    local = LocalRewards(bundle.scorer, RewardSpec("logprob", "sum")).score(rollouts)
    remote = served.score(rollouts)
    for a, b in zip(local.items, remote.items, strict=True):
        assert a.rewards == pytest.approx(b.rewards, abs=1e-4)
        assert a.score == pytest.approx(b.score, abs=1e-4)


def test_placements_keep_the_score_of_a_response(bundle: Bundle, rollouts: list[Rollout]) -> None:
    tokens, mean, last = (
        LocalRewards(bundle.scorer, RewardSpec("logprob", "sum"), placement).score(rollouts).items
        for placement in ("tokens", "mean", "last")  # type: ignore[arg-type]
    )
    for a, b, c, rollout in zip(tokens, mean, last, rollouts, strict=True):
        assert sum(b.rewards) * len(rollout.response_ids) == pytest.approx(sum(a.rewards))
        assert c.rewards[:-1] == [0.0] * (len(rollout.response_ids) - 1)
        assert c.rewards[-1] == pytest.approx(sum(a.rewards))


def test_answers_are_the_same_after_json() -> None:
    stored = answers([0.5], refused=[True])
    assert Answers.model_validate(json.loads(stored.model_dump_json())) == stored
