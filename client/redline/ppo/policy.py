"""A transformers causal language model as a policy: samples, learns, and remembers where it started."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redline.errors import CommandError
from redline.files import atomic_folder
from redline.ppo.protocols import Prompt, Rollout, TokenOutputs
from redline.rendering import PolicyPrompts, RenderError
from redline.token_spans import token_spans


class CausalPolicy:
    """See ``Policy``. With a PEFT model the reference is the same weights without the adapter, else a frozen copy.

    Args:
        model: a transformers causal LM, or a PEFT model around one.
        temperature: of sampling; the log-probabilities that are optimised are of the same distribution.
        max_prompt_tokens: a longer prompt raises CommandError; None for no limit.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        max_prompt_tokens: int | None = None,
    ) -> None:
        from transformers import GenerationConfig

        self.model = model.eval()  # no dropout: the first ratio of a step is then exactly 1
        self.tokenizer = tokenizer
        self._prompts = PolicyPrompts(tokenizer)
        self.device: torch.device = model.device
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.max_prompt_tokens = max_prompt_tokens
        self._has_adapter = hasattr(model, "peft_config")
        self._generation_config = model.generation_config
        ends = self._generation_config.eos_token_id
        own = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
        if not own:
            raise CommandError("the policy's tokenizer has no end-of-sequence token")
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
        width = model.config.get_text_config().hidden_size
        self.value_head = nn.Linear(width, 1, device=self.device, dtype=torch.float32)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self._reference = None if self._has_adapter else copy.deepcopy(model).requires_grad_(False)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str = "auto",
        lora_rank: int | None = None,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
    ) -> CausalPolicy:
        """A policy from a folder or hub id, with a fresh LoRA adapter if ``lora_rank`` is given.

        Raises:
            CommandError: it cannot be loaded, or needs code of its own.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                str(source), dtype=torch.float32, trust_remote_code=False, weights_only=True
            ).to(name)
        except Exception as error:  # damaged files raise anything
            if "trust_remote_code" in str(error):
                raise CommandError(
                    f"{source} needs code of its own, and Redline does not run code from model folders"
                ) from error
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CommandError(f"no policy can be loaded from {source}: {reason}") from error
        if lora_rank is not None:
            from peft import LoraConfig, TaskType, get_peft_model

            model = get_peft_model(
                model,
                LoraConfig(
                    task_type=TaskType.CAUSAL_LM,
                    r=lora_rank,
                    lora_alpha=2 * lora_rank,
                    target_modules="all-linear",
                ),
            )
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        return cls(
            model,
            tokenizer,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            max_prompt_tokens=None if positions is None else positions - max_new_tokens,
        )

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The ids the policy continues: through its chat template where it has one, see ``PolicyPrompts``.

        Raises:
            CommandError: the prompt leaves no room for a response, or the chat template refuses it.
        """
        try:
            ids = self._prompts.ids(prompt)
        except RenderError as error:
            raise CommandError(f"the policy cannot continue a prompt: {error}") from error
        if self.max_prompt_tokens is not None and len(ids) > self.max_prompt_tokens:
            text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
            raise CommandError(
                f"a prompt has {len(ids)} tokens; the policy has room for {self.max_prompt_tokens}: {text[:60]!r}"
            )
        return ids

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], groups: Sequence[int]) -> list[Rollout]:
        """One response a prompt, by ancestral sampling."""
        rows = [self.prompt_ids(prompt) for prompt in prompts]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, width - len(row) :] = torch.tensor(row)
            mask[n, width - len(row) :] = 1
        out = self.model.generate(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        responses = out[:, width:].tolist()
        return [
            self._rollout(prompt, row, response, group)
            for prompt, row, response, group in zip(prompts, rows, responses, groups, strict=True)
        ]

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

    def _forward(self, model: Any, rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor, Tensor]:
        """``(logits (B, T, V), hidden (B, T, H), targets (B, T))`` of the response tokens.

        Prompts are padded on the left and responses on the right, so the responses stand in the same columns
        and no logits are made for prompts.
        """
        before = max(len(r.prompt_ids) for r in rollouts)
        after = max(len(r.response_ids) for r in rollouts)
        ids = torch.full((len(rollouts), before + after), self._pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for n, rollout in enumerate(rollouts):
            start, end = before - len(rollout.prompt_ids), before + len(rollout.response_ids)
            ids[n, start:end] = torch.tensor(rollout.prompt_ids + rollout.response_ids)
            mask[n, start:end] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            use_cache=False,
            output_hidden_states=True,
            logits_to_keep=after + 1,
        )
        logits = out.logits[:, -after - 1 : -1].float() / self.temperature
        hidden = out.hidden_states[-1][:, before - 1 : before + after - 1]
        return logits, hidden, ids[:, before:]

    def outputs(self, rollouts: Sequence[Rollout]) -> TokenOutputs:
        """Log-probabilities, entropies and values, ``(B, T)`` each; padding holds numbers without meaning."""
        logits, hidden, targets = self._forward(self.model, rollouts)
        distribution = logits.log_softmax(-1)
        logprobs = distribution.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        entropy = -(distribution.exp() * distribution).sum(-1)
        return TokenOutputs(logprobs, entropy, self.value_head(hidden.float()).squeeze(-1))

    @torch.no_grad()
    def reference_logprobs(self, rollouts: Sequence[Rollout]) -> Tensor:
        """Under the starting point, ``(B, T)``."""
        with self._as_reference() as reference:
            logits, _, targets = self._forward(reference, rollouts)
        return logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)

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
        try:
            with atomic_folder(folder) as temporary:
                model.save_pretrained(temporary)
                self.tokenizer.save_pretrained(temporary)
        finally:
            model.generation_config = sampling
