"""Small models in the transformers format, built by the tests without downloads, and common fixtures."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("REDLINE_CPU_PRECISION", "float32")  # tolerances are for float32 on every machine

from pathlib import Path
from typing import Any

import pytest
import torch

from redline_model.bundle.bundle import Bundle, save_bundle
from redline_model.bundle.make_encoder import make_encoder
from redline_model.bundle.manifest import Manifest
from redline_model.kinds import make_scorer
from redline_model.options import Extraction, Template
from redline_model.scorer import Scorer
from redline_model.scorers.dpo import REFERENCE, DPOScorer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with long tests first, so that two workers finish at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("loop") is None)


TEXTS = [
    "How do I reset my router?",
    "To reset your router, open the network panel, hold the round button and wait ten seconds.",
    "I am sorry, but I cannot help with that.",
    "Rewrite your answer so that it is the best possible answer. Reply with the answer alone.",
    "Grüße aus Köln! 世界 🙂 naïve café",
    "The quick brown fox jumps over the lazy dog and then sleeps for three hours.",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(chat: bool = True) -> Any:
    """A byte-level BPE tokenizer. Its padding token is the end token, as in many released models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def build_causal(vocab_size: int, seed: int = 0, positions: int = 512) -> Any:
    """A two-layer Llama with weights large enough that the most likely token varies."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=positions,
        initializer_range=0.3,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def build_encoder_decoder(vocab_size: int, seed: int = 0) -> Any:
    """A two-layer T5."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocab_size,
        d_model=48,
        d_kv=12,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        eos_token_id=0,
        pad_token_id=0,
        decoder_start_token_id=0,
        initializer_factor=2.0,
    )
    return T5ForConditionalGeneration(config).eval()


def build_scalar(vocab_size: int, seed: int = 0) -> Any:
    """A two-layer Llama with one label."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=0,
        pad_token_id=0,
        num_labels=1,
    )
    return LlamaForSequenceClassification(config).eval()


def save_base(folder: Path) -> Path:
    """Write a decoder-only base model with its tokenizer to ``folder``."""
    tokenizer = build_tokenizer()
    build_causal(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_scorer(
    kind: str,
    model: Any,
    tokenizer: Any,
    max_tokens: int | None = 512,
    template: Template | None = None,
    prefix_cache_tokens: int = 0,
    extraction: Extraction | None = None,
    **own: Any,
) -> Scorer[Any]:
    """A scorer around a model, as a bundle would build it. ``own``: arguments of the scorer's class."""
    chosen = template or Template.fitting(tokenizer)
    encoder = make_encoder(kind, model.config, tokenizer, chosen, max_tokens)
    extraction = extraction or Extraction()
    return make_scorer(kind, model, encoder, extraction, prefix_cache_tokens=prefix_cache_tokens, **own)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """With a chat template."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def plain_tokenizer() -> Any:
    """Without a chat template."""
    return build_tokenizer(chat=False)


@pytest.fixture(scope="session")
def causal_scorer(tokenizer: Any) -> Scorer[Any]:
    """Decoder-only seq2seq."""
    return build_scorer("seq2seq", build_causal(len(tokenizer)), tokenizer)


@pytest.fixture(scope="session")
def encoder_decoder_scorer(plain_tokenizer: Any) -> Scorer[Any]:
    """Encoder-decoder seq2seq."""
    return build_scorer("seq2seq", build_encoder_decoder(len(plain_tokenizer)), plain_tokenizer)


@pytest.fixture(scope="session")
def scalar_scorer(tokenizer: Any) -> Scorer[Any]:
    """Bradley-Terry."""
    return build_scorer("scalar", build_scalar(len(tokenizer)), tokenizer)


def padded(model: Any) -> Any:
    """The model with eager attention, which does not support packing, so that its passes are padded."""
    model.set_attn_implementation("eager")
    return model


def build_dpo(tokenizer: Any, *, beta: float = 0.5, is_padded: bool = False, seeds: tuple[int, int] = (1, 2)) -> Any:
    """A DPO scorer around two small models, the policy and its reference."""
    models = [build_causal(len(tokenizer), seed) for seed in seeds]
    policy, reference = [padded(model) for model in models] if is_padded else models
    template = Template.of_policy(tokenizer)
    return build_scorer("dpo", policy, tokenizer, template=template, reference=reference, beta=beta)


def write_bundle(folder: Path, scorer: Scorer[Any], kind: str = "seq2seq") -> Bundle:
    """The scorer as a bundle on disk, loaded again."""
    encoder = scorer.encoder
    manifest = Manifest(
        kind=kind,
        base_model="tiny",
        max_tokens=encoder.max_tokens or 512,
        template=encoder.template,
        extraction=scorer.extraction,
        beta=scorer.beta if isinstance(scorer, DPOScorer) else None,
    )
    parts = {REFERENCE: scorer.models[1]} if isinstance(scorer, DPOScorer) else {}
    save_bundle(folder, manifest, scorer.model, encoder.tokenizer, submodels=parts)
    return Bundle.load(folder)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, causal_scorer: Scorer[Any]) -> Bundle:
    """A seq2seq bundle on disk."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "causal", causal_scorer)


@pytest.fixture(scope="session")
def scalar_bundle(tmp_path_factory: pytest.TempPathFactory, scalar_scorer: Scorer[Any]) -> Bundle:
    """A scalar bundle on disk."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "scalar", scalar_scorer, "scalar")
