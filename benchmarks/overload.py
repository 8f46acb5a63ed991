"""Measures the service under overload, with small requests one after the other, and with two different callers.

    python -m benchmarks.overload --out runs/bench [--quick] [--model FOLDER | --tiny]

``overload``: goodput at 1, 1.5 and 2 times the capacity, which is measured in a closed loop before and after each load.
Requests arrive at random times, however many are unanswered, each with ``X-Deadline-S``. The load begins one deadline
before the measured time and ends one deadline after it, so that only the steady state is measured: neither the empty
queue at the start nor the idle time after the last request improves the result.
``sequential``: small requests on one kept-alive connection. ``short_beside_long``: short items of one caller, one after
the other, while long items of another caller are in flight.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.speed.backends import RedlineHttp
from benchmarks.speed.bundles import build_bundle, build_tiny_bundle
from benchmarks.speed.load_generator import Recording, RequestResult, Stream, request_template, run_apart
from benchmarks.speed.load_results import beyond_the_model, goodput, short_beside_long, steady_rate
from benchmarks.speed.overload_report import print_overload
from benchmarks.speed.workloads import Texts
from redline.version import installed_version
from redline.wire import DEADLINE_HEADER, SCORE_PATH
from redline_model.bundle.bundle import Bundle
from redline_model.encoding.items import Item
from redline_service.engine import default_batch_tokens

# name -> items per request, and whether they are responses to one prompt
VARIANTS = {"single": (1, False), "batches": (8, False), "groups": (8, True)}
# tokens of prompt and response of a short item, without the serial number before each
_SHORT_PROMPT, _SHORT_RESPONSE = (16, 32), (10, 20)
_TEMPLATES = 64
_LONG_IN_FLIGHT = 8
# seconds of a closed loop after which its rate is used, however few answers it is from
_MAX_CAPACITY_S = 30.0
_LONGEST_DEADLINE_S = 30.0
# of the second caller: the service tells callers apart by their address
_OTHER_ADDRESS = "127.0.0.2"


@dataclass(frozen=True)
class Budget:
    """How long each part takes. The names of the fields are keys of the stored results: do not change them.

    Args:
        capacity_s: measured seconds of a closed loop, after half as many for warm-up; longer if the model is slow.
        window_s: measured seconds of each load.
        sequential: number of small requests one after the other.
        beside: number of short requests alone, and of short requests beside the long ones.
        beside_s: at most so many seconds for each of these two.
        loads: multiples of the capacity.
        items_under_way: items in flight in the closed loop that measures the capacity; a connection per request.
        deadline_s: the smallest ``X-Deadline-S``.
    """

    capacity_s: float
    window_s: float
    sequential: int
    beside: int
    beside_s: float
    loads: tuple[float, ...] = (1.0, 1.5, 2.0)
    variants: tuple[str, ...] = ("single",)
    items_under_way: int = 64
    deadline_s: float = 1.0


QUICK = Budget(capacity_s=3, window_s=6, sequential=50, beside=50, beside_s=15)
FULL = Budget(capacity_s=10, window_s=20, sequential=200, beside=200, beside_s=40, variants=tuple(VARIANTS))
# with a very fast model more items must be in flight to keep the service busy
TINY = {"variants": ("single", "batches"), "items_under_way": 96}


class Load:
    """Requests against one service; every text is new."""

    def __init__(self, service: RedlineHttp, bundle: Bundle, texts: Texts) -> None:
        self._service, self._encoder, self._scorer = service, bundle.scorer.encoder, bundle.scorer
        self._texts = texts
        self._serial = 0
        self.capacity_s = 0.0

    def short(self, variant: str) -> list[list[dict[str, str]]]:
        """Items of the requests of a variant, without serial numbers."""
        count, has_one_prompt = VARIANTS[variant]
        passage, length = self._texts.passage, self._texts.length
        requests = []
        for _ in range(_TEMPLATES):
            prompts = [f"{i} {passage(length(*_SHORT_PROMPT))}" for i in range(count)]
            responses = [f"{i} {passage(length(*_SHORT_RESPONSE))}" for i in range(count)]
            if has_one_prompt:
                prompts = prompts[:1] * count
            requests.append([{"prompt": p, "response": r} for p, r in zip(prompts, responses, strict=True)])
        return requests

    def long(self, tokens: int) -> list[list[dict[str, str]]]:
        """Requests of one item of nearly ``tokens`` tokens, and never more."""
        requests = []
        for _ in range(_TEMPLATES):
            share = 0.25
            while True:
                item = {key: self._texts.passage(round(share * tokens)) for key in ("prompt", "response")}
                if self.tokens([item]) <= tokens:
                    break
                share *= 0.97
            requests.append([item])
        return requests

    def tokens(self, items: Sequence[dict[str, str]]) -> int:
        """Tokens of ``items`` in the model, with their serial numbers."""
        numbered = [Item(f"00000000 {item['prompt']}", f"00000000 {item['response']}") for item in items]
        return sum(self._scorer.planner.length(self._encoder.encode(item)) for item in numbered)

    def stream(
        self, contents: Sequence[list[dict[str, str]]], deadline_s: float | None = None, **options: Any
    ) -> Stream:
        """A stream that sends ``contents`` in turn, with serial numbers that no other stream has."""
        headers = {} if deadline_s is None else {DEADLINE_HEADER: f"{deadline_s:g}"}
        templates = [request_template(SCORE_PATH, items, headers) for items in contents]
        self._serial += 1_000_000
        return Stream(templates, self._serial, **options)

    def run(self, *streams: Stream, seconds: float) -> tuple[Recording, dict[str, float]]:
        """Run streams that should end within about ``seconds``; also returns the cores in use, by user."""
        started, all_before, service_before = time.perf_counter(), busy_s(), sum(map(cpu_s, self._service.pids()))
        recording = run_apart(self._service.port, streams, timeout_s=3 * seconds + 300)
        took, service = time.perf_counter() - started, sum(map(cpu_s, self._service.pids())) - service_before
        others = busy_s() - all_before - service - recording.cpu_seconds
        time.sleep(0.5)  # the service drops the requests that the generator left unanswered
        cores = {"service": service / took, "generator": recording.cpu_seconds / took, "others": others / took}
        return recording, {name: max(0.0, used) for name, used in cores.items()}

    def capacity(self, requests: Sequence[list[dict[str, str]]], budget: Budget) -> float:
        """Items per second in a closed loop; measured for longer if a connection had fewer than two answers on average.

        After half a minute any answer is enough, so that a slow model on a busy machine does not take hours.
        """
        connections = budget.items_under_way // len(requests[0])
        while True:
            lead, until = self.capacity_s / 2, 1.5 * self.capacity_s
            stream = self.stream(requests, connections=connections, until_s=until)
            results = self.run(stream, seconds=until)[0].results[0]
            answers = sum(r.scored > 0 and lead < r.ended_s <= until for r in results)
            if answers >= 2 * connections or (answers and self.capacity_s >= _MAX_CAPACITY_S):
                return steady_rate(results, lead, until)
            self.capacity_s *= 1.5


def busy_s() -> float:
    """CPU seconds that all processes have used since the machine started (Linux)."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process with ``rate`` arrivals per second, over ``seconds``."""
    rng, now, times = random.Random(seed), 0.0, []
    while (now := now + rng.expovariate(rate)) < seconds:
        times.append(now)
    return times


def chosen_deadline(capacity: float, item_tokens: float, batch_tokens: int, least_s: float) -> float:
    """About the time of four full batches, in seconds: at least ``least_s`` and at most half a minute."""
    return max(least_s, min(_LONGEST_DEADLINE_S, math.ceil(40 * batch_tokens / (capacity * item_tokens)) / 10))


def loads(load: Load, variant: str, budget: Budget, seed: int, batch_tokens: int, deadline: float | None) -> Any:
    """The figures of one variant at every load.

    On a shared machine the capacity changes, so it is measured before and after each load. The first value decides how
    much is sent; the goodput is a share of the mean of both.

    Args:
        deadline: seconds; None: chosen from the capacity.
    """
    items, has_one_prompt = VARIANTS[variant]
    requests = load.short(variant)
    item_tokens = load.tokens([item for items_of_request in requests for item in items_of_request]) / (
        items * len(requests)
    )
    before = load.capacity(requests, budget)
    deadline = deadline or chosen_deadline(before, item_tokens, batch_tokens, budget.deadline_s)
    runs = {}
    for times in budget.loads:
        print(f"  overload {variant:8} {times:g} x {before:.1f} items/s, deadline {deadline:g} s", file=sys.stderr)
        until = deadline + max(budget.window_s, deadline)
        at_s = arrivals(times * before / items, until + deadline, seed)
        stream = load.stream(requests, deadline, at_s=at_s, give_up_s=2 * deadline)
        recording, cores = load.run(stream, seconds=until + 3 * deadline)
        after = load.capacity(requests, budget)
        run = goodput(recording.results[0], items=items, deadline_s=deadline, from_s=deadline, until_s=until)
        capacity = statistics.fmean((before, after))
        runs[f"{times:g}"] = {
            "goodput": run["in_time_items_per_s"] / capacity,
            "offered": run["offered_items_per_s"] / capacity,
            "capacity_items_per_s": {"before": before, "after": after, "mean": capacity},
            **run,
            "connections": recording.connections[0],
            "cores": cores,
        }
        before = after
    return {
        "items_a_request": items,
        "has_one_prompt": has_one_prompt,
        "tokens_an_item": item_tokens,
        "deadline_s": deadline,
        "loads": runs,
    }


def sequential(load: Load, budget: Budget) -> dict[str, Any]:
    """Single short items on one kept-alive connection, after five that are not measured; for at most a minute."""
    stream = load.stream(load.short("single"), requests=budget.sequential + 5, until_s=60)
    recording, _ = load.run(stream, seconds=60)
    return beyond_the_model(recording.results[0][5:])


def two_callers(load: Load, budget: Budget, long_tokens: int) -> dict[str, Any]:
    """Short items of one caller alone, and beside long items of another caller."""
    one_after_another: dict[str, Any] = {"connections": 1, "requests": budget.beside, "source": _OTHER_ADDRESS}
    short, long = load.short("single"), load.long(long_tokens)

    def stream(from_s: float) -> Stream:
        return load.stream(short, **one_after_another, from_s=from_s, until_s=from_s + budget.beside_s)

    alone = load.run(stream(0.0), seconds=budget.beside_s)[0].results[0]
    long_stream = load.stream(long, connections=_LONG_IN_FLIGHT, is_background=True)
    lead = budget.capacity_s / 2
    recording, _ = load.run(long_stream, stream(lead), seconds=lead + budget.beside_s)
    long_results, beside = recording.results
    first = beside[0].sent_s
    tokens = load.tokens([item for (item,) in long]) / len(long)
    during: list[RequestResult] = [result for result in long_results if result.ended_s >= first] or long_results
    return {"tokens_a_long_item": tokens, **short_beside_long(alone, beside, during)}


def measure_overload(path: Path, bundle: Bundle, texts: Texts, budget: Budget, seed: int) -> dict[str, Any]:
    """The three parts, on a service of the bundle with its default settings.

    Args:
        path: of ``bundle``, which is used here only to count tokens.
    """
    # as `redline serve` starts by itself: REDLINE_* of the environment apply, and idle threads do not spin
    service = RedlineHttp(path, GOMP_SPINCOUNT="0", REDLINE_DEADLINE_S="85")
    default = default_batch_tokens(bundle.scorer.model.device.type)
    batch_tokens = int(os.environ.get("REDLINE_MAX_BATCH_TOKENS", default))
    try:
        load = Load(service, bundle, texts)
        small = sequential(load, budget)
        # in batches, an item takes about half the time that it takes alone
        expected_s = budget.items_under_way * small["latency"]["p50_ms"] / 1000 / 2
        load.capacity_s = max(budget.capacity_s, min(_MAX_CAPACITY_S, expected_s))
        variants: dict[str, Any] = {}
        deadline = None
        for variant in budget.variants:
            variants[variant] = loads(load, variant, budget, seed, batch_tokens, deadline)
            deadline = variants[variant]["deadline_s"]
        limit = min(bundle.scorer.encoder.max_tokens or batch_tokens, batch_tokens)
        beside = two_callers(load, budget, limit)
    finally:
        service.stop()
    return {
        "overload": {"seed": seed, "budget": asdict(budget), "batch_tokens": batch_tokens, "variants": variants},
        "sequential": small,
        "short_beside_long": beside,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of overload.json")
    parser.add_argument("--model", type=Path, help="model folder; default models/smollm2, else random weights")
    parser.add_argument("--tiny", action="store_true", help="a model of 2 layers, to measure the service itself")
    parser.add_argument("--texts", type=Path, default=Path("../shared/data"), help="folder of preference pairs")
    parser.add_argument("--loads", type=float, nargs="+", help="multiples of the capacity")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="kinds of requests")
    parser.add_argument("--deadline-s", type=float, help="the smallest X-Deadline-S; default 1")
    parser.add_argument("--quick", action="store_true", help="shorter; without --tiny only single items")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    options = {"loads": args.loads, "variants": args.variants, "deadline_s": args.deadline_s}
    changes: dict[str, Any] = dict(TINY) if args.tiny else {}
    changes |= {name: value for name, value in options.items() if value}
    budget = replace(QUICK if args.quick else FULL, **changes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        path, weights = build_tiny_bundle(path, args.seed) if args.tiny else build_bundle(path, args.model, args.seed)
        bundle = Bundle.load(path)
        texts = Texts(bundle.scorer.encoder.tokenizer, None if args.tiny else args.texts, args.seed)
        report = {
            "date": time.strftime("%Y-%m-%d"),
            "redline": installed_version(),
            "cores": os.cpu_count(),
            "weights": weights,
            "quick": args.quick,
            **measure_overload(path, bundle, texts, budget, args.seed),
        }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "overload.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_overload(report)
    print(f"wrote {args.out / 'overload.json'} in {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
