"""Serving one App: over stdio for one client, or over HTTP for many, behind the guard.

Owns the sockets and the server's life. What a request means is not its business.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio

from remit.app import App, process_run
from remit.config import Http, Tls
from remit.errors import RemitError
from remit.front.lane import HttpLane, Lane, StdioLane
from remit.front.server import Front
from remit.identity import Principal

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp, Receive, Scope, Send

MCP_PATH = "/mcp"
#: How long calls that run may take to end when the server is to, to be answered when they are cut short, and
#: the pause between two looks at whether they are (seconds).
_PATIENCE_S = 5.0
_LAST_ANSWERS_S = 2.0
_LOOK_S = 0.01


class NotServed(RemitError):
    """Clients cannot reach this server as it is configured."""


async def serve_stdio(app: App, principal: Principal) -> None:
    """Answer the client at the other end of stdin and stdout until it goes.

    The first request is answered before the sources are connected; calls wait for them.
    """
    from remit.front.stdio import standard_streams

    front = Front(app, principal=principal, run=process_run())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_run, app)
        tasks.start_soon(front.tell_clients)
        async with standard_streams(StdioLane(Lane(app, front), principal)) as (read, write):
            await front.server.run(read, write, front.server.create_initialization_options())
        tasks.cancel_scope.cancel()


async def _run(app: App) -> None:
    async with app.running():
        settle_memory()
        await anyio.sleep_forever()


async def serve_http(app: App, announce: Callable[[str], None]) -> None:
    """Serve HTTP until told to stop; `announce` is called with the MCP endpoint's URL once it is up."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Generator[None]:
            yield  # `_heed_signals` does

    settings = app.config.http
    if settings.tls and (why := unfit_tls(settings.tls)):
        raise NotServed(why)
    front = Front(app)
    listener = _listen(settings)
    port = listener.getsockname()[1]
    scheme = "https" if settings.tls else "http"
    url = f"{scheme}://{_name(settings.host)}:{port}{MCP_PATH}"
    async with app.running() as running:
        guarded = await _guarded(running, front, url, port)
        server = Server(
            uvicorn.Config(
                guarded,
                log_level="warning",
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                ssl_certfile=str(settings.tls.certificate) if settings.tls else None,
                ssl_keyfile=str(settings.tls.key) if settings.tls else None,
            )
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(front.tell_clients)
            tasks.start_soon(_heed_signals, server, app)
            settle_memory()
            announce(url)
            await server.serve(sockets=[listener])
            if server.force_exit:  # else it has
                await server.lifespan.shutdown()
            tasks.cancel_scope.cancel()


def settle_memory() -> None:
    """Leave what start-up made out of every later garbage collection: it lives as long as the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def _heed_signals(server: uvicorn.Server, app: App) -> None:
    """Let what runs end, then close the journal: uvicorn's own handlers would kill the process before.

    SIGHUP means what it means to most servers: look at what may have changed, here the policy.
    """
    async with anyio.create_task_group() as tasks:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:
                    app.look_at_policy()
                    continue
                tasks.start_soon(_end, server, app, 0 if server.should_exit else _PATIENCE_S)
                server.should_exit = True


async def _end(server: uvicorn.Server, app: App, patience_s: float) -> None:
    """Cut short what still runs then, and wait for no more than to have it answered.

    uvicorn would cancel it: nobody would be told that a call is in doubt.
    """
    await anyio.sleep(patience_s)
    on = app.services_now
    await app.cut_short()
    with anyio.move_on_after(_LAST_ANSWERS_S):
        while on and on.in_flight:  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(_LOOK_S)
    server.force_exit = True


def _name(host: str) -> str:
    """The host as a URL and the Host header write it (RFC 3986 §3.2.2)."""
    return f"[{host}]" if ":" in host else host


def _listen(settings: Http) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=512)
    except OSError as error:
        number = error.errno or 0  # negative where a name was looked up in vain
        why = os.strerror(number).lower() if number > 0 else "the name is not known here"
        raise NotServed(
            f"cannot listen on {settings.bind}: {why}; end what uses it, or name another with --http"
            " or http.bind"
        ) from None


def unfit_tls(tls: Tls) -> str | None:
    """Why clients cannot be served with this certificate and key, to somebody who mends it."""
    import ssl

    try:
        # A password is asked for on the terminal otherwise, where nobody may be.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key, password="")
    except OSError as error:
        why = (error.strerror or "").lower() if type(error) is PermissionError else "they do not fit"
        return (
            f"TLS cannot be served with {tls.certificate} and {tls.key}: {why}; both are PEM, the key is that"
            " of the certificate, has no password, and this user may read it"
        )
    return None


async def _guarded(app: App, front: Front, url: str, port: int) -> ASGIApp:
    from mcp.server.transport_security import TransportSecuritySettings

    from remit.front.guard import Guard, GuardSettings, ProtectedResource
    from remit.identity import Identify, JwtSettings, Tokens

    settings = app.config.http
    public = settings.public_url or url
    names = {_name(settings.host), *(("localhost", "127.0.0.1") if settings.host in _LOOPBACK else ())}
    hosts = {f"{name}:{port}" for name in names} | {urlsplit(public).netloc} | set(settings.allowed_hosts)
    origins = {f"{urlsplit(url).scheme}://{name}:{port}" for name in names} | set(settings.allowed_origins)
    jwt = app.config.identity.jwt
    services = await app.services()
    tokens = None
    if jwt:
        tokens = Tokens(
            JwtSettings(
                issuer=jwt.issuer,
                jwks=jwt.jwks,
                audience=jwt.audience,
                tenant_claim=jwt.tenant_claim,
                tenant=jwt.tenant,
                algorithms=jwt.algorithms,
            )
        )
    # The guard has checked Host and Origin against exact lists; the SDK's own check knows only patterns.
    inner = front.server.streamable_http_app(
        streamable_http_path=MCP_PATH,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    return Guard(
        HttpLane(Lane(app, front), _bound_sessions(inner)),
        settings=GuardSettings(
            path=MCP_PATH,
            hosts=frozenset(host.lower() for host in hosts),
            origins=frozenset(origin.lower() for origin in origins),
            oauth=ProtectedResource(
                resource=jwt.audience, authorization_servers=(jwt.issuer,), scopes=tuple(jwt.scopes)
            )
            if jwt
            else None,
        ),
        authenticator=Identify(keys=services.journal, pepper=app.pepper, tokens=tokens),
    )


_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _bound_sessions(app: ASGIApp) -> ASGIApp:
    """Tell the SDK who a request is from, so that a session of the older revisions serves its owner only."""
    from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
    from mcp.server.auth.provider import AccessToken

    async def bound(scope: Scope, receive: Receive, send: Send) -> None:
        principal: Principal | None = scope.get("remit.principal")
        if principal is not None:
            token = AccessToken(
                token="",
                client_id=f"{principal.tenant}/{principal.agent}",
                subject=principal.user,
                scopes=[],
            )
            scope["user"] = AuthenticatedUser(token)
        await app(scope, receive, send)

    return bound
