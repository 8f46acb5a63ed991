"""``POST /get_reward`` in three forms: OpenRLHF's, align-anything's and slime's; told apart by their fields."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Discriminator, Tag, model_validator

from redline.text.chat_markup import (
    ParsedConversation,
    strip_ending,
    to_score_item,
)
from redline.wire import ChatMessage, FirstError, ScoreItem, Text
from redline_service.compat.base import CompatBody, ConversationParser, ScoredBatch, Texts

# OpenRLHF clamps what it was sent to this range, after the group's baseline
_CLAMP = 10.0


class OpenRLHFBody(CompatBody):
    """``{"query": [prompt + response], "prompts": [prompt], "labels": [...]}``; special tokens are in the texts.

    Read in OpenRLHF 0.11.2, ``utils/agent.py``: a sample a request, thousands at once, 180 s, five tries; 0.9 sends
    whole batches, and both send empty lists to all but one of several URLs. Older ones send ``query`` alone.
    """

    query: Texts
    prompts: Texts | None = None

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if self.prompts is not None and len(self.prompts) != len(self.query):
            raise ValueError(f"{len(self.prompts)} prompts for {len(self.query)} queries")
        return self

    def items(self, reader: ConversationParser) -> list[ScoreItem]:
        """Raises PromptBoundaryError."""
        if self.prompts is None:
            return [to_score_item(reader.parse_conversation(query)) for query in self.query]
        pairs = zip(self.query, self.prompts, strict=True)
        return [to_score_item(reader.parse_query_and_prompt(query, prompt)) for query, prompt in pairs]

    def reply(self, scored: ScoredBatch) -> Any:
        """One number a sample everywhere: a ragged value would break the caller's logging."""
        return {
            "rewards": scored.scores,
            "scores": scored.scores,
            "extra_logs": {
                "redline_tokens": [float(len(item.rewards)) for item in scored.items],
                "redline_blamed_share": [_negative_share(item.rewards) for item in scored.items],
                "redline_beyond_clamp": [float(abs(score) > _CLAMP) for score in scored.scores],
            },
        }


def _negative_share(rewards: list[float]) -> float:
    return sum(reward < 0 for reward in rewards) / max(1, len(rewards))


class AlignAnythingBody(CompatBody):
    """``{"prompts": [...], "responses": [...]}``; plain texts, a micro batch a request, 100 s, three tries.

    Read in align-anything 3f9decc, ``models/remote_rm/remote_rm_client.py``.
    """

    prompts: Texts
    responses: Texts

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.prompts) != len(self.responses):
            raise ValueError(f"{len(self.prompts)} prompts for {len(self.responses)} responses")
        return self

    def items(self, reader: ConversationParser) -> list[ScoreItem]:
        """Each pair as it is."""
        # no template has touched them: what looks like markup is what somebody wrote
        pairs = zip(self.prompts, self.responses, strict=True)
        return [to_score_item(ParsedConversation(prompt, response, True)) for prompt, response in pairs]

    def reply(self, scored: ScoredBatch) -> Any:
        """A number a response."""
        return {"rewards": scored.scores}


class SlimeBody(CompatBody):
    """``{"prompt": text or messages, "response": text, "label": any}``; end tokens are in the response.

    Read in slime 0.3.1, ``rollout/rm_hub``: a sample a request, 64 connections, 120 s, ten tries. The whole reply
    becomes the reward: a number, unless the loop is run with ``--reward-key``.
    """

    prompt: Text | Annotated[list[ChatMessage], FirstError]
    response: Text

    def items(self, reader: ConversationParser) -> list[ScoreItem]:
        """Raises PromptBoundaryError."""
        if isinstance(self.prompt, str):
            return [to_score_item(reader.parse_prompt_and_response(self.prompt, self.response))]
        return [to_score_item(ParsedConversation(self.prompt, *strip_ending(self.response, reader.ends)))]

    def reply(self, scored: ScoredBatch) -> Any:
        """The number alone."""
        return scored.scores[0]


def _form(body: Any) -> str | None:
    fields = set(body) if isinstance(body, dict) else set()
    forms = {"openrlhf": {"query"}, "align-anything": {"prompts", "responses"}, "slime": {"prompt", "response"}}
    return next((name for name, needed in forms.items() if needed <= fields), None)


GetRewardBody = Annotated[
    Annotated[OpenRLHFBody, Tag("openrlhf")]
    | Annotated[AlignAnythingBody, Tag("align-anything")]
    | Annotated[SlimeBody, Tag("slime")],
    Discriminator(
        _form,
        custom_error_type="unknown_form",
        custom_error_message="the body must hold 'query', or 'prompts' and 'responses', or 'prompt' and 'response'",
    ),
]
