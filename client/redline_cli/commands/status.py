"""``redline models`` and ``redline health``: what a service serves, and whether it does."""

from __future__ import annotations

from typing import Annotated

import typer

from redline.client import RewardClient
from redline.http.exchange import DEFAULT_URL
from redline.http.retry import NO_RETRY
from redline.http.url_redaction import without_secrets
from redline.text.printable import visible_json
from redline_cli.options import Key, Url
from redline_cli.terminal import say


def models(url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Print what is served, as one JSON object a model."""
    with RewardClient(url, key=key, retry=NO_RETRY) as client:
        for model in client.models():
            say(visible_json(model.model_dump_json(exclude_none=True)))


def health(
    url: Url = DEFAULT_URL,
    wait_s: Annotated[float, typer.Option(help="How long to wait for readiness.")] = 0.0,
) -> None:
    """Exit 0 if the service is ready to score, 1 if not."""
    with RewardClient(url, retry=NO_RETRY, timeout_s=5.0) as client:
        client.wait_until_ready(wait_s)
    say(f"{without_secrets(url)} is ready")
