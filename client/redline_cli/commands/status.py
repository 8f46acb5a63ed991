"""``redline models`` and ``redline health``: the models of a service, and whether it is ready."""

from __future__ import annotations

from typing import Annotated

import typer

from redline.client import RewardClient
from redline.http.exchange import DEFAULT_URL
from redline.http.retry import NO_RETRY
from redline.http.url_redaction import without_secrets
from redline.text.printable import visible_json
from redline_cli.options import Key, Url
from redline_cli.terminal import print_line


def models(url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Print the served models, one JSON object per line."""
    with RewardClient(url, key=key, retry=NO_RETRY) as client:
        for model in client.models():
            print_line(visible_json(model.model_dump_json(exclude_none=True)))


def health(
    url: Url = DEFAULT_URL,
    wait_s: Annotated[float, typer.Option(help="Seconds to wait for the service to be ready.")] = 0.0,
) -> None:
    """Exit 0 if the service is ready to score, 1 if not."""
    with RewardClient(url, retry=NO_RETRY, timeout_s=5.0) as client:
        client.wait_until_ready(wait_s)
    print_line(f"{without_secrets(url)} is ready")
