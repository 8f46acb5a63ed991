"""What every drop-in body can do: say what it wants scored, and put the scores into its caller's form."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict

from redline.wire import FirstError, ItemScore, ScoreItem, Text
from redline_model.errors import TooLongError
from redline_model.template import Encoder

Texts = Annotated[list[Text], FirstError]
# A text may be so many times as long as any that the model reads, of which the oldest part is then cut; and this long
# in any case.
_MAX_EXCESS = 4
_FREE_LENGTH = 2**16


class Foreign(BaseModel):
    """A body of another system. Fields that it does not name are the caller's own affair."""

    model_config = ConfigDict(extra="ignore")

    def check_lengths(self, encoder: Encoder) -> None:
        """Raise TooLongError for a text, or for ids, far beyond what the model reads, before any work is done on it."""
        if encoder.max_tokens is None or encoder.max_chars is None:
            return
        most_chars = max(_FREE_LENGTH, _MAX_EXCESS * encoder.max_chars)
        most_ids = max(_FREE_LENGTH, _MAX_EXCESS * encoder.max_tokens)
        for name in type(self).model_fields:
            value = getattr(self, name)
            # a list of numbers is one item
            is_many = isinstance(value, list) and not (value and isinstance(value[0], int))
            for one in value if is_many else [value]:
                length, most = (
                    (len(one), most_chars if isinstance(one, str) else most_ids) if _is_sized(one) else (0, 0)
                )
                if length > most:
                    raise TooLongError(f"{name} holds {length} characters or ids; at most {most} are looked at")


def _is_sized(value: Any) -> bool:
    return isinstance(value, (str, list))


@dataclass(frozen=True)
class Reader:
    """What a body is read with. ``ends``: strings that end a sequence, beyond those of known templates."""

    encoder: Encoder
    ends: Sequence[str] = ()


@dataclass(frozen=True)
class Scored:
    """The scores of what was asked, in order, all of them finite.

    ``model``: the name it is served under. ``tokens``: that were read for all of it.
    """

    model: str
    items: Sequence[ItemScore]
    tokens: int
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def scores(self) -> list[float]:
        """A number an item."""
        return [float(item.score) for item in self.items]


class DropIn(Protocol):
    """A body of a drop-in endpoint."""

    def items(self, reader: Reader) -> list[ScoreItem]:
        """What is to be scored. Raises BorderError."""
        ...

    def reply(self, scored: Scored) -> Any:
        """JSON-ready data, in the form that the caller reads."""
        ...
