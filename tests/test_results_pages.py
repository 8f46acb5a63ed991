"""The pages in docs/results/ open with their conclusion, and their tables agree with the JSON and with each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.page_summaries import claims_summary
from benchmarks.pages import RESULTS, SUMMARIES, stored, with_block, with_overload

PAGES = sorted(RESULTS.glob("*.md"))
OPENING_LINES = 20


def opening(name: str) -> str:
    return "\n".join((RESULTS / name).read_text(encoding="utf-8").splitlines()[:OPENING_LINES])


def table_rows(text: str, columns: int) -> dict[str, list[str]]:
    """Rows of the first table with this many columns: first cell in backticks -> the other cells."""
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == columns:
            rows.setdefault(re.findall(r"`(\w+)`", cells[0])[0], cells[1:])
    return rows


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_results_page_opens_with_question_answer_and_table(page: Path) -> None:
    text = opening(page.name)
    assert text.startswith("# ")
    question, answer, table = (text.find(part) for part in ("**Question.**", "**Answer.**", "\n|---"))
    assert 0 < question < answer < table
    assert text[table:].count("\n| ") >= 3


def test_the_claims_page_states_its_open_points_first() -> None:
    text = opening("claims.md")
    assert "not yet been recomputed with today's defaults" in text
    assert re.search(r"\*\*Withdrawn\*\*.*DPO", text)
    assert "Not met: " in text


def test_every_page_with_long_tables_has_a_summary_in_its_opening() -> None:
    for name in SUMMARIES:
        assert f"<!-- /{name}: summary -->" in opening(f"{name}.md")


def test_the_claims_summary_counts_criteria() -> None:
    claims = stored("claims")
    assert claims is not None
    missed = [name for name, criterion in claims["verdict"].items() if not criterion["is_met"]]
    summary = claims_summary(claims)
    assert f"Criteria met: {len(claims['verdict']) - len(missed)} of {len(claims['verdict'])}." in summary
    assert all(name in summary for name in missed)
    gold = claims["tasks"]["help"]["id"]["policies"]["ppo_seq2seq"]["gold"]
    assert f"{gold:.2f}" in table_rows(summary, 5)["help"][2]


def test_the_overload_table_is_that_of_the_json_files() -> None:
    page = (RESULTS / "performance.md").read_text(encoding="utf-8")
    assert with_overload(page) == page, "run python -m benchmarks.pages"


def test_ratios_of_throughput_follow_from_the_throughputs() -> None:
    page = (RESULTS / "performance.md").read_text(encoding="utf-8")
    ratios, rates = table_rows(page, 7), table_rows(page, 6)
    assert len(ratios) == 5
    assert set(ratios) == set(rates)
    for name, cells in ratios.items():
        http, engine, reference, padded, ceiling = map(float, rates[name])
        expected = (http / reference, http / padded, http / engine, engine / ceiling)
        # throughputs are printed without decimals
        assert [float(cell) for cell in cells[:4]] == pytest.approx(expected, rel=0.02)


def test_a_page_without_marks_is_refused() -> None:
    assert with_block("a\n<!-- x -->\nold\n<!-- /x -->\nb", "x", "new") == "a\n<!-- x -->\nnew\n<!-- /x -->\nb"
    with pytest.raises(ValueError, match="expected 1"):
        with_block("no marks", "x", "new")
