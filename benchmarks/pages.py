"""The tables of docs/claims.md, real_text.md, quickstart.md, loops.md, out of the JSON files that their commands write.

    python -m benchmarks.pages --take runs/claims/claims.json    # a benchmark's results become those of the docs
    python -m benchmarks.pages                                   # write the tables anew

A test holds the pages to be what this writes.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import claims, real_text
from examples.quickstart import seeds

DOCS = Path(__file__).resolve().parents[1] / "docs"
RENDERERS: dict[str, Callable[[Any], str]] = {
    "claims": claims.rendered,
    "real_text": real_text.rendered,
    "quickstart": seeds.table,
    "loops": seeds.table,
}
_DIGITS = 5


def rounded(value: Any) -> Any:
    """``value`` with its floats to five digits after the point."""
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def filled(page: str, name: str, results: Mapping[str, Any]) -> str:
    """``page`` with the tables of ``results`` between its two marks. Raises ValueError where it has none."""
    about = results["about"]
    told = f"`{about['command']}`, {about['date']}, {about['machine']}.\n\n{RENDERERS[name](results).strip()}"
    block = f"<!-- {name} -->\n{told}\n<!-- /{name} -->"
    written, count = re.subn(rf"<!-- {name} -->.*<!-- /{name} -->", lambda _: block, page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the page has {count} places for the tables of {name}")
    return written


def stored(name: str) -> Mapping[str, Any] | None:
    """The results behind the page ``name``; None while there are none."""
    path = DOCS / "results" / f"{name}.json"
    results: Mapping[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", type=Path, action="append", default=[], help="results to keep with the docs")
    for source in parser.parse_args().take:
        (DOCS / "results").mkdir(exist_ok=True)
        results = rounded(json.loads(source.read_text(encoding="utf-8")))
        (DOCS / "results" / source.name).write_text(json.dumps(results) + "\n", encoding="utf-8")
    for name in RENDERERS:
        results = stored(name)
        if results is not None:
            page = DOCS / f"{name}.md"
            page.write_text(filled(page.read_text(encoding="utf-8"), name, results), encoding="utf-8")
            print(f"wrote {page}")


if __name__ == "__main__":
    main()
