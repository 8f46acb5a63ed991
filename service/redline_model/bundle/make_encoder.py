"""Make the encoder of a model: the arrangement for its architecture, and its length limits."""

from __future__ import annotations

from typing import Any

from redline.causal_lm.positions import source_positions, target_positions
from redline_model.encoding.conversation_encoder import ConversationEncoder
from redline_model.encoding.encoder import Arrangement, Encoder
from redline_model.encoding.tokenizer_identity import check_tokenizer_size
from redline_model.errors import UnsupportedError
from redline_model.kinds import kind_spec
from redline_model.options import Template


def arrangement_of(kind: str, config: Any) -> Arrangement:
    """The arrangement of an item's parts for a model of this kind and architecture."""
    if kind_spec(kind).is_decoder_only:
        return "prompt_response"
    return "encoder_decoder" if config.is_encoder_decoder else "rewrite"


def make_encoder(kind: str, config: Any, tokenizer: Any, template: Template, max_tokens: int | None) -> Encoder:
    """The encoder of a model; training and scoring use the same one.

    Args:
        config: the model's transformers configuration.
        max_tokens: the longest sequence to read; less if the configuration says so, None for no limit.

    Raises:
        UnsupportedError: the tokenizer has more tokens than the model, is slow, or has no end-of-sequence token.
    """
    check_tokenizer_size(tokenizer, config)
    arrangement = arrangement_of(kind, config)
    if template.style == "conversation" and not kind_spec(kind).supports_conversation_style:
        raise UnsupportedError(f"a template of style conversation works with kind scalar, not with {kind}")
    target_tokens = target_positions(config) if arrangement == "encoder_decoder" else None
    if max_tokens is not None:
        max_tokens = min(max_tokens, source_positions(config) or max_tokens)
    encoder = ConversationEncoder if template.style == "conversation" else Encoder
    return encoder(
        tokenizer,
        template,
        arrangement=arrangement,
        vocab_size=config.get_text_config().vocab_size,
        max_tokens=max_tokens,
        max_target_tokens=target_tokens,
    )
