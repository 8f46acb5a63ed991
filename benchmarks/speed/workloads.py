"""The workloads of the serving benchmark: calls of items with texts of exact token counts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redline_model.errors import DataError
from redline_trainer.load_pairs import load_pairs

# Used if there is no preference data: the shapes are the same, only the words repeat.
BUILT_IN = """\
A router keeps a table of the networks it can reach and of the neighbour through which each is reached. When a
packet arrives it looks for the longest prefix that matches the destination and hands the packet on. If no entry
matches, the packet goes to the default route, and where there is none it is dropped and the sender is told. Tables
are filled by hand in small networks and by routing protocols in large ones; each protocol makes a different trade
between how fast it learns of a broken link, how much it talks, and how much it must remember. To bake bread, weigh
flour and water, stir until no dry flour is left, and let it rest for half an hour before you add salt and yeast.
Fold the dough three or four times while it rises. A wet dough is hard to handle but gives an open crumb; a dry one
is easy to shape and stays dense. Bake it hot, with steam at first, and do not cut it before it has cooled. The tide
follows the moon because the near side of the sea is pulled a little more than the earth and the far side a little
less, which leaves a bulge on both. The sun does the same at about half the strength. When the two line up, spring
tides run high and low; when they stand at a right angle, neap tides hardly move.
"""


@dataclass(frozen=True)
class Workload:
    """``calls``: requests that arrive at once, each a list of items. ``about``: one line for the table."""

    name: str
    about: str
    calls: list[list[dict[str, str]]]

    @property
    def items(self) -> list[dict[str, str]]:
        """Every item, call by call."""
        return [item for call in self.calls for item in call]


class Texts:
    """Passages of an exact number of tokens; no two overlap until all text has been used."""

    def __init__(self, tokenizer: Any, folder: Path | None, seed: int) -> None:
        passages, self.source = _passages(folder)
        draw = random.Random(seed)
        draw.shuffle(passages)
        self._tokenizer = tokenizer
        self._draw = draw
        self._ids: list[int] = []
        for passage in passages:
            self._ids += tokenizer(passage + "\n", add_special_tokens=False)["input_ids"]
            if len(self._ids) > 2_000_000:
                break
        self._position = 0

    def passage(self, tokens: int) -> str:
        """About ``tokens`` tokens of running text."""
        if self._position + tokens > len(self._ids):
            self._position = self._draw.randrange(1, 50)
        while self._position + tokens > len(self._ids):
            self._ids = self._ids * 2
        ids = self._ids[self._position : self._position + tokens]
        self._position += tokens
        return str(self._tokenizer.decode(ids)).strip("\ufffd \n") or "nothing"

    def length(self, low: int, high: int) -> int:
        """A token count between the two."""
        return self._draw.randint(low, high)

    def shuffled(self, items: list[dict[str, str]]) -> list[dict[str, str]]:
        """The items in random order."""
        order = list(items)
        self._draw.shuffle(order)
        return order


def _passages(folder: Path | None) -> tuple[list[str], str]:
    if folder is not None and folder.is_dir():
        texts: list[str] = []
        used: list[str] = []
        for file in sorted(folder.glob("h*.train.jsonl.gz")) or sorted(folder.glob("*.jsonl*")):
            try:
                pairs, _ = load_pairs([file])
            except DataError:
                continue
            used.append(file.name)
            texts += [pair.prompt for pair in pairs if isinstance(pair.prompt, str)]
            texts += [text for pair in pairs for text in (pair.chosen, pair.rejected)]
        if texts:
            return texts, ", ".join(used)
    return [BUILT_IN], "built-in text"


def group(
    texts: Texts, prompts: int, responses: int, prompt: tuple[int, int], response: tuple[int, int]
) -> list[dict[str, str]]:
    """Items of ``prompts`` prompts with ``responses`` responses each, in order; the ranges are token counts."""
    items: list[dict[str, str]] = []
    for _ in range(prompts):
        question = texts.passage(texts.length(*prompt))
        items += [{"prompt": question, "response": texts.passage(texts.length(*response))} for _ in range(responses)]
    return items


def build_workloads(texts: Texts, share: float = 1.0) -> Iterator[Workload]:
    """The five workloads; ``share`` scales the number of their items, not the lengths."""
    prompts = max(2, round(8 * share))
    long_prompt, short_response = (380, 420), (10, 120)

    def groups() -> list[dict[str, str]]:
        return group(texts, prompts, 8, long_prompt, short_response)

    def rollout() -> list[dict[str, str]]:
        return texts.shuffled(group(texts, max(8, round(64 * share)), 1, (60, 300), short_response))

    def single() -> list[list[dict[str, str]]]:
        return [[item] for item in texts.shuffled(groups())]

    def long() -> list[dict[str, str]]:
        return group(texts, max(2, round(6 * share)), 1, (100, 300), (350, 600))

    yield Workload("single", f"{prompts * 8} callers, one item per call, {prompts} prompts x 8 responses", single())
    yield Workload("rollout", "one call of items with different prompts", [rollout()])
    yield Workload("groups", f"one call, {prompts} prompts of about 400 tokens x 8 responses", [groups()])
    yield Workload("long", "one call of few long responses", [long()])
    half = single()
    mixed = [*half[: len(half) // 2], rollout()[: len(half) // 2], groups()[: len(half) // 2], long()[:2]]
    yield Workload("mixed", "all of these at once, half as many items of each", mixed)
