"""A model world behind the pipeline: things with values and versions, orders, mails, and outsiders.

It does what it is told, and it remembers every write with its author, so that afterwards one can tell exactly
what an undo replaced. `fate` is what becomes of the next effect: it may be lost on the way there or back, or
the process may die around it, or an outsider may write between the look before it and itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import anyio
from tests.server.builders import ScriptedSource, a_definition, a_reply

from remit_adapters.base import AdapterError, Caller, Offer, Reply, Request

Fate = Literal["well", "refused", "overtaken", "lost before", "lost after", "dies before", "dies after"]
#: What is set by its version.
VERSIONED = ("pen", "lamp", "cup")
#: What is put, and has only a value. What outsiders write to it, nobody else does: else no one could tell.
PLAIN = ("book", "bowl")
THINGS = VERSIONED + PLAIN
OFFER = Offer(
    tools=(
        a_definition("look", thing="string"),
        a_definition("log", thing="string"),
        {
            "name": "set",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "thing": {"type": "string"},
                    "value": {"type": "integer"},
                    "version": {"type": "integer"},
                },
                "required": ["thing", "value"],
            },
        },
        a_definition("put", thing="string", value="integer"),
        a_definition("buy", thing="string", price="integer"),
        a_definition("give_back", order="string"),
        a_definition("send", text="string"),
    )
)
_FOUND = {"call": "shop.log", "each": "result.writes", "match": "item.key == key", "complete": "1 == 1"}
_RESTORED = {
    "call": "shop.look",
    "args": {"thing": "args.thing"},
    "expect": "result.value == before.value",
}
RULES: dict[str, Any] = {
    "shop.look": {"effect": "read"},
    "shop.log": {"effect": "read"},
    "shop.set": {
        "effect": "restorable",
        "resource": "args.thing",
        "if_match": "version",
        "before": {
            "call": "shop.look",
            "args": {"thing": "args.thing"},
            "select": "{value: value}",
            "etag": "result.version",
        },
        "find": {**_FOUND, "args": {"thing": "args.thing"}},
        "undo": {
            "call": "shop.set",
            "args": {"thing": "args.thing", "value": "before.value"},
            "verify": _RESTORED,
        },
    },
    "shop.put": {
        "effect": "restorable",
        "resource": "args.thing",
        "before": {"call": "shop.look", "args": {"thing": "args.thing"}, "select": "{value: value}"},
        "find": {**_FOUND, "args": {"thing": "args.thing"}},
        "undo": {
            "call": "shop.put",
            "args": {"thing": "args.thing", "value": "before.value"},
            "verify": _RESTORED,
        },
    },
    "shop.buy": {
        "effect": "reversible",
        "resource": "'order of ' + args.thing",
        "find": {**_FOUND, "args": {"thing": "'orders'"}},
        "undo": {"call": "shop.give_back", "args": {"order": "result.order"}},
    },
    "shop.give_back": {"effect": "irreversible"},
    "shop.send": {"effect": "deferred", "hold_back": "10m"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    #: The call whose effect it is; an outsider's has a name of its own.
    key: str
    value: int


class World(ScriptedSource):
    def __init__(self) -> None:
        super().__init__(offer=OFFER)
        self.writes: dict[str, list[Write]] = {thing: [Write(key="start", value=0)] for thing in THINGS}
        #: Every order by the call that made it, and the call that gave it back.
        self.orders: dict[str, str | None] = {}
        #: By thing: each call that bought it or gave it back, in order.
        self.sales: dict[str, list[str]] = {thing: [] for thing in THINGS}
        self.mails: list[str] = []
        self.fate: Fate = "well"
        #: Things around which an answer was lost or a process died.
        self.troubled: set[str] = set()
        self.outsiders: set[str] = set()
        self.dies: Callable[[], None] = lambda: None

    def value(self, thing: str) -> int:
        return self.writes[thing][-1].value

    def write_from_outside(self, thing: str, value: int) -> None:
        self.outsiders.add(thing)
        if thing in PLAIN:
            value = 100 + len(self.writes[thing])
        self.writes[thing].append(Write(key=f"outsider-{len(self.writes[thing])}", value=value))

    def effects(self, name: str = "") -> list[Any]:
        """What happened, by the keys of the calls that did it."""
        written = [write.key for writes in self.writes.values() for write in writes[1:]]
        return [*written, *self.orders, *filter(None, self.orders.values()), *self.mails]

    keeps_deadlines = False

    async def run(self, request: Request, caller: Caller = Caller()) -> Reply:  # noqa: B008 - frozen
        arguments = request.arguments
        if request.name == "look":
            writes = self.writes[arguments["thing"]]
            return a_reply({"value": writes[-1].value, "version": len(writes)})
        if request.name == "log":
            if arguments["thing"] == "orders":
                return a_reply({"writes": [{"key": key, "order": f"o-{key}"} for key in self.orders]})
            return a_reply({"writes": [{"key": write.key} for write in self.writes[arguments["thing"]]]})
        fate, self.fate = self.fate, "well"
        if fate != "well":
            self.troubled.add(self._about(request))
        if fate == "overtaken" and request.name == "set":
            self.write_from_outside(arguments["thing"], arguments["value"])
        await self._on_the_way(fate, "before")
        if fate == "refused":
            raise AdapterError("It is closed.", no_effect=True)
        reply = self._do(request)
        await self._on_the_way(fate, "after")
        return reply

    async def _on_the_way(self, fate: Fate, when: str) -> None:
        if fate == f"lost {when}":
            raise AdapterError("The line broke.", no_effect=False)
        if fate == f"dies {when}":
            self.dies()
            await anyio.sleep_forever()

    def _about(self, request: Request) -> str:
        return str(request.arguments["thing"]) if request.name in ("set", "put") else "orders"

    def _do(self, request: Request) -> Reply:
        arguments = request.arguments
        match request.name:
            case "set" | "put":
                writes = self.writes[arguments["thing"]]
                if arguments.get("version", len(writes)) != len(writes):
                    return a_reply("somebody was faster", is_error=True)
                writes.append(Write(key=request.key, value=arguments["value"]))
                return a_reply({"ok": True})
            case "buy":
                self.orders[request.key] = None
                self.sales[arguments["thing"]].append(request.key)
                return a_reply({"order": f"o-{request.key}"})
            case "give_back":
                order = arguments["order"].removeprefix("o-")
                if self.orders[order] is not None:
                    return a_reply("it was given back already", is_error=True)
                self.orders[order] = request.key
                next(keys for keys in self.sales.values() if order in keys).append(request.key)
                return a_reply({"ok": True})
            case _:
                self.mails.append(request.key)
                return a_reply({"ok": True})
