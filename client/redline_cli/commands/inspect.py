"""``redline inspect``: a reward model's properties as JSON."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from redline_cli.options import Device
from redline_cli.terminal import prepare_torch, print_line, require_modules


def inspect(
    bundle: Annotated[str, typer.Argument(help="Bundle or Hugging Face reward model: folder, or hub id.")],
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Load a reward model and print its properties, device and dtype as JSON.

    Includes kind, digest, limits and default mode and aggregate. If the dtype was chosen by timing the CPU, both speeds
    are included.
    """
    require_modules("serve", "torch", "transformers")
    prepare_torch()
    from redline_model.bundle.bundle import Bundle
    from redline_model.bundle.load_options import LoadOptions
    from redline_model.reward_spec import reward_spec, spec_key

    load_options = LoadOptions.model_validate({"device": device, "dtype": dtype})
    loaded = Bundle.load(bundle, load_options)
    scorer, manifest, cpu_precision = loaded.scorer, loaded.manifest, load_options.cpu_precision
    description: dict[str, Any] = {
        "kind": scorer.kind,
        "digest": loaded.digest,
        "base_model": manifest.base_model,
        "redline_version": manifest.redline_version,
        "created_at": manifest.created_at,
        "tokenizer_fingerprint": loaded.tokenizer_fingerprint,
        "max_tokens": scorer.encoder.max_tokens,
        "default_reading": spec_key(scorer, reward_spec(scorer)),
        "metrics": manifest.metrics,
        "device": str(scorer.model.device),
        "dtype": str(scorer.model.dtype).removeprefix("torch."),
        "parameters": sum(model.num_parameters() for model in scorer.models),
    }
    if cpu_precision is not None:
        description["cpu_precision"] = cpu_precision._asdict()
    print_line(json.dumps(description, indent=2, ensure_ascii=False))
