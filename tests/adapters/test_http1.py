"""The HTTP/1.1 client against servers that say exactly these bytes, well and badly."""

from __future__ import annotations

import asyncio
import http.client
import io
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit_adapters.mcp.http1 import BrokenError, Pool, Response, UnreachableError

HEAD = b"HTTP/1.1 200 OK\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

#: Its last byte comes when the test says so.
LATE = b"HTTP/1.1 200 OK\r\nX-Late: 1\r\nContent-Length: 2\r\n\r\n{"


class Server:
    """Answers each request with the next of its scripts: pieces of bytes, `None` closes the connection."""

    def __init__(self, scripts: Sequence[Sequence[bytes | None]]) -> None:
        self.scripts = list(scripts)
        self.requests: list[bytes] = []
        self.connections = 0
        self.asked = asyncio.Event()
        #: Until then, the last byte of LATE is kept back.
        self.answer = asyncio.Event()
        self.left = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                self.requests.append(head + await reader.readexactly(int(length or 0)))
                self.asked.set()
                for piece in self.scripts.pop(0) if self.scripts else [OK]:
                    if piece is None:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                    if piece == LATE:
                        await self.answer.wait()
                        writer.write(b"}")
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        finally:
            writer.close()


@asynccontextmanager
async def a_pool(*scripts: Sequence[bytes | None], idle_s: float = 60) -> AsyncGenerator[tuple[Pool, Server]]:
    said = Server(scripts)
    server = await asyncio.start_server(said.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = Pool(f"http://127.0.0.1:{port}/mcp?x=1", connect_s=5, idle_s=idle_s)
    try:
        async with asyncio.timeout(20):
            yield pool, said
    finally:
        await pool.close()
        server.close()
        await server.wait_closed()


async def answered(pool: Pool, body: bytes = b"hello") -> tuple[int, bytes]:
    with await pool.send("POST", {"Content-Type": "text/plain"}, body) as response:
        return response.status, await response.read()


class Wire(io.BytesIO):
    def makefile(self, *_: object) -> Wire:
        return self


def oracle(answer: bytes) -> tuple[int, bytes]:
    """What the standard library reads from the same bytes."""
    response = http.client.HTTPResponse(Wire(answer), method="POST")  # type: ignore[arg-type]
    response.begin()
    return response.status, response.read()


def chunked(pieces: Sequence[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


bodies = st.lists(st.binary(min_size=1, max_size=300), max_size=4)
framings: dict[str, Callable[[Sequence[bytes]], tuple[bytes, bytes]]] = {
    "length": lambda body: (b"Content-Length: %d\r\n" % len(b"".join(body)), b"".join(body)),
    "chunks": lambda body: (b"Transfer-Encoding: chunked\r\n", chunked(body)),
    "close": lambda body: (b"Connection: close\r\n", b"".join(body)),
}


@given(
    body=bodies,
    framing=st.sampled_from(sorted(framings)),
    status=st.sampled_from([200, 202, 400, 404, 500]),
    interim=st.booleans(),
    cuts=st.lists(st.integers(0, 600), max_size=6),
)
async def test_an_answer_means_the_same_however_it_is_framed_and_cut(
    body: list[bytes], framing: str, status: int, interim: bool, cuts: list[int]
) -> None:
    field, rest = framings[framing](body)
    final = b"HTTP/1.1 %d Said\r\n%s\r\n%s" % (status, field, rest)
    sent = (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" if interim else b"") + final
    edges = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    pieces: list[bytes | None] = [sent[a:b] for a, b in itertools.pairwise(edges)]
    async with a_pool([*pieces, None] if framing == "close" else pieces) as (pool, _):
        assert await answered(pool) == oracle(final)


async def test_a_request_is_the_bytes_that_were_meant() -> None:
    async with a_pool() as (pool, server):
        await answered(pool, b"two\r\nlines")
        with await pool.send("GET", {"Accept": "text/event-stream"}) as response:
            await response.read()
    host = server.requests[0].partition(b"Host: ")[2].partition(b"\r\n")[0]
    assert server.requests == [
        b"POST /mcp?x=1 HTTP/1.1\r\nHost: " + host + b"\r\nContent-Type: text/plain\r\nContent-Length: 10"
        b"\r\n\r\ntwo\r\nlines",
        b"GET /mcp?x=1 HTTP/1.1\r\nHost: " + host + b"\r\nAccept: text/event-stream\r\n\r\n",
    ]


@pytest.mark.parametrize("value", ["a\r\nX-Admin: 1", "a\nb", "a\rb", "a\0b"])
async def test_a_header_cannot_break_out_of_its_line(value: str) -> None:
    async with a_pool() as (pool, server):
        with pytest.raises(ValueError, match="line break"):
            await pool.send("POST", {"Mcp-Name": value})
        assert server.requests == []


async def test_a_connection_serves_again_after_a_whole_answer() -> None:
    async with a_pool() as (pool, server):
        for _ in range(3):
            assert await answered(pool) == (200, b"{}")
        assert server.connections == 1


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")], id="it says close"),
        pytest.param([OK + OK], id="a second answer comes behind the first"),
        pytest.param([OK + b"more"], id="something comes behind it"),
    ],
)
async def test_a_connection_that_is_not_clean_does_not_serve_again(script: list[bytes | None]) -> None:
    async with a_pool(script) as (pool, server):
        assert await answered(pool) == (200, b"{}")
        assert await answered(pool) == (200, b"{}")
        assert server.connections == 2


async def test_an_idle_connection_is_not_trusted_for_long() -> None:
    async with a_pool(idle_s=0) as (pool, server):
        await answered(pool)
        await answered(pool)
        assert server.connections == 2


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([None], id="closed without a word"),
        pytest.param([HEAD + b"Content-Le", None], id="broken off in the head"),
        pytest.param([OK[:-1], None], id="broken off in the body"),
        pytest.param([HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", None], id="in a chunk"),
        pytest.param([b"SSH-2.0-OpenSSH_9.2\r\n"], id="another protocol"),
        pytest.param([HEAD + b"Content-Length: -1\r\n\r\n"], id="a negative length"),
        pytest.param([HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"], id="two lengths"),
        pytest.param(
            [HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"],
            id="two framings",
        ),
        pytest.param([HEAD, *[b"X-Fill: " + b"a" * 8000 + b"\r\n"] * 10], id="an endless head"),
    ],
)
async def test_an_answer_that_breaks_off_or_is_no_http_is_no_answer(script: list[bytes | None]) -> None:
    async with a_pool(script) as (pool, server):
        with pytest.raises(BrokenError):
            await answered(pool)
        assert await answered(pool) == (200, b"{}")  # the pool goes on, over another connection
        assert server.connections == 2


async def test_nobody_there_means_that_nothing_was_sent() -> None:
    async with a_pool() as (pool, _):
        pass
    with pytest.raises(UnreachableError):
        await answered(pool)


async def test_whoever_is_cancelled_closes_the_connection() -> None:
    async with a_pool([]) as (pool, server):
        waiting = asyncio.create_task(pool.send("POST", {}, b"x"))
        await server.asked.wait()
        waiting.cancel()
        await server.left.wait()


async def test_what_is_under_way_when_a_pool_retires_still_gets_its_answer() -> None:
    async with a_pool([LATE]) as (pool, server):
        response = await pool.send("POST", {}, b"x")
        pool.retire()
        assert not server.left.is_set()
        server.answer.set()
        with response:
            assert await response.read() == b"{}"
        await server.left.wait()  # and then the connection ends


async def test_a_body_that_nobody_reads_makes_the_server_wait() -> None:
    piece = b"x" * 65_536
    sent = 0

    def pieces() -> list[bytes | None]:
        return [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(piece) * 512), *[piece] * 512]

    async with a_pool(pieces()) as (pool, _):
        response: Response = await pool.send("POST", {}, b"x")
        for _ in range(200):
            await asyncio.sleep(0)
        held = sum(len(part) for part in response._parts)  # pyright: ignore[reportPrivateUsage]
        assert held < 4 * 2**20
        async for part in response.chunks():
            sent += len(part)
        response.release()
    assert sent == len(piece) * 512
