"""The state of one response that is corrected in rounds: its rewrites so far and the item to run next. No model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redline.wire.correction import CorrectOptions, Ended, ItemCorrection
from redline_model.correction.rewriter import Correction
from redline_model.encoding.items import EncodedItem
from redline_model.errors import EmptyResponseError, RedlineModelError, TooLongError
from redline_service.correction.wire_edits import wire_edits, without_cut_character
from redline_service.scheduling.jobs import JobResult


class CorrectionState:
    """Run ``next_item``, with a rewrite if ``wants_rewrite``, and ``add_result``; repeat until ``next_item`` is None.

    Args:
        item: the encoded response of the request.
        encode: encodes a text, and whether it is finished, as an item with the same prompt; returns the error if the
            text cannot be encoded.
        score: the score of a forward output and the correction, if there is one; raises RedlineModelError.

    ``failure``: the error of this item, None if there is none. ``items_run``: the items that were run.
    ``queued_s`` and ``inference_s``: seconds, summed over all of them.
    """

    def __init__(
        self,
        item: EncodedItem,
        options: CorrectOptions,
        *,
        encode: Callable[[str, bool], EncodedItem | Exception],
        score: Callable[[Any, Correction | None], float],
    ) -> None:
        self.next_item: EncodedItem | None = item
        self.failure: Exception | None = None
        self.items_run: list[EncodedItem] = []
        self.queued_s = self.inference_s = 0.0
        self._options = options
        self._encode = encode
        self._score = score
        self._texts = [item.text]  # the response, then the rewrite of each round
        self._scores: dict[tuple[str, bool], float] = {}  # by text and whether it is finished
        self._is_complete = item.is_finished
        self._ended: Ended | None = None

    @property
    def wants_rewrite(self) -> bool:
        """Whether the next item is to be rewritten; otherwise it is run for its score only."""
        return self._ended is None

    def add_result(self, result: JobResult) -> None:
        """Record the result of ``next_item`` and choose the one after it.

        It tokenises and computes scores, so do not call it on the event loop.
        """
        assert self.next_item is not None
        item, self.next_item = self.next_item, None
        self.items_run.append(item)
        self.queued_s += result.queued_s
        self.inference_s += result.inference_s
        for part in (result.output, result.correction):
            if isinstance(part, Exception):
                self.failure = part
                return
        try:
            self._scores[item.text, item.is_finished] = self._score(result.output, result.correction)
        except RedlineModelError as error:
            self.failure = error
            return
        if self.wants_rewrite:
            self._add_rewrite(result.correction)

    def _add_rewrite(self, rewrite: Correction) -> None:
        self._ended = self._reason_to_end(rewrite)
        self._texts.append(rewrite.text)
        self._is_complete = rewrite.is_complete
        if self.wants_rewrite or (self._options.score_after and rewrite.text and self._score_after is None):
            encoded = self._encode(rewrite.text, rewrite.is_complete)
            if isinstance(encoded, EncodedItem):
                self.next_item = encoded
            elif isinstance(encoded, TooLongError):
                self._ended = self._ended or "too_long"
            elif isinstance(encoded, EmptyResponseError):
                self._ended = self._ended or "empty"
            else:
                self.failure = encoded

    def _reason_to_end(self, rewrite: Correction) -> Ended | None:
        """Why ``rewrite`` is the last round; None if another round follows."""
        if not rewrite.is_complete:
            return "incomplete"  # the rest of the text is missing, so it cannot be rewritten again
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

    def to_wire(self, id: str | None) -> ItemCorrection:
        """The result of the item, once ``next_item`` is None and ``failure`` is None.

        It compares texts, so do not call it on the event loop.
        """
        assert self._ended is not None
        before = self._texts[0]
        after = without_cut_character(self._texts[-1], is_complete=self._ended != "incomplete")
        return ItemCorrection(
            id=id,
            correction=after,
            ended=self._ended,
            rounds=len(self._texts) - 1,
            edits=wire_edits(before, after, by=self._options.edits),
            score_before=self._scores[before, self.items_run[0].is_finished],
            score_after=self._score_after,
            truncated=any(item.is_truncated for item in self.items_run),
        )
