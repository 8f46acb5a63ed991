"""A transformers causal language model as a policy: samples, learns, and remembers where it started."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from redline.causal_lm.cpu_precision import cpu_precision
from redline.causal_lm.positions import source_positions
from redline.causal_lm.rotary import longest_shared, reset_angles
from redline.chat_template import PolicyPrompts, RenderError
from redline.errors import PolicyError
from redline.files.atomic import atomic_folder
from redline.ppo.critic import ValueNetwork, features_width, linear_head, value_features
from redline.ppo.forward import States, pad_rollouts, probe, run, stop_rescaling
from redline.ppo.gradient_checkpointing import GradientCheckpointing
from redline.ppo.loading import load_model
from redline.ppo.non_finite import NonFiniteError
from redline.ppo.protocols import Prompt, Rollout, TokenOutputs
from redline.text.token_spans import token_spans


class CausalPolicy:
    """See ``Policy``. With a PEFT model the reference is the same weights without the adapter, else a frozen copy.

    Args:
        model: a transformers causal LM, or a PEFT model around one.
        temperature: of sampling; the log-probabilities that are optimised are of the same distribution.
        max_prompt_tokens: a longer prompt raises PolicyError; None for no limit.
        critic: ``network``, a value function of its own that does not move the policy (``redline.ppo.critic``); or
            ``linear``, a head on the policy's states, learned with the policy and at its rate.
        gradient_checkpointing: keep one hidden state a layer for the backward pass and compute the others again.
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
        from transformers import GenerationConfig

        self.model = model.eval()  # no dropout: the first ratio of a step is then exactly 1
        self.tokenizer = tokenizer
        self._prompts = PolicyPrompts(tokenizer)
        self.device: torch.device = model.device
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.precision: Literal["float32", "bfloat16"] = precision
        self.max_prompt_tokens = max_prompt_tokens
        self._has_adapter = hasattr(model, "peft_config")
        self._generation_config = model.generation_config
        ends = self._generation_config.eos_token_id
        own = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
        if not own:
            raise PolicyError("the policy's tokenizer has no end-of-sequence token")
        self.end_ids: frozenset[int] = frozenset(int(i) for i in own)
        self._pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.end_ids)
        # the model's own file may ask for top-k, top-p or penalties; PPO needs the plain distribution
        model.generation_config = GenerationConfig(
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(self.end_ids),
            pad_token_id=self._pad_id,
        )
        self._rescale_every = stop_rescaling(model)
        self._limit = longest_shared(model.config.to_dict())
        self._probed = probe(model, self._pad_id, self.end_ids)
        self._has_own_critic = critic == "network"
        self.value_head: nn.Module
        if self._has_own_critic:
            width = features_width(self._probed.embedding_width, self._probed.state_width)
            self.value_head = ValueNetwork(width, self.device)
        else:
            self.value_head = linear_head(self._probed.state_width, self.device)
        self._reference = None if self._has_adapter else copy.deepcopy(model).requires_grad_(False)
        self._recomputing = GradientCheckpointing(model) if gradient_checkpointing else None

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
        """One response a prompt, by ancestral sampling. Raises NonFiniteError where a logit is NaN or infinite."""
        rows = [self.prompt_ids(prompt) for prompt in prompts]
        responses: list[list[int]] = [[]] * len(rows)
        # generation pads on the left; a model that reads padding gets prompts of one length at a time
        lengths = [len(row) for row in rows]
        is_padded = self._probed.padding == "left"
        for part in self._passes([n + self.max_new_tokens for n in lengths], None if is_padded else lengths):
            for n, response in zip(part, self._generate([rows[n] for n in part]), strict=True):
                responses[n] = response
        return [
            self._rollout(prompt, row, response, group)
            for prompt, row, response, group in zip(prompts, rows, responses, groups, strict=True)
        ]

    def _generate(self, rows: Sequence[list[int]]) -> list[list[int]]:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, width - len(row) :] = torch.tensor(row)
            mask[n, width - len(row) :] = 1
        if self._limit is not None:
            reset_angles(self.model.modules())
        with self._precise():
            out = self.model.generate(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device), logits_processor=[_finite]
            )
        responses: list[list[int]] = out[:, width:].tolist()
        return responses

    def _passes(self, totals: Sequence[int], apart: Sequence[int] | None) -> list[list[int]]:
        """Which sequences may share a pass, as lists of places.

        Args:
            totals: tokens of each sequence; beyond the length up to which angles are shared only equals may.
            apart: sequences with different marks may not.
        """
        parts: dict[tuple[int, int], list[int]] = {}
        for n, total in enumerate(totals):
            is_long = self._limit is not None and total > self._limit
            parts.setdefault((total if is_long else 0, 0 if apart is None else apart[n]), []).append(n)
        return list(parts.values())

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

    def _apart(
        self, model: Any, rollouts: Sequence[Rollout], told: Callable[[States, Tensor, Tensor], Sequence[Tensor]]
    ) -> list[Tensor]:
        """``told(states, targets, features)`` of passes that do not depend on each other, joined in order, (B, T) each.

        ``features`` are the value function's.
        """
        totals = [len(r.prompt_ids) + len(r.response_ids) for r in rollouts]
        places = range(len(rollouts)) if self._probed.padding == "none" else None
        parts = self._passes(totals, places)
        longest = max(len(r.response_ids) for r in rollouts)
        joined: list[list[Tensor]] = []
        for part in parts:
            layout = pad_rollouts([rollouts[n] for n in part], self._probed.padding, self._pad_id, self.device)
            if self._limit is not None:
                reset_angles(model.modules())
            with self._precise():
                states = run(model, layout)
            if self._has_own_critic:
                features = value_features(
                    states.embeddings, states.states, layout.mask, layout.columns, self.max_new_tokens
                )
            else:
                index = layout.columns.unsqueeze(-1).expand(-1, -1, states.states.shape[-1])
                features = states.states.gather(1, index).float()
            fields = told(states, layout.targets, features)
            joined.append([nn.functional.pad(field, (0, longest - field.shape[1])) for field in fields])
        if len(parts) == 1:
            return joined[0]
        order = torch.tensor([n for part in parts for n in part], device=self.device).argsort()
        return [torch.cat(fields)[order] for fields in zip(*joined, strict=True)]

    def outputs(self, rollouts: Sequence[Rollout], *, entropy_gradient: bool = False) -> TokenOutputs:
        """Log-probabilities, entropies and values, ``(B, T)`` each; padding holds numbers without meaning.

        Args:
            entropy_gradient: entropies are part of a loss, and not of a report alone; their graph keeps five tensors
                of the vocabulary's width.
        """

        def told(states: States, targets: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            distribution = self._distribution(states)
            with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
                entropy = entropy_of(distribution)
            return _chosen(distribution, targets), entropy, self.value_head(features).squeeze(-1)

        with self._recomputed():
            return TokenOutputs(*self._apart(self.model, rollouts, told))

    @torch.no_grad()
    def reference_logprobs(self, rollouts: Sequence[Rollout]) -> Tensor:
        """Under the starting point, ``(B, T)``."""
        with self._as_reference() as reference:
            return self._apart(
                reference, rollouts, lambda states, targets, _: [_chosen(self._distribution(states), targets)]
            )[0]

    def _distribution(self, states: States) -> Tensor:
        return (states.logits.float() / self.temperature).log_softmax(-1)

    def _precise(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    @contextmanager
    def _recomputed(self) -> Iterator[None]:
        if self._recomputing is None or not torch.is_grad_enabled():
            yield
        else:
            with self._recomputing.on():
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
        model.generation_config = self._generation_config
        if self._rescale_every:
            model.config.rescale_every = self._rescale_every
        try:
            with atomic_folder(folder) as temporary:
                model.save_pretrained(temporary)
                self.tokenizer.save_pretrained(temporary)
        finally:
            model.generation_config = sampling
            if self._rescale_every:
                model.config.rescale_every = 0


def _finite(ids: Tensor, logits: Tensor) -> Tensor:
    """Raises NonFiniteError where the next token cannot be drawn; -inf is a token that cannot come."""
    if not bool((logits < torch.inf).all()):
        raise NonFiniteError("the logits of a next token are not finite")
    return logits


def entropy_of(logprobs: Tensor) -> Tensor:
    """``-sum p log p`` in nats over the last dimension; a probability of 0 adds nothing."""
    return -(logprobs.exp() * logprobs.clamp_min(torch.finfo(logprobs.dtype).min)).sum(-1)


def _chosen(logprobs: Tensor, targets: Tensor) -> Tensor:
    return logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
