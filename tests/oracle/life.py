"""A life that is drawn from a seed: two tenants, their agents, users and people, and a source with moods.

Everything that a record can come to happens in it, and a seed makes the same life again on any database.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import anyio
from tests.oracle.told import Call
from tests.server.builders import Clock, Remit, a_config, a_principal, a_remit
from tests.undo.world import PLAIN, RULES, THINGS, VERSIONED, Fate, World

from remit.config import Retention
from remit.config_file import Loaded
from remit.due import send_due
from remit.erasing import finish
from remit.errors import RemitError
from remit.identity import Principal
from remit.keeping import sweep
from remit.pipeline import govern
from remit.playbooks import begin, carry_out
from remit.probes import probe
from remit.undo import undo

TENANTS = ("acme", "beta")
AGENTS = ("agent:bot", "agent:other")
USERS = ("user:ann", "user:eve")
#: Where the life begins: in the evening, so that days end in it.
BEGINS_US = 1_780_000_000_000_000
_TOOLS = ("look", "set", "put", "buy", "buy", "send")
_POLICY = """\
g, agent:bot, role:clerk, {0}
g, agent:other, role:clerk, {0}
g, user:ann, role:clerk, {0}
g, user:eve, role:clerk, {0}
g, user:bea, role:boss, {0}
g3, agent:bot, user:ann, {0}
g3, agent:bot, user:eve, {0}
g3, agent:other, user:ann, {0}
g3, agent:other, user:eve, acme
p, role:clerk, {0}, shop.buy, execute, r.args.price <= 60, allow
p, role:clerk, {0}, shop.buy, recommend, r.args.price <= 80, allow
p, role:clerk, {0}, shop.buy, advise, r.args.price <= 90, allow
p, role:clerk, {0}, shop.buy, undo, 1 == 1, allow
p, role:boss, {0}, shop.*, approve, 1 == 1, allow
p, role:boss, {0}, shop.*, undo, 1 == 1, allow
""" + "".join(
    f"p, role:clerk, {{0}}, shop.{tool}, {how}, 1 == 1, allow\n"
    for tool in ("look", "set", "put", "give_back", "send")
    for how in ("execute", "undo")
)
POLICY = "".join(_POLICY.format(tenant) for tenant in TENANTS)
TOOLS: dict[str, Any] = {
    **RULES,
    "shop.look": {**RULES["shop.look"], "labels": ["quiet"]},
    "shop.buy": {
        **RULES["shop.buy"],
        "undo": {**RULES["shop.buy"]["undo"], "within": "30h", "refund": 60},
        "price": {"eur_cent": {"estimate": "args.price", "actual": "args.price - 1"}},
        "subject": "'customer:' + args.thing",
        "labels": ["money", "loud"],
    },
    "shop.send": {**RULES["shop.send"], "price": {"mail": "1"}, "labels": ["loud"]},
}
BUDGETS: list[dict[str, Any]] = [
    {"scope": "agent", "unit": "calls", "window": "hour", "limit": 12},
    {"scope": "agent", "unit": "eur_cent", "window": "day", "limit": 500},
    {"scope": "user", "unit": "eur_cent", "window": "hour", "limit": 150, "on_exceed": "defer", "wait": "2h"},
    {"scope": "tenant", "unit": "eur_cent", "window": "total", "limit": 700, "on_exceed": "observe"},
    {"scope": "agent", "unit": "mail", "window": "day", "limit": 3, "on_exceed": "approve"},
]
PLAYBOOKS: dict[str, Any] = {
    "restock": {
        "as": {"tenant": "acme", "agent": "agent:bot", "user": "user:ann"},
        "inputs": ["thing"],
        "steps": [
            {"id": "look", "call": "shop.look", "args": {"thing": "inputs.thing"}},
            {"id": "buy", "call": "shop.buy", "args": {"thing": "inputs.thing", "price": "7"}},
        ],
    }
}
SETTINGS: dict[str, Any] = {
    "tools": TOOLS,
    "budgets": BUDGETS,
    "approvals": {"pending": "2h", "use_within": "1h"},
    "playbooks": PLAYBOOKS,
}


class Life:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.world, self.clock = World(), Clock(BEGINS_US)
        #: How to make calls again that people were asked about, or that had a key.
        self._again: list[Callable[[], Awaitable[Any]]] = []
        #: What each call was made with, and runs of playbooks: events have only commitments to it.
        self._carried: dict[str, dict[str, Any]] = {}
        self.remit: Remit

    def thing_of(self, call: Call, calls: Mapping[str, Call]) -> str | None:
        """The `thing` among the arguments of a call; one that serves another is about the same."""
        made_with = self._carried.get(call.id) or self._carried.get(call.run)
        if made_with is None and call.tool in ("shop.look", "shop.set", "shop.put", "shop.log"):
            served = calls[call.of_call or ""]
            return (
                None
                if call.tool == "shop.log" and served.tool == "shop.buy"
                else self.thing_of(served, calls)
            )
        return made_with.get("thing") if made_with else None

    def live(self, steps: int) -> None:
        """One process life more."""
        randbytes = random.Random(self.chance.random()).randbytes
        with patch.object(os, "urandom", randbytes):
            asyncio.run(self._live(steps))

    async def _live(self, steps: int) -> None:
        with anyio.fail_after(240):
            async with a_remit(
                self.folder, policy=POLICY, source=self.world, clock=self.clock, **SETTINGS
            ) as self.remit:
                for _ in range(steps):
                    with suppress(RemitError):
                        await self._step()
                    self.world.fate = "well"

    async def _step(self) -> None:
        chance = self.chance
        self.clock.advance(s=chance.choice((1, 20, 240)))
        if chance.random() < 0.15:
            self.world.fate = chance.choice(get_args(Fate)[:5])  # nobody dies here: tests.crash sees to that
        doing = {
            self._call: 44,
            self._call_again: 9,
            self._answer: 9,
            self._take_back: 16,
            self._settle_a_doubt: 5,
            self._wait: 5,
            self._from_outside: 3,
            self._withdraw: 1,
            self._switch: 2,
            self._playbook: 2,
            self._erase: 2,
            self._retain: 2,
        }
        (do,) = chance.choices(list(doing), list(doing.values()))
        await do()

    def _who(self) -> Principal:
        chance = self.chance
        return a_principal(
            chance.choice(AGENTS), chance.choice(USERS), tenant=chance.choice(("acme", *TENANTS))
        )

    def _boss(self, tenant: str) -> Principal:
        return Principal(tenant=tenant, agent="agent:remit-cli", user="user:bea", auth="local")

    async def _call(self) -> None:
        chance, who = self.chance, self._who()
        tool = chance.choice(_TOOLS)
        things = {"set": VERSIONED, "put": PLAIN}.get(tool, THINGS)
        thing, value = chance.choice(things), chance.randint(0, 4)
        arguments: dict[str, Any] = {
            "look": {"thing": thing},
            "buy": {"thing": thing, "price": chance.choice((0, 1, 20, 45, 60, 75, 85, 400))},
            "send": {"text": f"{thing} {value}"},
        }.get(tool, {"thing": thing, "value": value})
        more: dict[str, Any] = {"run": f"run-{chance.randint(1, 4)}", "principal": who}
        if chance.random() < 0.2:
            more["client_key"] = f"key-{chance.randint(1, 10**6)}"

        async def make() -> Any:
            call = self.remit.a_call(f"shop.{tool}", arguments, **more)
            self._carried[call.id] = arguments
            return await govern(call, self.remit.on)

        if tool in ("buy", "send"):
            self._again.append(make)
        await make()

    async def _call_again(self) -> None:
        if self._again:
            await self.chance.choice(self._again[-6:])()

    def _one(self, sql: str, *values: Any) -> dict[str, Any] | None:
        found = self.remit.rows(sql, *values)
        return self.chance.choice(found) if found else None

    async def _answer(self) -> None:
        asked = self._one(
            "SELECT id FROM approvals WHERE state = 'pending' AND expires_us > ? ORDER BY id", self.clock()
        )
        if asked:
            await self.remit.vote(asked["id"], vote=self.chance.choice(("approve", "approve", "reject")))
            await self._call_again()

    async def _withdraw(self) -> None:
        if asked := self._one(
            "SELECT a.*, c.agent, c.user FROM approvals AS a JOIN calls AS c ON c.id = call_id ORDER BY a.id"
        ):
            await self.remit.on.journal.withdraw(
                asked["id"], tenant=asked["tenant"], agent=asked["agent"], user=asked["user"]
            )

    async def _take_back(self) -> None:
        call = self._one(
            "SELECT * FROM calls WHERE kind = 'call' AND effect <> 'read'"
            " ORDER BY created_us DESC, id DESC LIMIT 12"
        )
        if call is None:
            return
        who = a_principal(call["agent"], call["user"], tenant=call["tenant"])
        if self.chance.random() < 0.3:
            who = self._boss(call["tenant"])
        force = who.auth == "local" and self.chance.random() < 0.4
        await undo(call["id"], who, "run-back", self.remit.on, force=force)

    async def _settle_a_doubt(self) -> None:
        call = self._one("SELECT * FROM calls WHERE state = 'in_doubt' ORDER BY id")
        if call is None:
            return
        self.clock.advance(s=120)
        if self.chance.random() < 0.4:
            await probe(call["id"], self.remit.on)
        else:
            happened = self.chance.random() < 0.5
            await self.remit.on.journal.resolve(
                call["id"], happened=happened, reason="I looked.", by="user:bea"
            )

    async def _wait(self) -> None:
        self.clock.advance(s=self.chance.choice((700, 4000, 30_000)))
        if self.chance.random() < 0.5:  # there may be no server that looks just then
            await self.remit.on.journal.expire()
        await send_due(self.remit.on)

    async def _from_outside(self) -> None:
        self.world.write_from_outside(self.chance.choice(THINGS), self.chance.randint(0, 4))

    async def _switch(self) -> None:
        await self.remit.switch("kill", "tool", "shop.put", "acme", on=self.chance.random() < 0.4)

    async def _playbook(self) -> None:
        config = a_config(self.folder, **SETTINGS)
        here = self.folder / "remit.yaml"
        loaded = Loaded(config=config, path=here, folder=self.folder, positions={}, shown="remit.yaml")
        inputs = {"thing": self.chance.choice(THINGS)}
        run = await begin("restock", inputs, self.remit.on, loaded, by="user:bea", anew=True)
        self._carried[f"playbook-{run.id}"] = inputs
        async for _ in carry_out(run):
            pass

    async def _erase(self) -> None:
        tenant, journal = self.chance.choice(TENANTS), self.remit.on.journal
        subject = self.chance.choice((*USERS, "customer:" + self.chance.choice(THINGS)))
        erased = await journal.erase(tenant=tenant, subject=subject, reason="asked", by="user:bea")
        for key in erased.uncleared:
            await finish(journal, key, tenant=tenant, subject=subject)

    async def _retain(self) -> None:
        kept = Retention.model_validate({"payloads": "2d", "before_images": "1d"})
        await sweep(self.remit.on.journal, kept, now_us=self.clock())
