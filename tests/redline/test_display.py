"""What comes from elsewhere reaches no terminal as markup or as an escape sequence."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

import redline_cli
from redline.testing import FakeService
from redline.text.printable import one_line, visible, visible_json
from redline.wire import Edit, ErrorBody, ErrorCode, ItemError, ItemResult, ItemScore, ScoreItem, ScoreOptions
from redline.wire.correction import ItemCorrection
from redline_cli import terminal
from redline_cli.redlining import render, render_correction
from redline_cli.terminal import notice, print_line
from tests.commands import run, served

CLEAR_SCREEN = "\x1b[2J\x9b2J\r\x07\x7f\u202e"
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
MARKUP = ["[/x]", "[bold", "[red]red[/red]", "[link=http://x]y[/link]", ":smile:", "[", "[/]", "\\[", "[@click=f]z[/]"]


@pytest.mark.parametrize("text", [*MARKUP, "two\nlines", "1 2.5 'x' https://x"])
def test_brackets_are_text(text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.console, "_file", sys.stderr)
    for is_warning in (False, True):
        notice(text, is_warning=is_warning)
        assert capsys.readouterr().err == text + "\n"


def test_no_command_prints_markup() -> None:
    assert not terminal.console._markup
    for path in Path(redline_cli.__file__).parent.glob("*.py"):
        code = path.read_text()
        assert "console.print(" not in code or path.name == "terminal.py", path
        for call in re.findall(r"Console\((.*?)\)(\.print\(\w+)?", code):
            # a Text is never markup
            assert "markup=False" in call[0] or call[1].startswith(".print(render"), path


def test_control_characters_are_shown_as_symbols(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.console, "_file", sys.stderr)
    assert visible("a\x1b[2J\tb\nc\x7f\x9b\u202e") == "a␛[2J\tb\nc␡\ufffd\ufffd"
    notice(CLEAR_SCREEN)
    print_line(CLEAR_SCREEN)
    shown = capsys.readouterr()
    assert not UNFIT.search(shown.out + shown.err)


def test_ordinary_text_is_unchanged() -> None:
    text = "naïve 世界 🙂 👩‍👩‍👧 Привет שלום\tx\ny"
    assert visible(text) == text
    assert visible_json(json.dumps(text, ensure_ascii=False)) == json.dumps(text, ensure_ascii=False)


def test_a_message_is_one_short_line() -> None:
    assert one_line("one\ntwo\x1b[31m\u2028x") == "one two [31m x"
    assert len(one_line("x" * 10**6)) == 1003


def test_json_with_control_characters_escaped_has_the_same_values() -> None:
    value = {"name": CLEAR_SCREEN + '"\\', "n": [1, 2.5]}
    text = visible_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert not UNFIT.search(text)


def test_a_scored_response_cannot_move_the_cursor() -> None:
    response = f"a{CLEAR_SCREEN}b"
    edits = [Edit(op="replace", start=0, end=1, text=CLEAR_SCREEN)]
    spans = [(n, n + 1) for n in range(len(response))]
    score = ItemScore(score=0.0, rewards=[1.0] * len(spans), offsets=spans, edits=edits, correction_complete=True)
    correction = ItemCorrection(
        correction=CLEAR_SCREEN + response[1:], ended="max_rounds", rounds=1, edits=edits, score_before=0.0
    )
    for text in (render(response, score), render_correction(response, correction)):
        console = Console(force_terminal=True, color_system=None, width=200)
        with console.capture() as captured:
            console.print(text)
        assert not UNFIT.search(re.sub(r"\x1b\[[0-9;]*m", "", captured.get()))


class Hostile(FakeService):
    """Every item fails, with a message that is no message."""

    def _score(self, item: ScoreItem, options: ScoreOptions) -> ItemResult:
        return ItemError(id=item.id, error=ErrorBody.of(ErrorCode.TOO_LONG, f"[/x]\nforged line {CLEAR_SCREEN}"))


def test_a_server_s_message_is_printed_as_one_line(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "p", "response": "r"}) + "\n")
    with served(Hostile(lambda word: 1.0)) as url:
        ran = run("score", str(rows), "--url", url, "--out", str(tmp_path / "out.jsonl"))
    assert ran.returncode == 1
    (failure,) = [line for line in ran.stderr.splitlines() if line.startswith("redline: ")]
    assert "[/x] forged line" in failure
    assert not UNFIT.search(ran.stdout + ran.stderr)
