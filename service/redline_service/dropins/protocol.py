"""What every drop-in body can do: say what it wants scored, and put the scores into its caller's form."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from redline.wire import ItemScore, ScoreItem
from redline_model.template import Encoder


class Foreign(BaseModel):
    """A body of another system. Fields that it does not name are the caller's own affair."""

    model_config = ConfigDict(extra="ignore")


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
