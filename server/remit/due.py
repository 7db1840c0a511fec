"""Sending what was held back, once its time has come: each call once, decided anew, by whoever is first.

A call that waits for a budget is sent as soon as that can take it: when the window turns, when the budget
was raised, or when others gave back. Of those that wait for one account, the first is looked at first.

A call whose tool is not there just now waits on, and so does for a while one of which something cannot be
looked up. One that may not be made any more is called off, with the reason on its record. The application
runs this for each server.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import anyio
from anyio.abc import TaskGroup

from remit import confirmations, refusals
from remit.calls import recorded_call
from remit.deferred import LOOK_AGAIN_US
from remit.effects import as_called
from remit.errors import StoreUnavailable
from remit.model import Call, Confirmation, Recorded, Remedy, Tool, Verdict
from remit.pipeline import Services, estimates_of, govern
from remit_rbac import EvaluationError, Rung

_log = logging.getLogger(__name__)
_AT_ONCE = 8


async def send_due(on: Services) -> None:
    """Send every call whose time has come, and wait until that is done. Raises StoreUnavailable."""
    async with anyio.create_task_group() as tasks:
        await begin_to_send(on, tasks, set())


async def begin_to_send(on: Services, tasks: TaskGroup, busy: set[str]) -> int:
    """Have `tasks` send every call whose time has come; return how many. Raises StoreUnavailable.

    `busy` are the sources to which those before are still being sent: one that does not answer keeps no call
    to another waiting.
    """
    there = on.catalog.tools
    due = await on.journal.due([name for name, tool in there.items() if tool.source not in busy], limit=64)
    to_send: dict[str, list[Recorded]] = {}
    for found in due:
        to_send.setdefault(there[found.tool].source, []).append(found)
    for source, calls in to_send.items():
        busy.add(source)
        tasks.start_soon(_send_all, source, calls, on, busy)
    return len(due)


async def _send_all(source: str, calls: Sequence[Recorded], on: Services, busy: set[str]) -> None:
    turns = anyio.CapacityLimiter(_AT_ONCE)

    async def one(found: Recorded) -> None:
        async with turns:
            try:
                await _send(found, on)
            except StoreUnavailable:
                pass  # it is due still
            except Exception:  # noqa: BLE001 - a supervisor: one call must not keep the others down
                _log.exception("call %s is due, and cannot be sent", found.call_id)

    try:
        async with anyio.create_task_group() as tasks:
            for found in calls:
                tasks.start_soon(one, found)
    finally:
        busy.discard(source)


async def _send(found: Recorded, on: Services) -> None:
    tool = on.catalog.tools.get(found.tool)
    if tool is None or not await _is_time(found, tool, on):
        return
    if found.arguments is None:
        call = _again(replace(found, arguments=b"{}"), tool, on)
        await on.journal.refuse(call, refusals.NOT_KEPT)
    elif tool.digest != found.tool_digest:
        await on.journal.refuse(_again(found, tool, on), _CHANGED)
    else:
        await govern(_again(found, tool, on), on)


async def _is_time(found: Recorded, tool: Tool, on: Services) -> bool:
    """Whether the call is due; one that waits for a budget also when that can take it now."""
    now = on.clock()
    if found.due_us is None or found.due_us <= now:
        return True
    if found.arguments is None or now < found.received_us + tool.hold_back_s * 1_000_000:
        return False
    if found.due_us - now <= LOOK_AGAIN_US:
        return False  # what it lacks beside the budget is looked for then
    call = _again(found, tool, on)
    try:
        return await on.journal.can_take(on.accounts.of_call(call, estimates_of(call), now))
    except EvaluationError:
        return True  # it has no price any more, and is refused


def _again(found: Recorded, tool: Tool, on: Services) -> Call:
    """The call as it was let in, to be decided at the time that it is now."""
    call = recorded_call(found, tool)
    call = replace(
        call,
        tool=as_called(tool, call.arguments),
        received_us=on.clock(),
        scheduled_us=found.received_us,
        waited=found.waits_for is not None,
    )
    if found.confirmation is None:
        return call
    given = Confirmation(
        id=found.confirmation, accepted=True, binding=confirmations.binding_of(call), until_us=2**63 - 1
    )
    return replace(call, confirmation=given)


_CHANGED = Verdict(
    rung=Rung.DENY,
    code="tool_changed",
    reason="The tool is not any more what it was when the call was let in.",
    remedy=Remedy.ASK,
)
