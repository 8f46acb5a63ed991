"""A transformers causal language model as a policy: samples, learns, and remembers where it started."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from redline.causal_lm.cpu_precision import cpu_precision
from redline.causal_lm.positions import source_positions
from redline.chat_template import PolicyPrompts, RenderError
from redline.errors import PolicyError
from redline.files.atomic import atomic_folder
from redline.ppo.critic import ValueNetwork, features_width, linear_head, value_features
from redline.ppo.forward import PaddedRollouts, RolloutForward, States
from redline.ppo.gradient_checkpointing import GradientCheckpointing
from redline.ppo.loading import load_model
from redline.ppo.losses import chosen_logprobs, entropy_of
from redline.ppo.non_finite import NonFiniteError
from redline.ppo.preparation import prepare_model
from redline.ppo.protocols import Prompt, Rollout, TokenOutputs
from redline.text.token_spans import token_spans


class CausalPolicy:
    """See ``Policy``. With a PEFT model the reference is the same weights without the adapter, else a frozen copy.

    ``model`` is changed: see ``redline.ppo.preparation.prepare_model``, which also runs a short forward pass.

    Args:
        model: a transformers causal LM, or a PEFT model around one.
        temperature: of sampling; the log-probabilities that are optimised are of the same distribution.
        max_prompt_tokens: a longer prompt raises PolicyError; None for no limit.
        critic: ``network``, a value function of its own that does not move the policy (``redline.ppo.critic``); or
            ``linear``, a head on the policy's states, learned with the policy and at its rate.
        gradient_checkpointing: keep one hidden state per layer for the backward pass and compute the others again.
        precision: of matrix products in sampling, reference and update. Weights, optimizer, logarithms of
            probabilities and values are in float32 either way.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        max_prompt_tokens: int | None = None,
        critic: Literal["network", "linear"] = "network",
        gradient_checkpointing: bool = False,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self._prepared = prepare_model(model, tokenizer, max_new_tokens=max_new_tokens, temperature=temperature)
        self.model = model
        self.tokenizer = tokenizer
        self._prompts = PolicyPrompts(tokenizer)
        self.device: torch.device = model.device
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.precision: Literal["float32", "bfloat16"] = precision
        self.max_prompt_tokens = max_prompt_tokens
        self._has_adapter = hasattr(model, "peft_config")
        self.end_ids = self._prepared.end_ids
        self._forward = RolloutForward(self._prepared, self.device, has_bfloat16=precision == "bfloat16")
        self._has_own_critic = critic == "network"
        self.value_head: nn.Module
        if self._has_own_critic:
            width = features_width(self._prepared.embedding_width, self._prepared.state_width)
            self.value_head = ValueNetwork(width, self.device)
        else:
            self.value_head = linear_head(self._prepared.state_width, self.device)
        self._reference = None if self._has_adapter else copy.deepcopy(model).requires_grad_(False)
        self._checkpointing = GradientCheckpointing.enable(model) if gradient_checkpointing else None

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str = "auto",
        lora_rank: int | None = None,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        critic: Literal["network", "linear"] = "network",
        gradient_checkpointing: bool = False,
        precision: Literal["auto", "float32", "bfloat16"] = "float32",
        seed: int = 0,
    ) -> CausalPolicy:
        """A policy from a folder or hub id, with a fresh LoRA adapter, drawn by ``seed``, if ``lora_rank`` is given.

        Args:
            precision: ``auto`` measures the CPU (``redline.causal_lm.cpu_precision``), and takes float32 elsewhere.

        Raises:
            PolicyError: it cannot be loaded, or needs code of its own.
        """
        model, tokenizer = load_model(source, device, lora_rank, seed)
        if precision == "auto":
            try:
                precision = cpu_precision().chosen if model.device.type == "cpu" else "float32"
            except ValueError as error:  # the environment asks for another
                raise PolicyError(str(error)) from error
        positions = source_positions(model.config)
        return cls(
            model,
            tokenizer,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            max_prompt_tokens=None if positions is None else positions - max_new_tokens,
            critic=critic,
            gradient_checkpointing=gradient_checkpointing,
            precision=precision,
        )

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The ids the policy continues: through its chat template where it has one, see ``PolicyPrompts``.

        Raises:
            PolicyError: the prompt leaves no room for a response, or the chat template refuses it.
        """
        try:
            ids = self._prompts.ids(prompt)
        except RenderError as error:
            raise PolicyError(f"the policy cannot continue a prompt: {error}") from error
        if self.max_prompt_tokens is not None and len(ids) > self.max_prompt_tokens:
            text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
            raise PolicyError(
                f"a prompt has {len(ids)} tokens; the policy has room for {self.max_prompt_tokens}: {text[:60]!r}"
            )
        return ids

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], groups: Sequence[int]) -> list[Rollout]:
        """One response per prompt, by ancestral sampling. Raises NonFiniteError if a logit is NaN or infinite."""
        rows = [self.prompt_ids(prompt) for prompt in prompts]
        responses: list[list[int]] = [[]] * len(rows)
        # generation pads on the left; a model that reads padding gets prompts of one length at a time
        lengths = [len(row) for row in rows]
        is_padded = self._prepared.padding == "left"
        totals = [n + self.max_new_tokens for n in lengths]
        for group in self._forward.groups(totals, None if is_padded else lengths):
            for n, response in zip(group, self._generate([rows[n] for n in group]), strict=True):
                responses[n] = response
        return [
            self._rollout(prompt, row, response, group)
            for prompt, row, response, group in zip(prompts, rows, responses, groups, strict=True)
        ]

    def _generate(self, rows: Sequence[list[int]]) -> list[list[int]]:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._prepared.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, width - len(row) :] = torch.tensor(row)
            mask[n, width - len(row) :] = 1
        self._forward.reset_angles(self.model)
        with self._forward.precision():
            out = self.model.generate(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device), logits_processor=[_check_logits]
            )
        responses: list[list[int]] = out[:, width:].tolist()
        return responses

    def _rollout(self, prompt: Prompt, row: list[int], response: list[int], group: int) -> Rollout:
        end = next((n for n, token in enumerate(response) if token in self.end_ids), None)
        is_finished = end is not None
        ids = response if end is None else response[: end + 1]

        def decode(part: Sequence[int]) -> str:
            return str(self.tokenizer.decode(list(part), skip_special_tokens=False))

        text, spans = token_spans(decode, ids[:-1] if is_finished else ids)
        if is_finished:
            spans = [*spans, (len(text), len(text))]
        return Rollout(prompt, tuple(row), tuple(ids), text, tuple(spans), is_finished, group)

    def outputs(self, rollouts: Sequence[Rollout], *, entropy_gradient: bool = False) -> TokenOutputs:
        """Log-probabilities, entropies and values, ``(B, T)`` each; padding holds numbers without meaning.

        Args:
            entropy_gradient: entropies are part of a loss, and not of a report alone; their graph keeps five tensors
                of the vocabulary's width.
        """

        def read(states: States, layout: PaddedRollouts) -> tuple[Tensor, Tensor, Tensor]:
            values = self.value_head(self._features(states, layout)).squeeze(-1)
            logprobs = self._logprobs(states)
            with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
                entropy = entropy_of(logprobs)
            return chosen_logprobs(logprobs, layout.targets), entropy, values

        with self._checkpointed():
            return TokenOutputs(*self._forward.outputs(self.model, rollouts, read))

    @torch.no_grad()
    def reference_logprobs(self, rollouts: Sequence[Rollout]) -> Tensor:
        """Log-probabilities under the reference, ``(B, T)``."""

        def read(states: States, layout: PaddedRollouts) -> list[Tensor]:
            return [chosen_logprobs(self._logprobs(states), layout.targets)]

        with self._as_reference() as reference:
            return self._forward.outputs(reference, rollouts, read)[0]

    def _logprobs(self, states: States) -> Tensor:
        """Of every token of the vocabulary, ``(B, T, V)``, under the distribution that is sampled from."""
        return (states.logits.float() / self.temperature).log_softmax(-1)

    def _features(self, states: States, layout: PaddedRollouts) -> Tensor:
        """What the value function reads before each response token, ``(B, T, F)``."""
        if self._has_own_critic:
            return value_features(states.embeddings, states.states, layout.mask, layout.columns, self.max_new_tokens)
        index = layout.columns.unsqueeze(-1).expand(-1, -1, states.states.shape[-1])
        return states.states.gather(1, index).float()

    @contextmanager
    def _checkpointed(self) -> Iterator[None]:
        if self._checkpointing is None or not torch.is_grad_enabled():
            yield
        else:
            with self._checkpointing.on():
                yield

    @contextmanager
    def _as_reference(self) -> Iterator[Any]:
        if self._has_adapter:
            with self.model.disable_adapter():
                yield self.model
        else:
            yield self._reference

    def parameters(self) -> list[nn.Parameter]:
        """What learns: the model's weights (its adapter's, with LoRA) and the value head."""
        return [p for p in self.model.parameters() if p.requires_grad] + list(self.value_head.parameters())

    def value_parameters(self) -> list[nn.Parameter]:
        """Those of a value function of its own; none of a linear head, which learns with the policy."""
        return list(self.value_head.parameters()) if self._has_own_critic else []

    def state(self) -> dict[str, Any]:
        """Learned weights by name, and the value head, on the CPU."""
        weights = {n: p.detach().cpu().clone() for n, p in self.model.named_parameters() if p.requires_grad}
        return {"weights": weights, "value_head": copy.deepcopy(self.value_head.state_dict())}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Put ``state`` back, in place."""
        named = dict(self.model.named_parameters())
        for name, value in state["weights"].items():
            named[name].copy_(value)
        self.value_head.load_state_dict(state["value_head"])

    def save(self, folder: Path) -> None:
        """The policy alone, adapter merged, with its own generation settings. Raises OSError."""
        model = copy.deepcopy(self.model).merge_and_unload() if self._has_adapter else self.model
        sampling = model.generation_config
        model.generation_config = self._prepared.own_generation_config
        if self._prepared.own_rescale_every:
            model.config.rescale_every = self._prepared.own_rescale_every
        try:
            with atomic_folder(folder) as temporary:
                model.save_pretrained(temporary)
                self.tokenizer.save_pretrained(temporary)
        finally:
            model.generation_config = sampling
            if self._prepared.own_rescale_every:
                model.config.rescale_every = 0


def _check_logits(ids: Tensor, logits: Tensor) -> Tensor:
    """``logits``. Raises NonFiniteError if the next token cannot be drawn; -inf is a token that cannot come."""
    if not bool((logits < torch.inf).all()):
        raise NonFiniteError("the logits of a next token are not finite")
    return logits
