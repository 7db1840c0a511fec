"""Somebody takes everything back when all is quiet, twice: what a rollback promises after any crash.

U5: a rollback that is made again does nothing and says the same. U6: where nothing is in the way, everything
comes back. In the way of a thing is a call on it of which nobody knows what it did, or saw what it left, and
who wrote to it from outside; a thing with any of these is left out as a whole.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import anyio
from tests.crash.place import Place
from tests.crash.reconcile import effects_of

from remit.database import reading

#: What nobody can know, or take back any more: a mail that is out.
_UNKNOWN = {"open", "doubt"}
_OUT = {"expired", "impossible"}


async def taken_back(place: Place) -> list[str]:
    """Take back all that can be, and once more; returns what is wrong with the two reports.

    Nobody serves meanwhile: what is held back must not be sent between the two.
    """
    first = await _roll_back(place)
    effects = effects_of(place)
    second = await _roll_back(place)
    blocked = {effect["thing"] for effect in effects if effect["key"].startswith("outsider")}
    with reading(place.records) as db:
        seen = {row["call_id"] for row in db.all("SELECT call_id FROM payloads WHERE kind = 'after'")}
    blocked |= {
        effect["thing"]
        for effect in effects
        if effect["tool"] == "update_customer" and effect["key"] not in seen
    }
    found = [f"U5: {what}" for what in differences(first, second)]
    if len(effects_of(place)) != len(effects):
        found.append("U5: a rollback that was made again did something")
    return [*found, *(f"U6: {what}" for what in left_standing(first, blocked))]


def differences(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> Iterator[str]:
    ended, again = ({step["call_id"]: step["part"] for step in steps} for steps in (first, second))
    for call_id in sorted(ended.keys() | again.keys()):
        if ended.get(call_id) != again.get(call_id):
            yield f"{call_id} was {ended.get(call_id)}, and then {again.get(call_id)}"


def left_standing(steps: Sequence[dict[str, Any]], blocked: Collection[str]) -> Iterator[str]:
    things: dict[str, set[str]] = defaultdict(set)
    whys: dict[str, list[str]] = defaultdict(list)
    for step in steps:
        whys[step["resource"] or step["call_id"]].append(f"{step['call_id']}: {step['why']}")
        parts = things[step["resource"] or step["call_id"]]
        parts.add("done" if step["tool"] == "acme.send_mail" and step["part"] in _OUT else step["part"])
    for thing, parts in things.items():
        if not parts & _UNKNOWN and thing.partition(":")[2] not in blocked and parts != {"done"}:
            yield f"nothing was in the way of {thing}, and it ended so: {whys[thing]}"


async def _roll_back(place: Place) -> list[dict[str, Any]]:
    words = ["rollback", "--tool", "acme.*", "--yes", "--json", "--config", str(place.config)]
    ran = await anyio.run_process([sys.executable, "-m", "remit", *words], check=False)
    assert ran.returncode in (0, 1), ran.stderr.decode()
    return json.loads(ran.stdout)["steps"]
