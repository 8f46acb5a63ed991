"""Writes the tables of the pages in docs/results/ from the JSON files in the same folder.

    python -m benchmarks.pages --take runs/claims/claims.json    # copy new results to docs/results/, rewrite the tables
    python -m benchmarks.pages                                   # rewrite the tables

A test checks that the pages hold exactly what this command writes.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import page_summaries, sensitivity
from benchmarks.open_notes import tables as open_notes_tables
from benchmarks.real_rewards import tables as real_rewards_tables
from benchmarks.real_text import tables as real_text_tables
from benchmarks.synthetic import tables as claims_tables
from examples.quickstart import seeds

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
RENDERERS: dict[str, Callable[[Any], str]] = {
    "claims": claims_tables.rendered,
    "real_text": real_text_tables.rendered,
    "real_rewards": real_rewards_tables.rendered,
    "sensitivity": sensitivity.rendered,
    "open_notes": open_notes_tables.rendered,
    "quickstart": seeds.table,
    "loops": seeds.table,
}
# a short table at the top of the page, for pages whose full tables are long
SUMMARIES: dict[str, Callable[[Any], str]] = {
    "claims": page_summaries.claims_summary,
    "real_text": page_summaries.real_text_summary,
}
_DIGITS = 5


def rounded(value: Any) -> Any:
    """``value`` with its floats to five digits after the point."""
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def with_block(page: str, mark: str, text: str) -> str:
    """``page`` with ``text`` between its marks ``<!-- mark -->`` and ``<!-- /mark -->``.

    Raises ValueError if the page does not have exactly one pair of these marks.
    """
    block = f"<!-- {mark} -->\n{text.strip()}\n<!-- /{mark} -->"
    written, count = re.subn(rf"<!-- {mark} -->.*<!-- /{mark} -->", lambda _: block, page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the page has {count} pairs of marks {mark!r}, expected 1")
    return written


def filled(page: str, name: str, results: Mapping[str, Any]) -> str:
    """``page`` with the tables and the summary of ``results``. Raises ValueError if a pair of marks is missing."""
    about = results["about"]
    source = f"`{about['command']}`, {about['date']}, {about['machine']}."
    page = with_block(page, name, f"{source}\n\n{RENDERERS[name](results)}")
    if name in SUMMARIES:
        page = with_block(page, f"{name}: summary", SUMMARIES[name](results))
    return page


def with_overload(page: str) -> str:
    """The performance page with its overload table, from overload.json and overload_before.json."""
    report, before = stored("overload"), stored("overload_before")
    if report is None or before is None:
        raise ValueError("docs/results/ has no overload.json or no overload_before.json")
    return with_block(page, "overload", page_summaries.overload_table(report, before))


def stored(name: str) -> Mapping[str, Any] | None:
    """The results in docs/results/``name``.json; None if there is no such file."""
    path = RESULTS / f"{name}.json"
    results: Mapping[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return results


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--take", type=Path, action="append", default=[], help="a JSON file of results to copy to docs/results/"
    )
    for path in parser.parse_args().take:
        RESULTS.mkdir(exist_ok=True)
        results = rounded(json.loads(path.read_text(encoding="utf-8")))
        (RESULTS / path.name).write_text(json.dumps(results) + "\n", encoding="utf-8")
    for name in RENDERERS:
        results = stored(name)
        if results is not None:
            _rewrite(RESULTS / f"{name}.md", partial(filled, name=name, results=results))
    _rewrite(RESULTS / "performance.md", with_overload)


def _rewrite(page: Path, change: Callable[[str], str]) -> None:
    page.write_text(change(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
