"""The folder of a run: models and figures of each task, prompt form and seed, each computed once and then read.

A stopped run loses the result that was being computed. Trained policies are measured and not kept, but for the start
policy; reward models are kept.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import run_folder
from benchmarks.real_policies.curves import value_at_kl
from benchmarks.real_policies.known_pairs import known_pair_figures
from benchmarks.real_policies.measurements import Measurements, Part, StartPoint
from benchmarks.real_policies.metrics import Evaluators, load_evaluators
from benchmarks.real_policies.plan import METHODS, REWARD_MODELS, Method, Plan, PPOSettings
from benchmarks.real_policies.tasks import PromptForm, TaskData, TextTask, load_task
from benchmarks.real_policies.training import Example, load_policy, measured_steps, train_dpo, train_ppo, train_sft
from benchmarks.run_folder import write_json
from redline.files.atomic import write_text
from redline.ppo import RewardSource


@dataclass(frozen=True)
class Place:
    """Where a run is, and what it reads.

    Args:
        over_http: PPO gets its rewards from ``redline serve`` in a process of its own; otherwise from a model in this
            process.
    """

    out: Path
    base: Path
    data: Path
    device: str
    over_http: bool = False


def claim(place: Place, plan: Plan) -> None:
    """Create the folder. Raises SystemExit if it holds a run with another plan, base model or data folder.

    The number of seeds may differ: a run may be extended. The methods may differ, too: each result holds the settings
    of its method, and is computed again if they have changed.
    """
    settings = {**asdict(plan), "seeds": None}
    run_folder.claim(place.out, [settings, str(place.base), str(place.data)], "plan, base or data")


class TaskRun:
    """One task and prompt form of a run: what its seeds share."""

    def __init__(self, place: Place, plan: Plan, task: TextTask, form: PromptForm) -> None:
        self.place = place
        self.plan = plan
        self.task = task
        self.folder = place.out / f"{task.name}-{form}"
        self.data: TaskData = load_task(task, form, place.data, plan)
        # of each seed and part, filled by ``Measurements``; not on disk, because some texts must not be stored
        self.start_points: dict[tuple[int, Part], StartPoint] = {}

    @cached_property
    def evaluators(self) -> Evaluators:
        """Loaded when they are first used. Raises MissingPackageError, except in a quick run."""
        is_quick = self.plan.name == "quick"
        return load_evaluators(self.task, self.place.base, self.place.device, may_miss=is_quick)

    def known_pairs(self) -> dict[str, Any]:
        """What the evaluators say of pairs whose order is known."""
        path = self.folder / "known_pairs.json"
        return stored(path, {}, lambda: known_pair_figures(self.evaluators, self.data.test_pairs))

    def settings_of(self, name: str) -> PPOSettings:
        """The settings with which a method is run: the best of the sweep on the development texts, if there is one.

        The best has the lowest deciding figure at ``Plan.sweep_kl`` nats, or at the largest KL that its run reached.
        """
        if name not in self.plan.swept or not self.plan.sweep:
            return self.plan.ppo
        first = SeedRun(self, 0)
        curves = {settings: first.sweep(name, settings)["curve"] for settings in self.plan.sweep}

        def value(settings: PPOSettings) -> float:
            curve = curves[settings]
            nats = min(self.plan.sweep_kl, max(point["kl"] for point in curve))
            found = value_at_kl(curve, self.task.metric, nats)
            return float("inf") if found is None else found

        return min(self.plan.sweep, key=value)


class SeedRun:
    """The models and figures of one seed of a ``TaskRun``."""

    def __init__(self, run: TaskRun, seed: int) -> None:
        self.run = run
        self.seed = seed
        self.folder = run.folder / f"seed-{seed}"
        self._plan = run.plan
        self._place = run.place

    def figures(self, name: str) -> dict[str, Any]:
        """Settings, curve and figures after the last step of the method ``name``."""
        method = METHODS[name]
        settings = self.run.settings_of(name) if method.training == "ppo" else None
        made_by = _made_by(method, settings)
        return stored(self.folder / f"{name}.json", made_by, lambda: self._train(method, settings, "test"))

    def sweep(self, name: str, settings: PPOSettings) -> dict[str, Any]:
        """The figures of ``name`` with other settings of PPO, on the development texts."""
        path = self.folder / "sweep" / f"{name}-{settings.name}.json"
        return stored(
            path, _made_by(METHODS[name], settings), lambda: self._train(METHODS[name], settings, "development")
        )

    def start(self) -> Path:
        """The start policy: the base model, fine-tuned on the rejected texts."""
        out = self.folder / "start"
        if not out.exists():
            plan = self._plan
            with _timed(out):
                policy = load_policy(self._place.base, self.run.task.new_tokens, self._place.device, plan.precision)
                examples = [Example(prompt, text) for prompt, text in self.run.data.start_texts]
                rate, steps = plan.start_learning_rate, plan.start_steps
                train_sft(policy, examples, plan, steps, rate, self.seed, lambda step: None)
                policy.save(out)
        return out

    def bundle(self, name: str) -> Path:
        """The bundle of the reward model ``name``."""
        from redline_trainer.config import TrainConfig
        from redline_trainer.train import train

        out, marker = (self.folder / "models" / part for part in (name, f"{name}.json"))
        made_by = json.dumps(REWARD_MODELS[name], sort_keys=True)
        if not out.exists() or not marker.exists() or marker.read_text(encoding="utf-8") != made_by:
            shutil.rmtree(out, ignore_errors=True)
            config = TrainConfig.model_validate(
                {
                    "base": str(self._place.base),
                    "out": out,
                    "max_steps": self._plan.model_steps,
                    "pairs_per_step": self._plan.batch,
                    "max_batch_tokens": self._plan.max_batch_tokens,
                    "learning_rate": self._plan.model_learning_rate,
                    "on_too_long": "skip",
                    "held_out_share": 0.0,
                    "precision": self._plan.precision,
                    "device": self._place.device,
                    "seed": self.seed,
                    **REWARD_MODELS[name],
                }
            )
            with _timed(out):
                train(config, self.run.data.pairs)
            write_text(marker, made_by)
        return out

    def _train(self, method: Method, settings: PPOSettings | None, part: Part) -> dict[str, Any]:
        """Train and measure with the prompts of ``part``."""
        plan, place, data = self._plan, self._place, self.run.data
        seconds: dict[str, float] = {}
        policy = load_policy(self.start(), self.run.task.new_tokens, place.device, plan.precision)
        prompts = data.test if part == "test" else data.development
        measurements = Measurements(self.run, policy, prompts, (self.seed, part))
        if method.training == "none":
            measurements.add(0, is_last=True)
            return measurements.result(None, seconds, [])
        steps = {"sft": plan.sft_steps, "dpo": plan.dpo_steps, "ppo": plan.ppo_steps}[method.training]
        wanted = measured_steps(steps, plan.points)

        def measure(step: int) -> None:
            if step in wanted:
                measurements.add(step, is_last=step == steps)

        history: list[dict[str, float]] = []
        started = time.perf_counter()
        if method.training == "sft":
            examples = [Example(str(pair.prompt), pair.chosen) for pair in data.pairs]
            train_sft(policy, examples, plan, steps, plan.sft_learning_rate, self.seed, measure)
        elif method.training == "dpo":
            train_dpo(policy, data.pairs, plan, self.seed, measure)
        else:
            assert settings is not None
            with self._rewards(method) as rewards:
                history = train_ppo(policy, rewards, data.prompts, plan, settings, method.discount, self.seed, measure)
        seconds["training_and_measuring"] = time.perf_counter() - started
        seconds["measuring"] = measurements.seconds
        return measurements.result(settings, seconds, history)

    @contextmanager
    def _rewards(self, method: Method) -> Iterator[RewardSource]:
        """The reward source of a PPO method."""
        assert method.reward_model is not None
        bundle = self.bundle(method.reward_model)
        if self._place.over_http:
            from benchmarks.real_text.policies import service
            from redline.client import RewardClient
            from redline.ppo import RemoteRewards
            from redline.wire import ScoreOptions

            options = ScoreOptions.model_validate({"mode": method.mode} if method.mode else {})
            with service(bundle, self.folder / f"serve-{method.reward_model}.log") as url, RewardClient(url) as client:
                yield RemoteRewards(client, options=options)
        else:
            from benchmarks.synthetic.local_rewards import LocalRewards
            from redline_model.bundle.bundle import Bundle
            from redline_model.bundle.load_options import LoadOptions
            from redline_model.reward_spec import reward_spec

            scorer = Bundle.load(bundle, LoadOptions(device=self._place.device)).scorer
            yield LocalRewards(scorer, reward_spec(scorer, method.mode, "sum"))


def stored(path: Path, made_by: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures in ``path``; ``make`` computes them if there are none that were ``made_by`` the same settings."""
    if path.exists():
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if figures.pop("made_by", None) == made_by:
            return figures
    with _timed(path):
        write_json(path, {"made_by": made_by, **make()})
    return stored(path, made_by, make)


def _made_by(method: Method, settings: PPOSettings | None) -> dict[str, Any]:
    """What decides the results of ``method``, apart from the plan."""
    return {
        **{name: value for name, value in asdict(method).items() if name != "label"},
        "model": REWARD_MODELS[method.reward_model] if method.reward_model is not None else None,
        "settings": None if settings is None else asdict(settings),
    }


@contextmanager
def _timed(path: Path) -> Iterator[None]:
    started = time.perf_counter()
    yield
    print(
        f"  {path.parent.parent.name}/{path.parent.name}/{path.stem}: {time.perf_counter() - started:.0f} s", flush=True
    )
