"""The model card that is written into every bundle."""

from __future__ import annotations

from typing import Any

from redline_model.kinds import kind_spec

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
- Default rewards: mode {mode}, aggregate `{aggregate}`
- Made by Redline {version} on {created_at}

## Use

```
redline serve THIS_FOLDER
redline score --prompt "..." --response "..."
```

{folder} `redline.json` adds the prompt
template, how rewards are computed, the calibration of the score scale, and a digest of every file.

## Fitted on

{data}

## {measurements}

{metrics}

## Limits

A reward model knows the preferences it was fitted on, with their biases, and nothing else. Its scores mean
little on prompts unlike those; an optimised policy will find where they are wrong. Watch a score it was not
trained on, and the length and the KL divergence of the policy.
"""

_DERIVED_HEADING = "Measurements (on the pairs that the score scale was fitted on)"


def model_card(manifest: dict[str, Any]) -> str:
    """The card, in Markdown, from a manifest's data."""
    spec = kind_spec(manifest["kind"])
    data = "\n".join(f"- {source['name']}: {source['pairs']} pairs" for source in manifest["data"]) or "- not recorded"
    metrics = "\n".join(f"- {name}: {_format_value(value)}" for name, value in manifest["metrics"].items())
    return _CARD.format(
        kind=manifest["kind"],
        base_model=manifest["base_model"],
        what=spec.description,
        max_tokens=manifest["max_tokens"],
        folder=spec.contents,
        mode=spec.mode.format(**manifest["extraction"]),
        aggregate=manifest["extraction"]["aggregate"],
        version=manifest["redline_version"],
        created_at=manifest["created_at"],
        measurements=_DERIVED_HEADING if "derived_from" in manifest["training"] else "Held-out measurements",
        data=data,
        metrics=metrics or "- none",
    )


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_format_value(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(_format_value(v) for v in value) + "]"
    return str(value)
