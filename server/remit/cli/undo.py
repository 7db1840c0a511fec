"""`remit undo`: take one call back, as a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import click

from remit.cli.options import CALL_DONE, as_option, config_option, json_option, print_json

if TYPE_CHECKING:
    from remit.cli.acting import Person
    from remit.config_file import Loaded
    from remit.model import Outcome
    from remit.records import CallRecord, UndoRecord


@click.command()
@config_option
@json_option
@as_option
@click.option("--force", is_flag=True, help="Even if the same thing was changed since.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.argument("call_id", type=CALL_DONE, metavar="CALL")
def undo(
    config_path: Path, as_json: bool, as_user: str | None, force: bool, dry_run: bool, call_id: str
) -> int:
    """Take a call back by its registered way.

    The way was registered before the call was made. Taking it needs the sources of the call and of its way
    back, and policy must let you `undo` the tool. Exits with 0 when it is undone (or, with --dry-run, could
    be), and with 1 otherwise.
    """
    from remit.cli.acting import in_journal, person
    from remit.config_file import load
    from remit.errors import UnknownRecord
    from remit.records import open_records

    loaded = load(config_path)
    who = person(loaded, as_user)
    with open_records(loaded.config.store.location, loaded.master_key) as found:
        try:
            call = found.call(call_id)
        except UnknownRecord as error:
            if not dry_run:
                why = str(error)
                in_journal(loaded, lambda journal: journal.note_undo_refused(call_id, who.principal(), why))
            raise
        way = None if found.is_erased(call.id) else found.undo(call.id)  # then no source is needed
        conflict = way.resource if dry_run and way and way.state == "conflict" else None
        later = found.later_touches(call, conflict) if conflict else []
    work = _plan if dry_run else _undo
    told = anyio.run(work, loaded, who, call, way, force, [each.id for each in later])
    if as_json:
        print_json({"call_id": call.id, **told})
    elif told["said"] is None:
        _show_plan(told)
    else:
        click.echo(told["said"])
        for each in told.get("in_the_way", ()):
            click.echo(f"In the way: call {each}.")
    return 0 if told["ok"] else 1


async def _undo(
    loaded: Loaded, who: Person, call: CallRecord, way: UndoRecord | None, force: bool, later: Sequence[str]
) -> dict[str, Any]:
    from remit.cli.acting import run_name, services_of
    from remit.undo import undo as take_back

    async with services_of(loaded, sources_of(loaded, call, way) if way else ()) as services:
        outcome = await take_back(call.id, who.principal(), run_name(), services, force=force)
    return _told(outcome, way.residue if way else None)


async def _plan(
    loaded: Loaded, who: Person, call: CallRecord, way: UndoRecord | None, force: bool, later: Sequence[str]
) -> dict[str, Any]:
    from remit.approvals import votes_needed
    from remit.cli.acting import run_name, services_of
    from remit.errors import WrongState
    from remit.pipeline import changed, decide, obstacle
    from remit.undo import overwritten, prepare
    from remit_rbac import Rung

    async with services_of(loaded, sources_of(loaded, call, way) if way else ()) as services:
        undoing = await prepare(call.id, who.principal(), run_name(), services, force=force)
        if way is None:
            raise WrongState("this call has been made just now: ask again")
        decision = decide(undoing, services)
        verdict = decision.verdict
        if verdict.rung is not Rung.DENY:
            verdict = await obstacle(undoing, verdict, services) or verdict
        insists = force and verdict.rung is not Rung.DENY and undoing.undoing
        met = await changed(undoing, insists, verdict, services) if insists else None
        proof = services.journal.proofs.get(services.catalog.plans.get(call.tool, ""))
    ok = verdict.rung is Rung.EXECUTE
    calls_off = undoing.undoing is not None and undoing.undoing.cancels
    return {
        "ok": ok,
        "said": verdict.reason if verdict.rung is Rung.DENY else None,
        "code": verdict.code,
        "approvals": votes_needed(verdict.duties) if verdict.rung is Rung.APPROVE else 0,
        "undoes": call.tool,
        "calls_off": calls_off,
        "tool": None if calls_off else way.tool,
        "arguments": None if calls_off else way.arguments,
        "cost": {} if calls_off else decision.estimates,
        "until_us": way.expires_us,
        "confidence": None if calls_off else "proven" if proof else "claimed",
        "proven_us": proof.at_us if proof else None,
        "proof": proof.digest if proof else None,
        "best_effort": way.best_effort,
        "residue": way.residue,
        "state": way.state,
        "in_the_way": later,
        "overwrites": overwritten(later, met) if insists else None,
    }


def _show_plan(plan: Mapping[str, Any]) -> None:
    """What the undo would be, and how sure it is."""
    from remit.budgets import in_words
    from remit.cli.output import facts, when
    from remit.escaping import escaped_json

    def pairs() -> Iterator[tuple[str, object]]:
        yield "first", f"{plan['approvals']} must agree (remit approvals)" if plan["approvals"] else None
        yield "cost", in_words(plan["cost"]) or None
        yield "until", when(plan["until_us"])
        if plan["calls_off"]:
            return
        if plan["proven_us"]:
            yield "sure", f"proven {when(plan['proven_us'])}, for {plan['proof'][:12]}"
        else:
            yield "sure", f"as far as it is declared: remit tools prove {plan['undoes']} has not tried it"
        yield "force", f"overwrites {plan['overwrites']}" if plan["overwrites"] else None
        if plan["best_effort"]:
            yield "but", "best effort: what somebody wrote in the same moment was not seen"
        yield "stays", plan["residue"]

    would = f"Would call {plan['tool']} {escaped_json(plan['arguments'])}."
    if plan["calls_off"]:
        would = (
            f"Would call off {plan['undoes']}: it has not been sent, so nothing is called and nothing spent."
        )
    facts(would, pairs())


def sources_of(loaded: Loaded, call: CallRecord, way: UndoRecord) -> set[str]:
    """The sources that the way back needs: the call's own, the inverse's and the proof's."""
    from remit.catalog import rules_for, source_of

    declared = rules_for(loaded.config, call.tool).undo
    names = [call.tool, way.tool]
    if declared and declared.verify:
        names.append(declared.verify.call)
    found = [source_of(loaded.config, name) for name in names]
    return {source[0] for source in found if source is not None}


def _told(outcome: Outcome, residue: str | None) -> dict[str, Any]:
    from remit.model import Done, Failed, InDoubt, Pending, Refused, Scheduled, Unconfirmed

    ok, state = False, "refused"
    match outcome:
        case Done():
            state = outcome.undone.get("state") or "failed"
            ok = state == "done"
            said = _ENDS[state]
        case Refused():
            said = outcome.verdict.reason
            if outcome.verdict.code == "undo_conflict":
                said += " --force takes it back all the same, and the later change with it."
        case Scheduled():
            state, said = "pending", "It is held back itself."
        case Pending():
            state = "pending"
            said = f"Waits for people to agree: request {outcome.approval_id}. Then give the command again."
        case Unconfirmed():
            said = outcome.verdict.reason
        case Failed():
            state, said = "ready", f"Nothing was undone: {outcome.message}"
        case InDoubt():
            state, said = "indeterminate", f"{_ENDS['indeterminate']} {outcome.message}"
    if ok and residue:
        said += f" What stays: {residue}"
    return {"ok": ok, "said": said, "state": state, "by_call": outcome.call_id, "residue": residue}


_ENDS = {
    "done": "Undone.",
    "failed": "Not undone: the source refused, or the proof failed. Look at the current state.",
    "indeterminate": "Nobody knows whether it is undone: look at the current state.",
}
