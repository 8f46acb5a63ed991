"""``redline ppo``: train a policy against a reward service."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redline.causal_lm.cpu_precision import cpu_precision
from redline.client import RewardClient
from redline.errors import CommandError, ConnectionFailedError, ProtocolError, RedlineError, ServiceError
from redline.files.atomic import check_parent_writable, write_text
from redline.files.locks import sole_writer
from redline.http.exchange import DEFAULT_URL
from redline.http.retry import RetryPolicy
from redline.http.url_redaction import without_secrets
from redline.ppo.config import PPOConfig
from redline.wire import ScoreOptions
from redline_cli.bad_rows import BadRowPolicy, OnBadRow, row_report
from redline_cli.defaults import config_defaults
from redline_cli.options import Device, Key, OutFolder, Seed, Url
from redline_cli.terminal import notice, prepare_torch, print_line, progress_bar, require_modules

if TYPE_CHECKING:
    from redline.ppo import Rollout, Scores

DEFAULT = config_defaults(PPOConfig)


def ppo(
    policy: Annotated[str, typer.Option(help="Causal language model: folder or hub id.")],
    prompts: Annotated[Path, typer.Option(help="JSONL or JSON (plain or gzip): rows with a prompt, or pairs.")],
    out: OutFolder,
    on_bad_row: OnBadRow = BadRowPolicy.ERROR,
    url: Url = DEFAULT_URL,
    key: Key = None,
    steps: Annotated[int, typer.Option(help="PPO steps; each samples, scores and updates.")] = DEFAULT.steps,
    rollouts: Annotated[int, typer.Option(help="Responses per step.")] = DEFAULT.rollouts,
    samples_per_prompt: Annotated[int, typer.Option(help="Responses per prompt.")] = DEFAULT.samples_per_prompt,
    sample_batch: Annotated[
        int, typer.Option(help="Responses sampled at a time; they are scored while the next ones are sampled.")
    ] = DEFAULT.sample_batch,
    minibatch: Annotated[int, typer.Option(help="Responses per update.")] = DEFAULT.minibatch,
    microbatch: Annotated[
        int | None, typer.Option(help="Responses per forward pass; gradients are accumulated.")
    ] = DEFAULT.microbatch,
    epochs: Annotated[int, typer.Option(help="Epochs over the responses of a step.")] = DEFAULT.epochs,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of the policy.")] = DEFAULT.learning_rate,
    critic: Annotated[
        str, typer.Option(help="network (a separate critic), or linear (a head on the policy).")
    ] = "network",
    critic_learning_rate: Annotated[
        float, typer.Option(help="Learning rate of a separate critic.")
    ] = DEFAULT.critic_learning_rate,
    value_clip: Annotated[
        float | None, typer.Option(help="Clip range of value updates; default: no clipping.")
    ] = DEFAULT.value_clip,
    value_scale: Annotated[
        str, typer.Option(help="Scaling of values: auto (by the returns), or none.")
    ] = DEFAULT.value_scale,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of new tokens per response.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.01, help="Sampling temperature.")] = 1.0,
    kl_coefficient: Annotated[
        float, typer.Option(help="Penalty per nat of KL divergence from the reference policy.")
    ] = DEFAULT.kl_coefficient,
    kl_target: Annotated[
        float | None, typer.Option(help="Adapt the penalty to reach this many nats per response.")
    ] = DEFAULT.kl_target,
    reward_scale: Annotated[
        str, typer.Option(help="none, or auto: divide rewards by their standard deviation.")
    ] = DEFAULT.reward_scale,
    reward_scale_limit: Annotated[
        float, typer.Option(help="Limit of the factor that auto may apply.")
    ] = DEFAULT.reward_scale_limit,
    cut_responses: Annotated[
        str, typer.Option(help="penalty, mask or keep: how responses cut at the token limit are treated.")
    ] = DEFAULT.cut_responses,
    cut_penalty: Annotated[
        float, typer.Option(help="Penalty for a response that is cut at the token limit.")
    ] = DEFAULT.cut_penalty,
    advantage: Annotated[
        str, typer.Option(help="gae; or without a critic: group (GRPO) or leave_one_out (per token).")
    ] = DEFAULT.advantage,
    discount: Annotated[
        float | None, typer.Option(help="Discount per token; default: 0.7 for token rewards, 1 for one per response.")
    ] = DEFAULT.discount,
    gae_lambda: Annotated[float, typer.Option(help="Lambda of generalised advantage estimation.")] = DEFAULT.gae_lambda,
    lora_rank: Annotated[
        int | None, typer.Option(help="Train a LoRA adapter of this rank instead of all weights.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option("--gradient-checkpointing", help="Recompute activations in the backward pass to save memory."),
    ] = False,
    precision: Annotated[
        str, typer.Option(help="Precision of matrix products: auto (on a CPU the faster one), float32 or bfloat16.")
    ] = "auto",
    mode: Annotated[str | None, typer.Option(help="Extraction mode; default: the bundle's.")] = None,
    calibrated: Annotated[bool, typer.Option(help="Return rewards in log-odds of preference.")] = False,
    truncate: Annotated[
        bool, typer.Option(help="Truncate prompts that are too long for the reward model, oldest part first.")
    ] = False,
    patience_s: Annotated[float, typer.Option(help="Seconds to wait for an unreachable service.")] = 600.0,
    on_model_change: Annotated[
        str, typer.Option(help="warn or stop if the service changes its reward model.")
    ] = DEFAULT.on_model_change,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 10,
    device: Device = "auto",
    seed: Seed = DEFAULT.seed,
) -> None:
    """Train a policy with PPO against a reward service. Run the same command again to resume a stopped run.

    Before the first step the service scores a short response to each of the first 10,000 distinct prompts: prompts that
    it refuses, or that are too long for it, are bad rows.
    """
    require_modules("ppo", "torch", "transformers", "matplotlib")
    prepare_torch()
    from redline.files.metrics_log import MetricsLog
    from redline.ppo import CausalPolicy, PPOLoop, RemoteRewards
    from redline.ppo.prompts import load_prompt_rows, scorable_rows, usable_rows
    from redline.ppo.report import write_report
    from redline_model.bundle.loading import check_policy

    check_policy(policy)
    policy_options: dict[str, Any] = {"critic": critic, "precision": precision}
    choices: dict[str, Any] = {
        "advantage": advantage,
        "on_model_change": on_model_change,
        "value_scale": value_scale,
        "reward_scale": reward_scale,
        "cut_responses": cut_responses,
    }
    if critic not in ("network", "linear"):
        raise CommandError(f"--critic is network or linear, not {critic}")
    if precision not in ("auto", "float32", "bfloat16"):
        raise CommandError(f"--precision is auto, float32 or bfloat16, not {precision}")
    config = PPOConfig(
        steps=steps,
        rollouts=rollouts,
        samples_per_prompt=samples_per_prompt,
        sample_batch=sample_batch,
        minibatch=minibatch,
        microbatch=microbatch,
        epochs=epochs,
        learning_rate=learning_rate,
        critic_learning_rate=critic_learning_rate,
        value_clip=value_clip,
        reward_scale_limit=reward_scale_limit,
        cut_penalty=cut_penalty,
        kl_coefficient=kl_coefficient,
        discount=discount,
        gae_lambda=gae_lambda,
        kl_target=kl_target,
        seed=seed,
        **choices,
    )

    def waiting(error: RedlineError, wait_s: float) -> None:
        notice(f"waiting {wait_s:.1f} s for the reward service: {error}", is_warning=True)

    if out.exists() and not out.is_dir():
        raise CommandError(f"{out}: Not a directory")
    check_parent_writable(out / "policy")
    retry = RetryPolicy(max_attempts=None, max_elapsed_s=patience_s)
    client = RewardClient(url, key=key, retry=retry, on_wait=waiting)
    rewards = RemoteRewards(
        client,
        options=ScoreOptions(mode=mode, calibrated=calibrated, on_too_long="truncate" if truncate else "error"),
    )
    failure: RedlineError | None = None
    with sole_writer(out, is_kept=True), client:
        with row_report(on_bad_row, out, is_folder=True) as report:
            rows = load_prompt_rows(prompts, report)
            learner = CausalPolicy.load(
                policy,
                device=device,
                lora_rank=lora_rank,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                gradient_checkpointing=gradient_checkpointing,
                seed=seed,
                **policy_options,
            )
            if precision == "auto" and learner.device.type == "cpu":
                notice(str(cpu_precision()))
            usable = usable_rows(rows, learner.prompt_ids, report)
            try:
                served = client.model()
                usable = scorable_rows(usable, rewards.refusals, report)
            except (ServiceError, ConnectionFailedError, ProtocolError) as error:
                failure = error
        if failure is not None:  # raised after the report of skipped rows was printed
            raise failure
        with prompts.open("rb") as file:
            prompts_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        notice(f"rewards from {served.kind} model {served.name} ({served.digest[:19]}) at {without_secrets(url)}")
        loop = PPOLoop(
            learner,
            rewards,
            [prompt for _, prompt in usable],
            config,
            identity={
                "policy": policy,
                "prompts": prompts_sha256,
                "lora_rank": lora_rank,
                "critic": critic,
                "precision": learner.precision,
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                "mode": mode,
                "calibrated": calibrated,
                "truncate": truncate,
            },
            refused=out / "refused",
        )
        checkpoint = out / "checkpoint" / "state.pt"
        loop.resume(checkpoint)
        if loop.steps_done > steps:
            raise CommandError(
                f"{out} already has a run of {loop.steps_done} steps; raise --steps, or choose another --out"
            )
        if loop.steps_done:
            notice(f"resuming at step {loop.steps_done}")
        out.mkdir(parents=True, exist_ok=True)
        loop.digest = loop.digest or served.digest
        with MetricsLog(out, resumed_at=loop.steps_done) as log, progress_bar("ppo", steps) as bar:

            def show(metrics: dict[str, float], sampled: Sequence[Rollout], scores: Scores) -> None:
                log.write(metrics)
                if metrics["model_changed"]:
                    notice(f"the reward model changed, to {(loop.digest or '')[:19]}")
                _write_samples(out / "samples.jsonl", sampled, scores)
                score, kl, length = (metrics[name] for name in ("score", "kl", "response_tokens"))
                bar.update(int(metrics["step"]), f"score {score:.3f}  KL {kl:.2f}  tokens {length:.1f}")

            loop.callbacks.append(show)
            loop.train(checkpoint, checkpoint_every)
        loop.policy.save(out / "policy")
        summary = write_report(out)
        print_line(
            f"score {summary['first_score']:.3f} -> {summary['last_score']:.3f}, "
            f"KL {summary['last_kl']:.2f} nats per response after {steps} steps, "
            f"{summary['last_truncated_share']:.0%} of the responses cut at the token limit"
        )
        print_line(f"wrote {out}: policy/, metrics.jsonl, samples.jsonl, summary.json, plots.png, tensorboard/")


def _write_samples(path: Path, rollouts: Sequence[Rollout], scores: Scores) -> None:
    """Write the rollouts of the latest step, for people to read."""
    rows = [
        {
            "prompt": rollout.prompt,
            "response": rollout.text,
            "finished": rollout.is_finished,
            "score": item.score,
            "rewards": item.rewards,
            "offsets": rollout.spans,
        }
        for rollout, item in zip(rollouts, scores.items, strict=True)
    ]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
