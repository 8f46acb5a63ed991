"""``redline serve``: run the reward service."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from redline.errors import CommandError
from redline_cli.options import Device
from redline_cli.terminal import prepare_torch, require_modules


def serve(
    bundle: Annotated[
        str, typer.Argument(help="Bundle or Hugging Face reward model: folder, or hub id.", envvar="REDLINE_BUNDLE")
    ],
    host: Annotated[str | None, typer.Option(help="Address to bind; default 127.0.0.1 (this machine only).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; 0 chooses a free port and prints it.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in the API.")] = None,
    device: Device | None = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    quantize: Annotated[str | None, typer.Option(help="int8 or nf4, through bitsandbytes.")] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile outside the attention; for GPUs.")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option("--key", help="An API key that callers must send; repeatable.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum tokens per sequence.")] = None,
    max_batch_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens in a forward pass; default: by device.")
    ] = None,
    prefix_cache_tokens: Annotated[
        int | None, typer.Option(help="Tokens of prompts kept between passes (prefix cache).")
    ] = None,
    max_queued_requests: Annotated[
        int | None, typer.Option(help="Maximum concurrent requests; others get 503.")
    ] = None,
    max_queued_tokens: Annotated[int | None, typer.Option(help="Maximum queued tokens; beyond this, 503.")] = None,
    scalar: Annotated[
        str | None,
        typer.Option(help="Score returned by the compatible endpoints: default, sum, mean, last or calibrated."),
    ] = None,
    dropin_too_long: Annotated[
        str | None,
        typer.Option(help="What the compatible endpoints do with a prompt that is too long: truncate or error."),
    ] = None,
    caller_end: Annotated[
        str | None, typer.Option(help="End token in texts sent to the compatible endpoints, if it is an unusual one.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug (with an access log), info, warning or error.")] = None,
) -> None:
    """Serve a reward model over HTTP. Every option can also be set as REDLINE_<NAME> in the environment."""
    require_modules("serve", "torch", "transformers", "fastapi", "uvicorn", "pydantic_settings", "prometheus_client")
    prepare_torch()
    from pydantic_settings import SettingsError

    from redline_service.http.server import serve as run_service
    from redline_service.settings import ServiceSettings

    options = {
        "host": host,
        "port": port,
        "name": name,
        "device": device,
        "dtype": dtype,
        "quantize": quantize,
        "compile": compile_,
        "keys": key or None,
        "max_tokens": max_tokens,
        "max_batch_tokens": max_batch_tokens,
        "prefix_cache_tokens": prefix_cache_tokens,
        "max_queued_requests": max_queued_requests,
        "max_queued_tokens": max_queued_tokens,
        "scalar": scalar,
        "dropin_too_long": dropin_too_long,
        "caller_end": caller_end,
        "log_level": log_level,
    }
    settings: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        chosen = ServiceSettings(bundle=bundle, **settings)
    except SettingsError as error:
        raise CommandError(f"a setting in the environment cannot be read: {error}") from error
    run_service(chosen)
