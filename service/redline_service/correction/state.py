"""One response on its way to its correction: what each round came to, and what is to be run next. Knows no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redline.wire.correction import CorrectOptions, Ended, ItemCorrection
from redline_model.correction.rewriter import Correction
from redline_model.encoding.encoder import EncodedItem
from redline_model.errors import EmptyResponseError, RedlineModelError, TooLongError
from redline_service.correction.wire_edits import readable, wire_edits
from redline_service.scheduling.jobs import JobResult


class CorrectionState:
    """Run ``item``, with its rewrite if ``wants_rewrite``, and ``take`` the outcome; so on until ``item`` is None.

    Args:
        item: the response as it came.
        encode: a text, and whether it is finished, as an item with the same prompt; or why it cannot be one.
        score: the score of what was measured; raises RedlineModelError.

    ``failure`` is what went wrong, None if nothing did. ``passes``: the items that were run. In seconds:
    ``queued_s`` and ``inference_s`` of all passes.
    """

    def __init__(
        self,
        item: EncodedItem,
        options: CorrectOptions,
        *,
        encode: Callable[[str, bool], EncodedItem | Exception],
        score: Callable[[Any], float],
    ) -> None:
        self.item: EncodedItem | None = item
        self.failure: Exception | None = None
        self.passes: list[EncodedItem] = []
        self.queued_s = self.inference_s = 0.0
        self._options = options
        self._encode = encode
        self._score = score
        self._texts = [item.text]  # the response, and a rewrite a round
        self._scores: dict[tuple[str, bool], float] = {}
        self._is_complete = item.is_finished
        self._ended: Ended | None = None

    @property
    def wants_rewrite(self) -> bool:
        """Whether the next pass is to rewrite; else it is there for the score alone."""
        return self._ended is None

    def take(self, result: JobResult) -> None:
        """What became of ``item``. Tokenises and reads scores: not for the event loop."""
        assert self.item is not None
        passed, self.item = self.item, None
        self.passes.append(passed)
        self.queued_s += result.queued_s
        self.inference_s += result.inference_s
        for part in (result.output, result.correction):
            if isinstance(part, Exception):
                self.failure = part
                return
        try:
            self._scores[passed.text, passed.is_finished] = self._score(result.output)
        except RedlineModelError as error:
            self.failure = error
            return
        if self.wants_rewrite:
            self._end_or_go_on(result.correction)

    def _end_or_go_on(self, rewrite: Correction) -> None:
        self._ended = self._end_at(rewrite)
        self._texts.append(rewrite.text)
        self._is_complete = rewrite.is_complete
        if self.wants_rewrite or (self._options.score_after and rewrite.text and self._score_after is None):
            encoded = self._encode(rewrite.text, rewrite.is_complete)
            if isinstance(encoded, EncodedItem):
                self.item = encoded
            elif isinstance(encoded, TooLongError):
                self._ended = self._ended or "too_long"
            elif isinstance(encoded, EmptyResponseError):
                self._ended = self._ended or "empty"
            else:
                self.failure = encoded

    def _end_at(self, rewrite: Correction) -> Ended | None:
        """Why ``rewrite`` is the last one, None if it is not."""
        if not rewrite.is_complete:
            return "incomplete"  # half a text is no answer to go on from
        if rewrite.text == self._texts[-1]:
            return "fixed_point"
        if rewrite.text in self._texts:
            return "cycle"
        if not rewrite.text:
            return "empty"
        return "max_rounds" if len(self._texts) == self._options.max_rounds else None

    @property
    def _score_after(self) -> float | None:
        return self._scores.get((self._texts[-1], self._is_complete))

    def answer(self, id: str | None) -> ItemCorrection:
        """All of it, once ``item`` is None and nothing failed. Compares texts: not for the event loop."""
        assert self._ended is not None
        before, after = self._texts[0], readable(self._texts[-1], is_complete=self._ended != "incomplete")
        return ItemCorrection(
            id=id,
            correction=after,
            ended=self._ended,
            rounds=len(self._texts) - 1,
            edits=wire_edits(before, after, by=self._options.edits),
            score_before=self._scores[before, self.passes[0].is_finished],
            score_after=self._score_after,
            truncated=any(item.is_truncated for item in self.passes),
        )
