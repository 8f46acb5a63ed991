"""A causal language model of transformers as the policy of PPO, with its value function and frozen reference."""

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
from redline.ppo.forward import ModelOutputs, PaddedRollouts, RolloutForward
from redline.ppo.gradient_checkpointing import GradientCheckpointing
from redline.ppo.loading import load_model
from redline.ppo.losses import chosen_logprobs, entropy_of
from redline.ppo.non_finite import NonFiniteError
from redline.ppo.preparation import prepare_model
from redline.ppo.protocols import Prompt, Rollout, TokenOutputs
from redline.text.token_spans import token_spans


class CausalPolicy:
    """A ``Policy`` around a causal language model.

    The reference of a PEFT model is the same model without its adapter. Otherwise it is a frozen copy of the model.
    ``model`` is modified and runs a short forward pass, see ``redline.ppo.preparation.prepare_model``.

    Args:
        model: a transformers causal LM, or a PEFT model around one.
        max_new_tokens: token limit of a response.
        temperature: of sampling. The log-probabilities that are optimised are of the same distribution.
        max_prompt_tokens: a longer prompt raises PolicyError; None for no limit.
        critic: ``network`` for a value function with its own parameters, whose gradients do not reach the policy
            (``redline.ppo.critic``); ``linear`` for a head on the policy's hidden states, which is trained with the
            policy and at its learning rate.
        gradient_checkpointing: keep one hidden state per layer for the backward pass and compute the rest again.
        precision: of matrix products in sampling, reference and update. Weights, optimizer, log-probabilities and
            values are always in float32.
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
        """Load a policy from a folder or hub id. With ``lora_rank``, add a LoRA adapter initialised by ``seed``.

        Args:
            precision: ``auto`` measures the CPU (``redline.causal_lm.cpu_precision``); on other devices it is float32.

        Raises:
            PolicyError: the model cannot be loaded, or it needs code from its folder.
        """
        model, tokenizer = load_model(source, device, lora_rank, seed)
        if precision == "auto":
            try:
                precision = cpu_precision().chosen if model.device.type == "cpu" else "float32"
            except ValueError as error:  # REDLINE_CPU_PRECISION has an unknown value
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
        """The token ids that the policy continues, rendered by its chat template if it has one (``PolicyPrompts``).

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
        # generation pads on the left; a model whose outputs depend on padding gets prompts of equal length only
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
        """Log-probabilities, entropies and values, ``(B, T)`` each. Values in padding have no meaning.

        Args:
            entropy_gradient: whether entropies are part of the loss. Their graph keeps five tensors of the vocabulary's
                width.
        """

        def read(states: ModelOutputs, layout: PaddedRollouts) -> tuple[Tensor, Tensor, Tensor]:
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

        def read(states: ModelOutputs, layout: PaddedRollouts) -> list[Tensor]:
            return [chosen_logprobs(self._logprobs(states), layout.targets)]

        with self._as_reference() as reference:
            return self._forward.outputs(reference, rollouts, read)[0]

    def _logprobs(self, states: ModelOutputs) -> Tensor:
        """Log-probabilities of all tokens of the vocabulary under the sampling distribution, ``(B, T, V)``."""
        return (states.logits.float() / self.temperature).log_softmax(-1)

    def _features(self, states: ModelOutputs, layout: PaddedRollouts) -> Tensor:
        """Inputs of the value function before each response token, ``(B, T, F)``."""
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
        """All trained parameters: the model's (with LoRA, the adapter's) and those of the value function."""
        return [p for p in self.model.parameters() if p.requires_grad] + list(self.value_head.parameters())

    def value_parameters(self) -> list[nn.Parameter]:
        """Parameters of the value network. Empty for a linear head, which is trained with the policy."""
        return list(self.value_head.parameters()) if self._has_own_critic else []

    def state(self) -> dict[str, Any]:
        """The trained weights by name, and those of the value function, on the CPU."""
        weights = {n: p.detach().cpu().clone() for n, p in self.model.named_parameters() if p.requires_grad}
        return {"weights": weights, "value_head": copy.deepcopy(self.value_head.state_dict())}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Restore ``state`` in place."""
        named = dict(self.model.named_parameters())
        for name, value in state["weights"].items():
            named[name].copy_(value)
        self.value_head.load_state_dict(state["value_head"])

    def save(self, folder: Path) -> None:
        """Save the policy with its adapter merged and its original generation settings. Raises OSError."""
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
    """``logits``, unchanged. Raises NonFiniteError if one is NaN or inf; -inf excludes a token from sampling."""
    if not bool((logits < torch.inf).all()):
        raise NonFiniteError("the logits of a next token are not finite")
    return logits
