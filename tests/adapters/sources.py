"""Builders: real MCP servers in processes of their own, and an adapter in front of one."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process

from remit_adapters.base import AdapterError, Event, Operation, Request
from remit_adapters.mcp import HttpTarget, McpAdapter, StdioTarget

HERE = Path(__file__).parent
MODERN = "2026-07-28"


def stdio_target(**env: str) -> StdioTarget:
    return StdioTarget(command=(sys.executable, str(HERE / "a_source.py"), "stdio"), env=env)


def rogue_target(habit: str = "refuses") -> StdioTarget:
    return StdioTarget(command=(sys.executable, "-S", str(HERE / "a_rogue.py"), habit))


class HttpSource:
    """`a_source.py` over HTTP; keeps its port over restarts."""

    def __init__(self) -> None:
        self.port = 0
        self._process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    async def start(self) -> None:
        self._process = await anyio.open_process(
            (sys.executable, str(HERE / "a_source.py"), "http", str(self.port)), stderr=None
        )
        assert self._process.stdout is not None
        with anyio.fail_after(30):
            self.port = int((await self._process.stdout.receive()).decode())

    async def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.aclose()
            self._process = None


@asynccontextmanager
async def http_source() -> AsyncGenerator[HttpSource]:
    source = HttpSource()
    await source.start()
    try:
        yield source
    finally:
        with anyio.CancelScope(shield=True):
            await source.stop()


class Events:
    """What an adapter told of, and a way to wait for it."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self._more = anyio.Event()

    def __call__(self, event: Event) -> None:
        self.seen.append(event)
        self._more.set()

    async def until(self, condition: Callable[[list[Event]], bool]) -> None:
        with anyio.fail_after(15):
            while not condition(self.seen):
                self._more = anyio.Event()
                await self._more.wait()


@asynccontextmanager
async def connected(
    target: StdioTarget | HttpTarget, events: Events | None = None, **options: Any
) -> AsyncGenerator[McpAdapter]:
    adapter = McpAdapter(source="acme", target=target, **options)
    async with anyio.create_task_group() as tasks:
        await adapter.start(tasks, events or Events())
        try:
            yield adapter
        finally:
            with anyio.CancelScope(shield=True):
                await adapter.stop()


async def refused(target: StdioTarget | HttpTarget, **options: Any) -> AdapterError:
    """Why an adapter did not start."""
    adapter = McpAdapter(source="acme", target=target, **options)
    async with anyio.create_task_group() as tasks:
        try:
            await adapter.start(tasks, Events())
        except AdapterError as error:
            return error
        finally:
            with anyio.CancelScope(shield=True):
                await adapter.stop()
    raise AssertionError("it started")


def a_call(name: str, arguments: dict[str, Any] | None = None, /, **more: Any) -> Request:
    fields: dict[str, Any] = {"operation": Operation.TOOL, "key": "key-1", "deadline_s": 15.0, **more}
    return Request(name=name, arguments=arguments or {}, **fields)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other processes bring about."""
    with anyio.fail_after(15):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.01)


async def appears(path: Path) -> None:
    """Wait for a note that a source leaves in a file."""
    await until(path.exists)
