"""The terminal view loses no character and marks what it should."""

from __future__ import annotations

from redline.wire import Edit, ItemScore
from redline_cli.redlining import coloured, redlined, render

TEXT = "Hold the  red button."
SCORE = ItemScore(
    score=-3.0, rewards=[0.0, 0.0, -4.0, 1.0, 0.0], offsets=[(0, 4), (5, 8), (10, 13), (13, 21), (21, 21)]
)
EDITS = [Edit(op="replace", start=10, end=13, text="round"), Edit(op="insert", start=21, end=21, text=" Wait.")]


def test_every_character_is_shown_and_rewards_have_colours() -> None:
    text = coloured(TEXT, SCORE)
    assert text.plain == TEXT + "⏎"
    marked = {text.plain[span.start : span.end]: str(span.style) for span in text.spans if span.style}
    assert set(marked) == {"red", " button."}
    assert "rgb(255," in marked["red"], "a loss is red"
    assert ",255," in marked[" button."], "a gain is green"


def test_the_redline_shows_removed_and_added_text() -> None:
    text = redlined(TEXT, EDITS)
    assert text.plain == "Hold the  redround button. Wait."
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styles == {"red": "red strike", "round": "green underline", " Wait.": "green underline"}


def test_the_full_view_has_score_and_redline() -> None:
    rendered = render(TEXT, SCORE.model_copy(update={"edits": EDITS, "correction_complete": False}))
    assert rendered.plain.startswith("score -3.000\n\nHold the")
    assert rendered.plain.endswith("Wait. …")


def test_a_character_of_several_tokens_has_the_colour_of_their_summed_rewards() -> None:
    score = ItemScore(score=-1.0, rewards=[0.0, 1.5, -2.5, 2.0], offsets=[(0, 2), (2, 3), (2, 3), (3, 4)])
    text = coloured("a 字b", score)
    assert text.plain == "a 字b"
    marked = {text.plain[span.start : span.end]: str(span.style) for span in text.spans if span.style}
    assert "rgb(255," in marked["字"], "its tokens lose more than they gain"


def test_a_completely_rewritten_response_is_one_replacement() -> None:
    edits = [Edit(op="replace", start=0, end=4, text="Press"), Edit(op="replace", start=9, end=13, text="one blue")]
    shown = render(TEXT, SCORE.model_copy(update={"edits": edits, "correction_complete": True}))
    assert shown.plain.endswith("Hold the  redPress the one blue button.")


def test_edits_by_words_are_shown_on_request() -> None:
    edits = [Edit(op="replace", start=0, end=4, text="Press"), Edit(op="replace", start=9, end=13, text="one blue")]
    shown = render(TEXT, SCORE.model_copy(update={"edits": edits, "correction_complete": True}), "words")
    assert shown.plain.endswith("HoldPress the  redone blue button.")
