"""Renders a scored response in a terminal: tokens coloured by reward, and the edits of its correction."""

from __future__ import annotations

from rich.text import Text

from redline.text.edit_groups import grouped
from redline.text.printable import visible
from redline.wire import Edit, EditsBy, ItemScore
from redline.wire.correction import ItemCorrection


def _style(reward: float, largest: float) -> str:
    """Green for positive, red for negative rewards, stronger for larger ones; readable on dark and light terminals."""
    share = min(1.0, abs(reward) / largest) if largest > 0 else 0.0
    if share < 0.05:
        return ""
    faint = round(255 - 155 * share)
    return f"black on rgb({faint},255,{faint})" if reward > 0 else f"black on rgb(255,{faint},{faint})"


def coloured(response: str, result: ItemScore) -> Text:
    """The response with every token in the colour of its reward; the end token is shown as ``⏎``.

    Tokens that are parts of one character are shown as one, in the colour of the sum of their rewards.
    """
    pieces: list[tuple[int, int, float]] = []
    for reward, (start, end) in zip(result.rewards, result.offsets, strict=True):
        if pieces and start < pieces[-1][1]:
            before = pieces[-1]
            pieces[-1] = (before[0], max(before[1], end), before[2] + reward)
        else:
            pieces.append((start, end, reward))
    response = visible(response)
    text = Text()
    largest = max((abs(reward) for _, _, reward in pieces), default=0.0)
    position = 0
    for start, end, reward in pieces:
        text.append(response[position:start])
        piece = response[start:end] or ("⏎" if start == len(response) else "")
        text.append(piece, style=_style(reward, largest))
        position = max(position, end)
    text.append(response[position:])
    return text


def redlined(response: str, edits: list[Edit]) -> Text:
    """The response with its edits: deleted text is struck through, inserted text is underlined."""
    response = visible(response)
    text = Text()
    position = 0
    for edit in edits:
        text.append(response[position : edit.start])
        text.append(response[edit.start : edit.end], style="red strike")
        text.append(visible(edit.text), style="green underline")
        position = edit.end
    text.append(response[position:])
    return text


def render(response: str, result: ItemScore, edits: EditsBy | None = None) -> Text:
    """Score, coloured response and, if there is a correction, its edits; ``edits`` None groups them."""
    text = Text()
    text.append(f"score {result.score:.3f}\n\n", style="bold")
    text.append_text(coloured(response, result))
    if result.edits is not None:
        text.append("\n\nredline\n\n", style="bold")
        text.append_text(_redline(response, result.edits, result.correction_complete is not False, edits))
    return text


def render_correction(response: str, result: ItemCorrection, edits: EditsBy | None = None) -> Text:
    """How rewriting ended, the known scores, and the edits; ``edits`` None groups them."""
    rewrites = "1 rewrite" if result.rounds == 1 else f"{result.rounds} rewrites"
    after = "" if result.score_after is None else f" -> {result.score_after:.3f}"
    text = Text()
    text.append(
        f"{rewrites} ({result.ended.replace('_', ' ')}), score {result.score_before:.3f}{after}\n\n", style="bold"
    )
    text.append_text(_redline(response, result.edits, result.is_complete, edits))
    return text


def _redline(response: str, edits: list[Edit], is_complete: bool, by: EditsBy | None) -> Text:
    """The response with edits; ``…`` at the end marks an incomplete correction."""
    text = redlined(response, edits if by == "words" else grouped(response, edits))
    if not is_complete:
        text.append(" …", style="dim")
    return text
