"""The edits between a response and its correction, in the wire's form."""

from __future__ import annotations

from redline.text.edit_groups import grouped
from redline.wire import Edit, EditsBy
from redline_model.correction.edits import edits_between


def wire_edits(response: str, correction: str, *, by: EditsBy | None) -> list[Edit]:
    """The edits that turn ``response`` into ``correction``. Compares texts, so do not call it on the event loop.

    Args:
        by: one edit per word or per group of words; None means words.
    """
    edits = [Edit(**edit._asdict()) for edit in edits_between(response, correction)]
    return grouped(response, edits) if by == "groups" else edits


def without_cut_character(correction: str, *, is_complete: bool) -> str:
    """``correction`` without a last character that the length limit cut in two.

    A character may consist of several tokens; the first of them alone decode to replacement characters.
    """
    return correction if is_complete else correction.rstrip("\ufffd")
