"""`remit serve`: answer agents until stopped."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import anyio
import click
from pydantic import ValidationError

from remit.cli.options import config_option, json_option, print_json
from remit.config import Http
from remit.config_file import Loaded, load, stdio_identity
from remit.config_problems import sentence


@click.command()
@config_option
@json_option
@click.option("--stdio", is_flag=True, help="Serve the one client at stdin and stdout.")
@click.option("--http", "bind", metavar="HOST:PORT", help="Serve HTTP there instead of where http.bind says.")
def serve(config_path: Path, as_json: bool, stdio: bool, bind: str | None) -> None:
    """Serve agents, over stdio or HTTP.

    Over stdio there is one client, over HTTP (the default) there may be many. With --json, prints one line
    with the endpoint's url once it is up (HTTP only).
    """
    from remit.app import App
    from remit.front.serving import serve_http, serve_stdio
    from remit.identity import Principal

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if stdio and bind:
        raise click.UsageError("give --stdio or --http, not both")
    loaded = load(config_path)
    if stdio:
        who = stdio_identity(loaded.config, os.environ)
        principal = Principal(tenant=who.tenant, agent=who.agent, user=who.user, auth="stdio")
        app = App(loaded, role="stdio")
        anyio.run(serve_stdio, app, principal, backend_options={"use_uvloop": True})
        return

    def announce(url: str) -> None:
        if as_json:
            print_json({"url": url})
        else:
            click.echo(f"Remit serves {url}")

    app = App(_bound(loaded, bind) if bind else loaded, role="http")
    anyio.run(serve_http, app, announce, backend_options={"use_uvloop": True})


def _bound(loaded: Loaded, bind: str) -> Loaded:
    try:
        http = Http.model_validate({**loaded.config.http.model_dump(), "bind": bind})
    except ValidationError as error:
        raise click.UsageError(f"--http: {sentence(('http', 'bind'), error.errors())}") from None
    return replace(loaded, config=loaded.config.model_copy(update={"http": http}))
