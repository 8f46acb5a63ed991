"""The edits of an answer, as the wire has them."""

from __future__ import annotations

from redline.text.edit_groups import grouped
from redline.wire import Edit, EditsBy
from redline_model.correction.edits import edits_between


def wire_edits(response: str, correction: str, *, by: EditsBy | None) -> list[Edit]:
    """The edits that turn ``response`` into ``correction``; ``by`` None is by words. Takes long for the event loop."""
    edits = [Edit(**edit._asdict()) for edit in edits_between(response, correction)]
    return grouped(response, edits) if by == "groups" else edits


def readable(correction: str, *, is_complete: bool) -> str:
    """``correction`` without the character that its length limit cut.

    The first bytes of a character of several tokens decode to replacement characters.
    """
    return correction if is_complete else correction.rstrip("\ufffd")
