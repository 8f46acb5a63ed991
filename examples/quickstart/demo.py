"""Trains two reward models on a synthetic help-desk task, serves them, and trains a policy against each with PPO.

Stages: preference data; a supervised policy; a seq2seq and a Bradley-Terry reward model; PPO against a service of each;
gold scores of the three policies. Every stage prints the commands that it runs. The result is OUT/report.html. With the
default options all stages take about eight minutes on two cores.

Ctrl-C stops all processes. Run the same command again to resume: finished stages are not repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from data import INSTRUCTION

from redline.files.atomic import write_text

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
# The same options for both reward models and for both policies. Redline's defaults are for large pretrained models.
# These models are tiny: they need higher learning rates, and bfloat16 makes them no faster.
RM_OPTIONS = "--max-steps {steps} --learning-rate 1e-3 --held-out-share 0.05 --precision float32"
PPO_OPTIONS = (
    "--steps {steps} --epochs 4 --learning-rate 1e-4 --critic linear --value-clip 0.2 --value-scale none "
    "--reward-scale auto --reward-scale-limit 1000000 --cut-responses keep --precision float32 --max-new-tokens 64"
)


@dataclass(frozen=True)
class Stage:
    """One step of the demo, in the folder ``name``.

    Args:
        commands: run one after the other; ``{url}`` stands for the URL of the service.
        bundle: the reward model that a service serves meanwhile; None: without a service.
    """

    name: str
    title: str
    commands: tuple[str, ...]
    bundle: str | None = None


def plan(seed: int, rm_steps: int, ppo_steps: int, supervised_steps: int) -> list[Stage]:
    """The stages, as commands that a user could type in the folder of the run."""
    # the names "world" and "judge" are older than the rest: reports and other commands read these folders
    stages = [
        Stage("world", "write the data of the synthetic task", (f"python data.py --out world --seed {seed}",)),
        Stage(
            "supervised",
            "train the supervised policy",
            (
                "python supervised.py --demonstrations world/demonstrations.jsonl --words world/words.txt "
                f"--out supervised/policy --steps {supervised_steps} --seed {seed}",
            ),
        ),
    ]
    for kind, title in (
        ("seq2seq", "train the seq2seq reward model"),
        ("scalar", "train the Bradley-Terry reward model"),
    ):
        command = (
            f"redline train --kind {kind} --pairs world/pairs.jsonl --base supervised/policy "
            f"--out rm_{kind}/bundle --instruction '{INSTRUCTION}' {RM_OPTIONS.format(steps=rm_steps)} "
            f"--seed {seed} --overwrite"
        )
        stages.append(Stage(f"rm_{kind}", title, (command,)))
    for kind, title in (
        ("seq2seq", "train a policy with PPO against the seq2seq reward model"),
        ("scalar", "train a policy with PPO against the Bradley-Terry reward model"),
    ):
        command = (
            "redline ppo --url {url} --policy supervised/policy --prompts world/prompts.jsonl "
            f"--out ppo_{kind} {PPO_OPTIONS.format(steps=ppo_steps)} --seed {seed}"
        )
        stages.append(Stage(f"ppo_{kind}", title, (command,), bundle=f"rm_{kind}/bundle"))
    stages.append(
        Stage(
            "judge",
            "compute gold scores of the three policies on test prompts",
            (
                "python score_policies.py --questions world/test_prompts.jsonl --supervised supervised/policy "
                f"--ppo-scalar ppo_scalar/policy --ppo-seq2seq ppo_seq2seq/policy --out judge --seed {seed}",
                "redline score judge/samples.jsonl --url {url} --correction --out judge/samples.seq2seq.jsonl",
            ),
            bundle="rm_seq2seq/bundle",
        )
    )
    return stages


class Run:
    """Runs stages in one folder; keeps track of finished stages and of the processes it has started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: list[subprocess.Popen[bytes]] = []

    def stop(self) -> None:
        """End every process that is still running: terminate it, and kill it if it has not ended after ten seconds."""
        for child in self._children:
            if child.poll() is None:
                child.terminate()
        for child in self._children:
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._children.clear()

    def start(self, command: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a command of a stage, or any other program, in the folder of the run."""
        words = shlex.split(command)
        program = {"python": [sys.executable], "redline": [str(BIN / "redline")]}.get(words[0], words[:1])
        if words[0] == "python":
            program = [*program, str(HERE / words[1])]
        arguments = words[2:] if words[0] == "python" else words[1:]
        # idle threads of the service must not spin on the cores that PPO uses, and the other way round
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
        output = log.open("wb") if log else None
        child = subprocess.Popen([*program, *arguments], cwd=self.folder, env=environment, stdout=output, stderr=output)
        if output is not None:
            output.close()
        self._children.append(child)
        return child

    @contextlib.contextmanager
    def service(self, bundle: str | None, log: Path) -> Iterator[str]:
        """The URL of a reward service of ``bundle``, ready to score; "" if ``bundle`` is None."""
        if bundle is None:
            yield ""
            return
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        server = self.start(f"redline serve {bundle} --dtype float32 --port {port}", log)
        waiter = self.start(f"redline health --url {url} --wait-s 120", log.with_suffix(".health.log"))
        while waiter.poll() is None:
            if server.poll() is not None:
                waiter.terminate()
                sys.exit(f"The service ended with status {server.returncode}; see {log}.")
            time.sleep(0.1)
        if waiter.returncode != 0:
            sys.exit(f"The service did not become ready; see {log}.")
        try:
            yield url
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):  # then stop() kills it
                server.wait(timeout=30)

    def finish(self, stage: Stage, fingerprint: str) -> float:
        """Run ``stage`` unless it is finished; returns the seconds it took, in this run or in the earlier one."""
        folder = self.folder / stage.name
        done, started_file = folder / "done.json", folder / "begun.txt"
        if done.exists():
            record = json.loads(done.read_text())
            if record["fingerprint"] == fingerprint:
                print(f"  already finished, took {record['seconds']:.0f} s", flush=True)
                return float(record["seconds"])
        if not started_file.exists() or started_file.read_text() != fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(started_file, fingerprint)
        started = time.perf_counter()
        with self.service(stage.bundle, folder / "service.log") as url:
            for command in stage.commands:
                line = command.format(url=url) if stage.bundle else command
                print(f"  $ {line}", flush=True)
                status = self.start(line).wait()
                if status != 0:
                    sys.exit(
                        f"Stage {stage.name!r} failed with status {status}. Run the same command again to resume here."
                    )
        seconds = time.perf_counter() - started
        write_text(done, json.dumps({"fingerprint": fingerprint, "seconds": seconds}))
        return seconds


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder of all files (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of data, models and sampling (default: %(default)s)")
    parser.add_argument(
        "--supervised-steps",
        metavar="N",
        type=int,
        default=300,
        help="steps of the supervised policy (default: %(default)s)",
    )
    parser.add_argument(
        "--rm-steps", metavar="N", type=int, default=150, help="steps of each reward model (default: %(default)s)"
    )
    parser.add_argument(
        "--ppo-steps",
        metavar="N",
        type=int,
        default=40,
        help="steps of PPO against each reward model (default: %(default)s)",
    )
    names = [stage.name for stage in plan(seed=0, rm_steps=0, ppo_steps=0, supervised_steps=0)]
    parser.add_argument(
        "--until", choices=names, metavar="STAGE", help=f"stop after this stage, without a report: {', '.join(names)}"
    )
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    args.out.mkdir(parents=True, exist_ok=True)
    stages = plan(args.seed, args.rm_steps, args.ppo_steps, args.supervised_steps)
    if args.until is not None:
        stages = stages[: names.index(args.until) + 1]
    print(f"Running {len(stages)} stages in {args.out}. Ctrl-C stops; the same command resumes.", flush=True)
    run = Run(args.out.resolve())
    seconds: dict[str, float] = {}
    commands: dict[str, list[str]] = {}
    fingerprint = hashlib.sha256()
    for source in ("task.py", "data.py", "supervised.py", "score_policies.py"):
        fingerprint.update((HERE / source).read_bytes())
    try:
        for number, stage in enumerate(stages, 1):
            print(f"[{number}/{len(stages)}] {stage.name}: {stage.title}", flush=True)
            # a stage runs again if its own commands or those of an earlier stage have changed
            fingerprint.update(repr(stage).encode())
            seconds[stage.name] = run.finish(stage, fingerprint.hexdigest())
            serving = [f"redline serve {stage.bundle} --dtype float32 &"] if stage.bundle else []
            default = [c.format(url="http://127.0.0.1:8000") if stage.bundle else c for c in stage.commands]
            commands[stage.name] = serving + default
    except KeyboardInterrupt:
        run.stop()
        sys.exit("\nStopped; no process is left running. Run the same command again to resume.")
    finally:
        run.stop()
    if args.until is not None:
        return
    (args.out / "stages.json").write_text(json.dumps({"seconds": seconds, "commands": commands}, indent=2))
    from report import write_report

    path = write_report(args.out, seed=args.seed)
    print(f"All {len(stages)} stages took {sum(seconds.values()):.0f} s.")
    print(f"Report: {path} (open it in a browser); the same figures as JSON: {path.with_suffix('.json')}")


if __name__ == "__main__":
    main()
