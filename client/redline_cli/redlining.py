"""A scored response on a terminal: coloured by reward, with the edits of its correction."""

from __future__ import annotations

from rich.text import Text

from redline.text.edit_groups import grouped
from redline.text.printable import visible
from redline.wire import Edit, EditsBy, ItemScore
from redline.wire.correction import ItemCorrection


def _style(reward: float, largest: float) -> str:
    """Green for reward, red for its loss, the stronger the larger; a colour pair readable on dark and light."""
    share = min(1.0, abs(reward) / largest) if largest > 0 else 0.0
    if share < 0.05:
        return ""
    faint = round(255 - 155 * share)
    return f"black on rgb({faint},255,{faint})" if reward > 0 else f"black on rgb(255,{faint},{faint})"


def coloured(response: str, result: ItemScore) -> Text:
    """The response, every token on the colour of its reward; the end token as ``⏎``.

    Tokens that are parts of one character are shown as that character, on the colour of the sum of their rewards.
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
    shown_to = 0
    for start, end, reward in pieces:
        text.append(response[shown_to:start])
        piece = response[start:end] or ("⏎" if start == len(response) else "")
        text.append(piece, style=_style(reward, largest))
        shown_to = max(shown_to, end)
    text.append(response[shown_to:])
    return text


def redlined(response: str, edits: list[Edit]) -> Text:
    """The response with its edits: what is taken out struck through, what is put in underlined."""
    response = visible(response)
    text = Text()
    at = 0
    for edit in edits:
        text.append(response[at : edit.start])
        text.append(response[edit.start : edit.end], style="red strike")
        text.append(visible(edit.text), style="green underline")
        at = edit.end
    text.append(response[at:])
    return text


def render(response: str, result: ItemScore, edits: EditsBy | None = None) -> Text:
    """Score, coloured response and, where there is one, the redline; ``edits`` None groups them."""
    text = Text()
    text.append(f"score {result.score:.3f}\n\n", style="bold")
    text.append_text(coloured(response, result))
    if result.edits is not None:
        text.append("\n\nredline\n\n", style="bold")
        text.append_text(_redline(response, result.edits, result.correction_complete is not False, edits))
    return text


def render_correction(response: str, result: ItemCorrection, edits: EditsBy | None = None) -> Text:
    """What came of rewriting, the scores that are known, and the redline; ``edits`` None groups them."""
    rewrites = "1 rewrite" if result.rounds == 1 else f"{result.rounds} rewrites"
    after = "" if result.score_after is None else f" -> {result.score_after:.3f}"
    text = Text()
    text.append(
        f"{rewrites} ({result.ended.replace('_', ' ')}), score {result.score_before:.3f}{after}\n\n", style="bold"
    )
    text.append_text(_redline(response, result.edits, result.is_complete, edits))
    return text


def _redline(response: str, edits: list[Edit], is_complete: bool, by: EditsBy | None) -> Text:
    """The redline; ``…`` says that it breaks off."""
    text = redlined(response, edits if by == "words" else grouped(response, edits))
    if not is_complete:
        text.append(" …", style="dim")
    return text
