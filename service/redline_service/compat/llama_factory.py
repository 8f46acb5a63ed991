"""``POST /v1/score/evaluation``, as LLaMA-Factory asks with ``reward_model_type: api``."""

from __future__ import annotations

from typing import Any

from redline.text.chat_markup import to_score_item
from redline.wire import ScoreItem
from redline_service.compat.base import CompatBody, ConversationParser, ScoredBatch, Texts


class LLaMAFactoryBody(CompatBody):
    """``{"model": ..., "messages": [whole rendered conversations]}``; special tokens are in the texts.

    Read in LLaMA-Factory 0.9.6.dev, ``train/ppo/ppo_utils.py``: no timeout, no second try, no look at the status.
    """

    messages: Texts

    def items(self, reader: ConversationParser) -> list[ScoreItem]:
        """Raises PromptBoundaryError."""
        return [to_score_item(reader.parse_conversation(text)) for text in self.messages]

    def reply(self, scored: ScoredBatch) -> Any:
        """A number a conversation."""
        return {
            "id": f"scoreval-{scored.id}",
            "object": "score.evaluation",
            "model": scored.model,
            "scores": scored.scores,
        }
