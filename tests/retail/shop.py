"""The retail shop behind Remit, and conversations with it.

One Remit and one kit serve all tests; each conversation is a run of its own, on a database that
a test has put back to how it was published.
"""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import httpx2
import mcp_types as types
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from tests.interop.running import REMIT, DidNotStart, serving
from tests.retail import kit_server
from tests.server.builders import rows

HERE = Path(__file__).parent
DEADLINE_S = 60
#: For clients of what speaks plain HTTP; reading the machine's certificates takes them a tenth of a second.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
#: A tool of the kit, by its own name, and its arguments.
Call: TypeAlias = tuple[str, Mapping[str, Any]]
Row: TypeAlias = dict[str, Any]


def call(tool: str, /, **arguments: Any) -> Call:
    return tool, arguments


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an agent was answered."""

    text: str
    is_error: bool = False
    #: Remit's own refusal, if it was one.
    code: str | None = None
    receipt: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Talk:
    """A conversation up to one call."""

    call: Call = ("", {})
    #: Who is identified first, by e-mail; nobody where it is None.
    customer: Row | None = None
    #: Done then, successfully.
    given: tuple[Call, ...] = ()
    #: Done then as well, whatever is answered.
    tried: tuple[Call, ...] = ()
    #: Whether the customer says yes when asked to confirm.
    agreed: bool = True


@dataclass(frozen=True, kw_only=True)
class Shop:
    """The published database, to find examples in. What it finds is the first by id."""

    kit: kit_server.Kit
    published: bytes = field(repr=False)
    users: Mapping[str, Row] = field(repr=False)
    orders: Mapping[str, Row] = field(repr=False)
    products: Mapping[str, Row] = field(repr=False)

    def order(self, status: str, fits: Callable[[Row, Row], Any] = lambda order, owner: True) -> Row:
        """An order in this status; `fits` may want more of it and of its owner."""
        return next(
            order
            for _, order in sorted(self.orders.items())
            if order["status"] == status and fits(order, self.users[order["user_id"]])
        )

    def owner(self, order: Row) -> Row:
        return self.users[order["user_id"]]

    def somebody_but(self, user: Row) -> Row:
        return next(each for _, each in sorted(self.users.items()) if each["user_id"] != user["user_id"])

    def of_somebody_but(self, user: Row, *sources: str) -> str:
        """A payment method of one of these kinds that belongs to somebody else."""
        return next(
            method
            for _, each in sorted(self.users.items())
            if each["user_id"] != user["user_id"]
            for method in methods(each, *sources)
        )

    def variants(self, item: Row, *, available: bool = True) -> list[Row]:
        """The other variants of an item's product, the cheapest first."""
        found = self.products[item["product_id"]]["variants"].values()
        return sorted(
            (each for each in found if each["available"] is available and each["item_id"] != item["item_id"]),
            key=lambda each: each["price"],
        )

    def another_product(self, order: Row) -> Row:
        """An available variant of a product that the order has nothing of."""
        mine = {item["product_id"] for item in order["items"]}
        return next(
            variant
            for product_id, product in sorted(self.products.items())
            if product_id not in mine
            for variant in product["variants"].values()
            if variant["available"]
        )

    async def answer(self, call: Call) -> Answer:
        """What the kit itself answers, on its database as it is."""
        tool, arguments = call
        try:
            return Answer(text=await self.kit.tools[tool](**arguments))
        except kit_server.ToolError as refusal:
            return Answer(text=str(refusal), is_error=True)

    async def directly(self, *calls: Call) -> bytes:
        """The published database after these calls, made on the kit itself."""
        self.kit.database = self.published
        for call in calls:
            await self.answer(call)
        return self.kit.database


def paid_with(order: Row) -> str:
    return order["payment_history"][0]["payment_method_id"]


def methods(user: Row, *sources: str) -> list[str]:
    """The ids of a user's payment methods, of these kinds."""
    return [each["id"] for each in user["payment_methods"].values() if each["source"] in sources]


def open_shop() -> Shop:
    """Raises KitMissing."""
    kit = kit_server.load(kit_server.unpacked())
    return Shop(kit=kit, published=kit.database, **json.loads(kit.database))


@dataclass(frozen=True, kw_only=True)
class Governed:
    """The shop behind a Remit that serves over HTTP."""

    url: str
    key: str
    folder: Path
    runs: Iterator[int] = field(default_factory=count)

    @property
    def database(self) -> bytes:
        return (self.folder / "retail.json").read_bytes()

    def put(self, content: bytes) -> None:
        """Make this the database."""
        if self.database == content:
            return  # the kit need not read it again
        fresh = self.folder / "retail.fresh"
        fresh.write_bytes(content)
        fresh.replace(self.folder / "retail.json")

    def rows(self, sql: str, *parameters: Any) -> list[Row]:
        return rows(self.folder / "remit.db", sql, *parameters)

    @asynccontextmanager
    async def conversation(
        self, talk: Talk | None = None
    ) -> AsyncIterator[Callable[[Call], Awaitable[Answer]]]:
        """A run of its own, brought to where the talk's call is due, as a function that makes calls."""
        talk = talk or Talk()
        run = f"conversation-{next(self.runs)}"

        async def asked(_context: Any, _params: types.ElicitRequestParams) -> types.ElicitResult:
            return (
                types.ElicitResult(action="accept", content={})
                if talk.agreed
                else types.ElicitResult(action="decline")
            )

        async with (
            httpx2.AsyncClient(
                headers={"authorization": f"Bearer {self.key}"}, timeout=30, verify=NO_TLS
            ) as http,
            Client(
                streamable_http_client(self.url, http_client=http),
                mode="2026-07-28",
                cache=None,
                elicitation_callback=asked,
            ) as client,
        ):

            async def ask(call: Call) -> Answer:
                tool, arguments = call
                name = tool if tool.startswith("remit.") else f"retail.{tool}"
                with anyio.fail_after(DEADLINE_S):
                    result = await client.call_tool(name, dict(arguments), meta={"dev.remit/run": run})
                meta = result.meta or {}
                return Answer(
                    text="\n".join(block.text for block in result.content),
                    is_error=bool(result.is_error),
                    code=meta.get("dev.remit/verdict", {}).get("code"),
                    receipt=meta.get("dev.remit/receipt", {}),
                )

            for each in (*identified(talk.customer), *talk.given):
                answer = await ask(each)
                assert not answer.is_error, (each, answer)
            for each in talk.tried:
                await ask(each)
            yield ask


def identified(user: Row | None) -> tuple[Call, ...]:
    return (call("find_user_id_by_email", email=user["email"]),) if user else ()


@contextmanager
def governed(folder: Path, shop: Shop, policy: str | None = None) -> Iterator[Governed]:
    """Serve the shop as the files beside this one say, or under another policy, while the block lasts."""
    shutil.copy(HERE / "remit.yaml", folder)
    (folder / "policy.csv").write_text(policy or (HERE / "policy.csv").read_text())
    (folder / "kit_server.py").symlink_to(HERE / "kit_server.py")
    (folder / "retail.json").write_bytes(shop.published)
    config = ["--json", "--config", str(folder / "remit.yaml")]
    who = ["--agent", "agent:assistant", "--user", "user:desk"]
    key = subprocess.run(
        [*REMIT, "agents", "key", "create", *who, *config], capture_output=True, text=True, check=False
    )
    if key.returncode != 0:
        raise DidNotStart(f"no key for the assistant:\n{key.stdout}{key.stderr}")
    with serving([*REMIT, "serve", "--http", "127.0.0.1:0", *config], folder) as url:
        yield Governed(url=url, key=json.loads(key.stdout)["key"], folder=folder)
