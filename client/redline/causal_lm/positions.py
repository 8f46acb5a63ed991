"""The maximum sequence length of a model, from the fields of its configuration."""

from __future__ import annotations

from typing import Any

# Limit of a model without a position table, unless another one is requested.
DEFAULT_TOKENS = 4096

# Fields with a number of positions; the first one that is set is used.
_ANY = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
_SOURCE = ("max_encoder_position_embeddings", "max_source_positions", *_ANY)
_TARGET = ("max_decoder_position_embeddings", "max_target_positions", *_ANY)
# Models with relative positions only: the positions in their configurations are not a limit.
_UNLIMITED = {"t5", "mt5", "umt5", "longt5", "switch_transformers", "bloom", "xlnet", "transfo-xl"}
# Position ids start after the padding token's id, so the table has fewer usable positions.
_COUNTED_FROM_PADDING = {
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod", "data2vec-text"),
    *("longformer", "mpnet", "ibert", "luke", "esm", "markuplm", "lilt"),
}


def source_positions(config: Any) -> int | None:
    """Positions of the input sequence (of the encoder, if there is one). None: there is no limit."""
    if config.is_encoder_decoder:
        return _positions(_part(config, "encoder"), _SOURCE)
    return _positions(config.get_text_config(), _ANY)


def target_positions(config: Any) -> int | None:
    """Positions of an encoder-decoder model's decoder. None: there is no limit."""
    return _positions(_part(config, "decoder"), _TARGET)


def token_limit(config: Any, requested: int | None = None) -> int:
    """The maximum number of tokens: the configuration's positions, or ``requested`` if that is less.

    For models without a limit it is ``requested``, by default 4096.
    """
    positions = source_positions(config)
    return min(positions or requested or DEFAULT_TOKENS, requested or positions or DEFAULT_TOKENS)


def _part(config: Any, name: str) -> Any:
    """The configuration of an encoder or a decoder; most models have one configuration for both."""
    part = getattr(config, name, None)
    return config if part is None or not hasattr(part, "get_text_config") else part.get_text_config()


def _positions(config: Any, fields: tuple[str, ...]) -> int | None:
    if config.model_type in _UNLIMITED:
        return None
    for name in fields:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:  # some use -1 for no limit
            if config.model_type in _COUNTED_FROM_PADDING:
                value -= (getattr(config, "pad_token_id", None) or 0) + 1
            return max(1, value)
    return None
