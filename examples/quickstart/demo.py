"""``make demo``: the whole loop on the quickstart world, every step a command that a user could type.

Preference data -> supervised policy -> two reward models -> two services -> PPO against each -> a report.
A second run reuses what is finished; Ctrl-C stops everything that was started.
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
# What both reward models and both policies get alike. The defaults are for pretrained models; these are tiny and
# learned from scratch minutes ago: their learning rates are high, and bfloat16 is no faster.
RM_OPTIONS = "--max-steps {steps} --learning-rate 1e-3 --held-out-share 0.05 --precision float32"
PPO_OPTIONS = (
    "--steps {steps} --epochs 4 --learning-rate 1e-4 --critic linear --value-clip 0.2 --value-scale none "
    "--reward-scale auto --reward-scale-limit 1000000 --cut-responses keep --precision float32 --max-new-tokens 64"
)


@dataclass(frozen=True)
class Stage:
    """``commands`` run one after the other, with a service of ``bundle`` up where there is one."""

    name: str
    title: str
    commands: tuple[str, ...]
    bundle: str | None = None


def plan(seed: int, rm_steps: int, ppo_steps: int, supervised_steps: int) -> list[Stage]:
    """The stages, as the commands a user would type in the folder of the run."""
    stages = [
        Stage("world", "the world's data", (f"python data.py --out world --seed {seed}",)),
        Stage(
            "supervised",
            "a supervised policy",
            (
                "python supervised.py --demonstrations world/demonstrations.jsonl --words world/words.txt "
                f"--out supervised/policy --steps {supervised_steps} --seed {seed}",
            ),
        ),
    ]
    for kind, title in (
        ("seq2seq", "the seq2seq reward model"),
        ("scalar", "the Bradley-Terry reward model"),
    ):
        command = (
            f"redline train --kind {kind} --pairs world/pairs.jsonl --base supervised/policy "
            f"--out rm_{kind}/bundle --instruction '{INSTRUCTION}' {RM_OPTIONS.format(steps=rm_steps)} "
            f"--seed {seed} --overwrite"
        )
        stages.append(Stage(f"rm_{kind}", title, (command,)))
    for kind, title in (
        ("seq2seq", "PPO against the seq2seq model"),
        ("scalar", "PPO against Bradley-Terry"),
    ):
        command = (
            "redline ppo --url {url} --policy supervised/policy --prompts world/prompts.jsonl "
            f"--out ppo_{kind} {PPO_OPTIONS.format(steps=ppo_steps)} --seed {seed}"
        )
        stages.append(Stage(f"ppo_{kind}", title, (command,), bundle=f"rm_{kind}/bundle"))
    stages.append(
        Stage(
            "judge",
            "three policies on prompts none of them saw",
            (
                "python judge.py --questions world/test_prompts.jsonl --supervised supervised/policy "
                f"--ppo-scalar ppo_scalar/policy --ppo-seq2seq ppo_seq2seq/policy --out judge --seed {seed}",
                "redline score judge/samples.jsonl --url {url} --correction --out judge/samples.seq2seq.jsonl",
            ),
            bundle="rm_seq2seq/bundle",
        )
    )
    return stages


class Run:
    """One folder of stages; knows what is finished and what it has started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: list[subprocess.Popen[bytes]] = []

    def stop(self) -> None:
        """End every process that is still running, politely at first."""
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
        """Start a command of the plan, or any other program, in the run's folder."""
        words = shlex.split(command)
        program = {"python": [sys.executable], "redline": [str(BIN / "redline")]}.get(words[0], words[:1])
        if words[0] == "python":
            program = [*program, str(HERE / words[1])]
        arguments = words[2:] if words[0] == "python" else words[1:]
        # set for both sides of the wire: waiting threads of one must not spin on the cores of the other
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
        output = log.open("wb") if log else None
        child = subprocess.Popen([*program, *arguments], cwd=self.folder, env=environment, stdout=output, stderr=output)
        if output is not None:
            output.close()
        self._children.append(child)
        return child

    @contextlib.contextmanager
    def service(self, bundle: str | None, log: Path) -> Iterator[str]:
        """A reward service in a process of its own, ready, as its URL; none where no bundle is named."""
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
                sys.exit(f"the service ended with status {server.returncode}; see {log}")
            time.sleep(0.1)
        if waiter.returncode != 0:
            sys.exit(f"the service did not become ready; see {log}")
        try:
            yield url
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):  # then stop() kills it
                server.wait(timeout=30)

    def finish(self, stage: Stage, fingerprint: str) -> float:
        """Run ``stage`` unless it is finished; returns the seconds it took, then or now."""
        folder = self.folder / stage.name
        done, begun = folder / "done.json", folder / "begun.txt"
        if done.exists():
            record = json.loads(done.read_text())
            if record["fingerprint"] == fingerprint:
                print(f"  finished before, {record['seconds']:.0f} s", flush=True)
                return float(record["seconds"])
        if not begun.exists() or begun.read_text() != fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(begun, fingerprint)
        started = time.perf_counter()
        with self.service(stage.bundle, folder / "service.log") as url:
            for command in stage.commands:
                shown = command.format(url=url) if stage.bundle else command
                print(f"  $ {shown}", flush=True)
                status = self.start(shown).wait()
                if status != 0:
                    sys.exit(f"stage {stage.name!r} failed with status {status}; run again to go on from here")
        seconds = time.perf_counter() - started
        write_text(done, json.dumps({"fingerprint": fingerprint, "seconds": seconds}))
        return seconds


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--supervised-steps", type=int, default=300)
    parser.add_argument("--rm-steps", type=int, default=150)
    parser.add_argument("--ppo-steps", type=int, default=40)
    parser.add_argument("--until", help="the last stage to make; without it all, and the report")
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    args.out.mkdir(parents=True, exist_ok=True)
    stages = plan(args.seed, args.rm_steps, args.ppo_steps, args.supervised_steps)
    if args.until is not None:
        names = [stage.name for stage in stages]
        if args.until not in names:
            parser.error(f"there is no stage {args.until!r} among {', '.join(names)}")
        stages = stages[: names.index(args.until) + 1]
    run = Run(args.out.resolve())
    seconds: dict[str, float] = {}
    commands: dict[str, list[str]] = {}
    fingerprint = hashlib.sha256()
    for source in ("world.py", "data.py", "supervised.py", "judge.py"):
        fingerprint.update((HERE / source).read_bytes())
    try:
        for number, stage in enumerate(stages, 1):
            print(f"[{number}/{len(stages)}] {stage.title}", flush=True)
            # a stage is as fresh as its own commands and all before them
            fingerprint.update(repr(stage).encode())
            seconds[stage.name] = run.finish(stage, fingerprint.hexdigest())
            serving = [f"redline serve {stage.bundle} --dtype float32 &"] if stage.bundle else []
            default = [c.format(url="http://127.0.0.1:8000") if stage.bundle else c for c in stage.commands]
            commands[stage.name] = serving + default
    except KeyboardInterrupt:
        run.stop()
        sys.exit("\nstopped; nothing is left running. The same command goes on from here.")
    finally:
        run.stop()
    if args.until is not None:
        return
    (args.out / "stages.json").write_text(json.dumps({"seconds": seconds, "commands": commands}, indent=2))
    from report import write_report

    path = write_report(args.out, seed=args.seed)
    print(f"all stages together: {sum(seconds.values()):.0f} s")
    print(f"wrote {path} and {path.with_suffix('.json')}: open the first in a browser")


if __name__ == "__main__":
    main()
