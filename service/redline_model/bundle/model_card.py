"""The model card that is written into every bundle."""

from __future__ import annotations

from typing import Any

_CARD = """\
---
library_name: redline
tags: [reward-model, rlhf, {kind}]
base_model: {base_model}
---

# A Redline reward model ({kind})

{what}

- Base model: `{base_model}`
- Longest sequence read: {max_tokens} tokens
- Default reading: mode {mode}, aggregate `{aggregate}`
- Made by Redline {version} on {created_at}

## Use

```
redline serve THIS_FOLDER
redline score --prompt "..." --response "..."
```

{folder} `redline.json` adds the prompt
template, how rewards are read, the calibration of the score scale, and a digest of every file.

## Fitted on

{data}

## {measurements}

{metrics}

## Limits

A reward model knows the preferences it was fitted on, with their biases, and nothing else. Its scores mean
little on prompts unlike those; an optimised policy will find where they are wrong. Watch a score it was not
trained on, and the length and the KL divergence of the policy.
"""

_DERIVED = "Measurements (on the pairs that the score scale was fitted on)"
_WHAT = {
    "seq2seq": "It reads a prompt and a response and writes the better response (arXiv 2409.00162). Tokens that "
    "agree with what it would write earn reward, tokens that diverge lose it.",
    "scalar": "A Bradley-Terry model (arXiv 2009.01325): one number for a whole response, on its last token.",
    "red": "A Bradley-Terry model read at every token (reward redistribution, arXiv 2411.08302): each token earns what "
    "it adds to the score of the response so far.",
    "dpo": "A policy fitted by direct preference optimisation (arXiv 2305.18290); each token earns `beta` times its "
    "log-probability against the model that the policy started from, in `reference/`.",
    "ensemble": "Several reward models as one (arXiv 2401.16635), each a bundle of its own in `members/`.",
    "length_calibrated": "The reward model in `inner/` less what its scores owe to a response's length (arXiv "
    "2409.17407).",
}
# a format over the manifest's extraction; kinds that are not here have no modes
_MODES = {"seq2seq": "`{mode}`", "ensemble": "as its members'", "length_calibrated": "as that of `inner/`"}
_FOLDERS = {
    "dpo": "The folder is an ordinary transformers model, the policy, and so is `reference/`;",
    "ensemble": "Each folder in `members/` is a complete bundle;",
    "length_calibrated": "The folder `inner/` is a complete bundle;",
}


def model_card(manifest: dict[str, Any]) -> str:
    """The card, in Markdown, from a manifest's data."""
    data = "\n".join(f"- {d['name']}: {d['pairs']} pairs" for d in manifest["data"]) or "- not recorded"
    metrics = "\n".join(f"- {name}: {_shown(value)}" for name, value in manifest["metrics"].items())
    return _CARD.format(
        kind=manifest["kind"],
        base_model=manifest["base_model"],
        what=_WHAT[manifest["kind"]],
        max_tokens=manifest["max_tokens"],
        folder=_FOLDERS.get(manifest["kind"], "The folder is an ordinary transformers model;"),
        mode=_MODES.get(manifest["kind"], "none").format(**manifest["extraction"]),
        aggregate=manifest["extraction"]["aggregate"],
        version=manifest["redline_version"],
        created_at=manifest["created_at"],
        measurements=_DERIVED if "derived_from" in manifest["training"] else "Held-out measurements",
        data=data,
        metrics=metrics or "- none",
    )


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(_shown(v) for v in value) + "]"
    return str(value)
