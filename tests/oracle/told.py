"""What the sealed events alone tell of every call, its money, its requests and its way back: plain Python.

Knows the events, the documentation, and nothing of how Remit keeps its tables. Of the things that calls touch
events have a keyed digest, and no name: these are compared by it (`Told.named`).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: What was sent and stays, unless it is taken back.
_STANDS = ("dispatched", "in_doubt", "succeeded")
Facts = Mapping[str, Any]
Row = tuple[Any, ...]


@dataclass(kw_only=True)
class Request:
    id: str
    votes_needed: int
    expires_us: int
    created_us: int
    state: str = "pending"
    #: Who answered, and what.
    voters: list[str] = field(default_factory=list[str])
    votes: list[str] = field(default_factory=list[str])


@dataclass(kw_only=True)
class Hold:
    window_us: int
    amount: int
    state: str = "held"
    posted: int = 0
    refunded: int = 0


@dataclass(kw_only=True)
class WayBack:
    tool: str
    expires_us: int
    best_effort: bool
    residue: str | None
    state: str
    undo_call: str | None = None


@dataclass(kw_only=True)
class Call:
    id: str
    kind: str
    of_call: str | None
    tenant: str
    agent: str
    user: str
    run: str
    tool: str
    effect: str
    verdict: str
    code: str
    policy_version: str
    rows: list[str]
    reason_digest: str | None
    created_us: int
    subjects: list[str]
    state: str = ""
    error_code: str | None = None
    dispatched_us: int | None = None
    resolved: bool = False
    #: Digest of what it touched.
    touched: str | None = None
    way: WayBack | None = None
    request: Request | None = None
    #: By account.
    holds: dict[str, Hold] = field(default_factory=dict[str, Hold])
    cleared: bool = False

    @property
    def moment(self) -> tuple[int, str]:
        return self.dispatched_us or 0, self.id

    def spent(self) -> dict[str, int]:
        """What it cost by unit, less what came back: every level of its accounts pays the same."""
        return {unit_of(name): hold.posted - hold.refunded for name, hold in self.holds.items()}


def unit_of(account: str) -> str:
    return account.split(":")[-2]


class Told:
    """The events of an export, folded one by one.

    `limits` are the budgets', by scope, unit and window; `digest` is that of words, within a tenant.
    """

    def __init__(
        self,
        lines: Iterable[str],
        limits: Mapping[tuple[str, str, str], int],
        digest: Callable[[str, str], str],
    ) -> None:
        self.calls: dict[str, Call] = {}
        self.events: list[Facts] = []
        self.moves: Counter[Row] = Counter()
        #: Held, posted and given back, and what is beyond the limit, by account and window.
        self.balances: dict[tuple[str, int], dict[str, int]] = defaultdict(
            lambda: dict.fromkeys(("held", "posted", "refunded", "overrun"), 0)
        )
        self.digest = digest
        self._limits = limits
        self._keys: dict[str, tuple[str, str]] = {}
        self._erased: dict[str, int] = {}
        for line in lines:
            self._tell(json.loads(line)["event"])

    @property
    def until_us(self) -> int:
        """When the last of it happened."""
        return self.events[-1]["at_us"]

    def named(self, tenant: str, words: str | None) -> str | None:
        """The digest by which events know these words; of what was erased it stands there itself."""
        if words is None:
            return None
        return words.removeprefix("erased:") if words.startswith("erased:") else self.digest(tenant, words)

    def _tell(self, it: Facts) -> None:
        self.events.append(it)
        kind = it["kind"]
        if kind == "audit.keyed":
            self._keys[it["key"]] = it["tenant"], it["name"]
        elif kind == "audit.erased":
            self._erased |= dict.fromkeys(it["keys"], it["at_us"])
        elif kind == "audit.cleared":
            self._clear(it["key"], it["at_us"])
        elif kind.startswith(("call.", "approval.")):
            call = self.calls.get(it["call_id"]) or self._begin(it)
            if kind.startswith("approval."):
                self._answer(call, kind.removeprefix("approval."), it)
            else:
                self._move(call, kind.removeprefix("call."), it)

    def _begin(self, it: Facts) -> Call:
        copied = ("of_call", "tenant", "agent", "user", "run", "tool", "effect", "verdict", "code", "rows")
        call = Call(
            id=it["call_id"],
            kind=it["purpose"],
            policy_version=it["policy_version"],
            reason_digest=it.get("reason_digest"),
            created_us=it["received_us"],
            subjects=it["subjects"],
            **{name: it[name] for name in copied},
        )
        self.calls[call.id] = call
        return call

    def _answer(self, call: Call, said: str, it: Facts) -> None:
        request = call.request
        assert request
        if said in ("approve", "reject"):
            request.voters.append(it["user"])
            request.votes.append(said)
            request.state, request.expires_us = it["state"], it["expires_us"]
        else:
            request.state = said
        if request.state in ("rejected", "expired", "withdrawn"):
            call.state = request.state

    def _move(self, call: Call, state: str, it: Facts) -> None:
        at_us = it["at_us"]
        if state == "awaiting_approval":
            call.request = Request(
                id=it["approval_id"],
                votes_needed=it["votes_needed"],
                expires_us=it["expires_us"],
                created_us=at_us,
            )
        if state in ("scheduled", "dispatched"):
            self._let_in(call, state, it)
        call.touched = it.get("touched") or call.touched
        if state in ("succeeded", "failed", "in_doubt"):
            call.error_code = it.get("error_code")
            call.resolved |= it.get("resolution") is not None
        if state == "cancelled":
            call.error_code = "cancelled" if it.get("by_call") else it["code"]
        if state == "resolved":
            call.resolved, state = True, it["state"]
        call.state = "scheduled" if state == "postponed" else state
        if state in ("succeeded", "failed", "cancelled"):
            self._resolve(call, {each["account"]: each["amount"] for each in it.get("spent", ())}, at_us)
            if call.way:
                self._end_way(call, call.way, it)
        if (
            call.kind == "undo"
            and call.of_call
            and state in ("dispatched", "succeeded", "failed", "in_doubt")
        ):
            self._take(call, self.calls[call.of_call], it)

    def _let_in(self, call: Call, state: str, it: Facts) -> None:
        call.run = it["run"]  # people may have been asked in another
        if it.get("approval_id") and call.request:
            call.request.state = "used"
        if state == "dispatched":
            call.dispatched_us = it["at_us"]
            if call.way:
                call.way.state = "void"  # it can be called off no more
        if way := it.get("undo"):
            call.way = WayBack(
                tool=way["tool"],
                expires_us=way["expires_us"],
                best_effort=way["best_effort"],
                residue=way.get("residue"),
                state="ready" if state == "scheduled" else "registered",
            )
        for each in it.get("holds", ()):
            call.holds[each["account"]] = Hold(window_us=each["window_us"], amount=each["amount"])
            self._change(call.id, each["account"], each["window_us"], it["at_us"], hold=each["amount"])

    def _resolve(self, call: Call, spent: Mapping[str, int], at_us: int) -> None:
        for account, hold in call.holds.items():
            hold.posted = spent.get(account, 0)
            hold.state = "posted" if hold.posted else "voided"
            moves = {"release": hold.amount} | ({"post": hold.posted} if hold.posted else {})
            self._change(call.id, account, hold.window_us, at_us, **moves)

    def _end_way(self, call: Call, way: WayBack, it: Facts) -> None:
        if it.get("by_call"):
            way.state, way.undo_call = "done", it["by_call"]
        elif it["kind"] == "call.cancelled" or it.get("state") == "failed":
            way.state = "void"
        elif it["kind"] == "call.resolved":
            way.state = "void"  # it happened, and nobody saw the answer that its way back is made of
        elif way.state == "registered":
            way.state = it.get("undo") or "void"
        if call.cleared and way.state == "ready":
            way.state = "void"

    def _take(self, undo: Call, call: Call, it: Facts) -> None:
        """What an undo has done to the way back of its call."""
        if call.way is None or call.state == "cancelled":
            return
        if it["kind"] == "call.dispatched":
            call.way.state, call.way.undo_call = "running", undo.id
            return
        resolved = {"succeeded": "done", "failed": "ready"}.get(it.get("state", ""))
        end = resolved or it.get("undo") or "indeterminate"
        call.way.state = "void" if end == "ready" and call.cleared else end
        for each in it.get("refunded", ()):
            hold = call.holds[each["account"]]
            hold.refunded += each["amount"]
            self._change(call.id, each["account"], hold.window_us, it["at_us"], refund=each["amount"])

    def _change(self, call_id: str, account: str, window_us: int, at_us: int, **amounts: int) -> None:
        """One change of a balance and, where that takes it further beyond its limit or back, the overrun."""
        balance = self.balances[account, window_us]
        for kind, amount in amounts.items():
            self.moves[at_us, call_id, account, window_us, kind, amount] += 1
            name = {"hold": "held", "release": "held", "post": "posted", "refund": "refunded"}[kind]
            balance[name] += -amount if kind == "release" else amount
        scope, unit, window = account.split(":")[0], *account.split(":")[-2:]
        over = balance["held"] + balance["posted"] - balance["refunded"] - self._limits[scope, unit, window]
        if more := max(0, over) - balance["overrun"]:
            self.moves[at_us, call_id, account, window_us, "overrun", more] += 1
            balance["overrun"] += more

    def standing(self) -> dict[tuple[str, int], Row]:
        return {account: tuple(balance.values()) for account, balance in self.balances.items()}

    def _clear(self, key: str, at_us: int) -> None:
        """The words of all calls under a destroyed key are gone, and so is the way back that needs them."""
        tenant, name = self._keys[key]
        for call in self.calls.values():
            of_user = call.tenant == tenant and self.digest(tenant, call.user) == name
            if key in call.subjects or (of_user and call.created_us <= self._erased[key]):
                call.cleared = True
                waits = call.state == "scheduled"
                if call.way and call.way.state == "ready" and (waits or call.way.expires_us > at_us):
                    call.way.state = "void"

    # What documented views and commands must say of it.

    def way_back(self, call: Call, now_us: int) -> str | None:
        """docs/undo.md, "States of a way back"."""
        way = call.way
        if way is None:
            changes = call.kind == "call" and call.effect != "read" and call.state in _STANDS
            return "impossible" if changes else None
        if way.state == "void":
            sent = call.effect == "deferred" and call.dispatched_us is not None
            return "expired" if sent else "impossible"
        if way.state != "ready":
            return way.state
        if call.state == "scheduled":
            return "ready"
        if way.expires_us <= now_us:
            return "expired"
        return "conflict" if self._is_changed(call, way) or self._met_somebody(call) else "ready"

    def _is_changed(self, call: Call, way: WayBack) -> bool:
        for other in self.calls.values():
            if (
                other is call
                or call.touched is None
                or (other.tenant, other.touched) != (call.tenant, call.touched)
            ):
                continue
            taken = other.way.state if other.way else ""
            if other.moment > call.moment:
                if other.state in _STANDS and taken != "done":
                    return True
            elif way.best_effort and other.way and other.way.undo_call:  # from under it, as people can insist
                back = self.calls[other.way.undo_call]
                if back.state in _STANDS and back.moment > call.moment:
                    return True
        return False

    def _met_somebody(self, call: Call) -> bool:
        """Whether the last undo that looked found what an outsider has changed."""
        looked = {each.of_call for each in self.calls.values() if each.kind == "after"}
        tried = [each for each in self.calls.values() if each.of_call == call.id and each.id in looked]
        tried = [each for each in tried if each.kind == "undo"]
        if not tried:
            return False
        last = max(tried, key=lambda each: each.created_us)
        return "undo_conflict" in (last.code, last.error_code)
