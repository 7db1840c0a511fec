"""Taking a call back: the registered plan becomes a governed call of its own.

Who may is policy (`undo` on the tool of the original call); whether it can be is checked in the
transaction that lets it out: once only, in time, and not when the same thing has been changed since.
"""

from __future__ import annotations

from collections.abc import Sequence

from remit.calls import new_call, result_of
from remit.config import Effect
from remit.effects import as_recorded
from remit.errors import UnknownRecord, WrongState
from remit.identity import Principal
from remit.model import Call, Outcome, Recorded, Undoing, Verdict
from remit.pipeline import Services, govern
from remit.ways_back import Undoable
from remit_adapters.base import Reply

ERASED = "what this call carried is erased, so it cannot be taken back any more"
_UNKNOWN = "there is no such call of yours that could be undone"


async def undo(call_id: str, principal: Principal, run: str, on: Services, *, force: bool = False) -> Outcome:
    """Undo one call for `principal`. Raises as `prepare` does; that is on record, too."""
    try:
        call = await prepare(call_id, principal, run, on, force=force)
    except (UnknownRecord, WrongState) as error:
        await on.journal.note_undo_refused(call_id, principal, str(error))
        raise
    return await govern(call, on)


async def prepare(call_id: str, principal: Principal, run: str, on: Services, *, force: bool = False) -> Call:
    """The call that would undo `call_id`. `force` overrides a conflict and is for people only.

    Raises UnknownRecord when there is no such call (or it is another agent's), WrongState when it has no
    plan that can run.
    """
    call = await on.journal.recorded(call_id)
    if call is None or not _concerns(call.principal, principal):
        raise UnknownRecord(_UNKNOWN)
    entry = await on.journal.undoable(call_id)
    if why := _nothing_to_undo(call, entry):
        raise WrongState(why)
    if entry is None:
        raise WrongState(f"this call has no way back: its effect is {call.effect}, and none was declared")
    return undo_call(entry, principal, run, on, force=force)


def overwritten(later: Sequence[str], met: Verdict | None) -> str | None:
    """What insisting on an undo would replace of others', in words: `later` calls, or what it has `met`."""
    if later:
        more = f" and {len(later) - 1} more" if len(later) > 1 else ""
        return f"call {later[0]}{more}, and whatever else was changed since"
    if met is None:
        return None
    return "what was changed since" if met.code == "undo_conflict" else "what cannot be read now"


def _concerns(caller: Principal, principal: Principal) -> bool:
    """Whether a call of `caller` is any business of theirs; may they take it back is for policy to say."""
    if caller.tenant != principal.tenant:
        return False
    if principal.auth in ("local", "playbook"):
        return True
    return (caller.agent, caller.user) == (principal.agent, principal.user)


def _nothing_to_undo(call: Recorded, entry: Undoable | None) -> str | None:
    """Why there is nothing to take back of this call, whatever was declared for its tool."""
    if call.kind != "call":
        return "this call serves another one, and is not taken back itself: name the call that it serves"
    if entry and entry.effect == Effect.DEFERRED and (entry.state == "done" or call.state in _SENT):
        return None  # it was held back: calling it off is refused, since it is done or too late
    if why := _NOTHING.get(call.state):
        return why
    return "this call only read: there is nothing to take back" if call.effect == Effect.READ else None


_SENT = ("dispatched", "in_doubt", "succeeded", "failed")
#: By the state of a call. In the others there is something to take back, or to call off.
_NOTHING = {
    "denied": "this call was refused and never made: there is nothing to take back",
    "awaiting_approval": "this call waits for people to agree and has not been made: there is nothing to "
    "take back, only its request to withdraw or to refuse",
    "rejected": "people refused this call, and it was never made: there is nothing to take back",
    "expired": "the request for this call ran out, and it was never made: there is nothing to take back",
    "withdrawn": "this call was withdrawn before it was made: there is nothing to take back",
    "cancelled": "this call was called off before it was sent: there is nothing to take back",
    "dispatched": "this call is under way: wait until it has ended",
    "in_doubt": "nobody knows what this call did: a person must resolve that first",
    "failed": "this call failed, and what failed has no way back: read the current state",
}


def undo_call(entry: Undoable, principal: Principal, run: str, on: Services, *, force: bool) -> Call:
    """The call that takes this one back. Raises WrongState as `prepare` does."""
    if entry.arguments is None:
        raise WrongState(ERASED)
    original = on.catalog.tools.get(entry.tool)
    waits = entry.waits or entry.effect == Effect.DEFERRED
    if original and waits:
        return new_call(
            tool=original,
            arguments=entry.arguments,
            principal=principal,
            run=run,
            secret=on.secret,
            at_us=on.clock(),
            of_call=entry.call_id,
            undoing=Undoing(tool=original, arguments=entry.arguments, result=None, cancels=True),
        )
    if entry.waits and original is None:
        raise WrongState(
            "the tool of this call is not there now, so the call is neither sent nor called off: try again"
            " later, or have the tool stopped (remit switch on tool): once it is back, that calls it off"
        )
    inverse = on.catalog.tools.get(entry.undo_tool)
    if original is None or inverse is None:
        raise WrongState("the tool that takes this call back is not available now: try again later")
    arguments = entry.undo_arguments
    if arguments is None:
        raise WrongState("this call left nothing to undo, or its way back could not be worked out")
    result = result_of(Reply(body=entry.result))[0] if entry.result is not None else None
    return new_call(
        tool=inverse,
        arguments=arguments,
        principal=principal,
        run=run,
        secret=on.secret,
        at_us=on.clock(),
        of_call=entry.call_id,
        undoing=Undoing(
            tool=as_recorded(original, entry.effect),
            arguments=entry.arguments,
            result=result,
            before=entry.before,
            after=entry.after,
            residue=entry.residue,
            forced=force,
        ),
    )
