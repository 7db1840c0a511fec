"""Runs of playbooks as rows: who carries one out, what set it off, how it ended. Parts of a transaction.

A cause has one run, whichever process finds it, and a run whose process is gone is taken over by another. It
belongs to one process at a time: who only slept, and wakes when another has it, writes nothing of it any
more. The steps are carried out by `playbooks.py`, what starts a run without a person is looked for by
`triggers.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from remit import switches
from remit.database import Row
from remit.errors import WrongState
from remit.ledger import Ledger
from remit.vault import Vault


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A run that is this process's to carry out from now on."""

    run: str
    name: str
    inputs: Mapping[str, str]
    started_us: int
    #: The steps that are done, and the calls that did them: they are not taken again.
    done: Mapping[str, str | None] = field(default_factory=dict[str, "str | None"])


def begin(
    ledger: Ledger,
    *,
    run: str,
    name: str,
    digest: str,
    inputs: Mapping[str, str],
    tenant: str,
    by: str,
    anew: bool,
    vault: Vault,
) -> Taken:
    """Begin a run, or carry on an equal one that has not ended well.

    Raises WrongState while another process carries that one out.
    """
    told = _told(inputs)
    found = ledger.one(
        "SELECT p.*, i.state AS life, i.pid, i.host FROM playbook_runs AS p"
        " JOIN incarnations AS i ON i.id = p.incarnation WHERE p.name = ? AND p.digest = ? AND p.inputs = ?"
        " AND p.tenant = ? AND p.state <> 'done' ORDER BY p.id DESC LIMIT 1",
        (name, digest, told, tenant),
    )
    if found is None or anew:
        _begun(ledger, vault, run, name=name, digest=digest, inputs=told, tenant=tenant, by=by, cause=None)
        return Taken(run=run, name=name, inputs=inputs, started_us=ledger.now_us)
    if found["state"] == "running" and found["life"] == "live" and found["incarnation"] not in ledger.lives:
        raise WrongState(
            f"run {found['id']} is being carried out by another process ({found['pid']} on {found['host']}):"
            " wait until that has ended, or say --new to begin another run"
        )
    return _taken(ledger, found, by=by)


def trigger(
    ledger: Ledger,
    *,
    run: str,
    name: str,
    digest: str,
    inputs: Mapping[str, str],
    tenant: str,
    trigger: Mapping[str, str],
    cause: str,
    every_us: int,
    vault: Vault,
) -> bool:
    """Begin a run that nobody asked for. False when its cause had one, or the last such run is too new."""
    ledger.write_out()  # the cause may have had its run in this very transaction
    if ledger.one(
        "SELECT id FROM playbook_runs WHERE name = ? AND tenant = ? AND cause IS NOT NULL"
        " AND (started_us > ? AND started_us < ? OR cause = ?) LIMIT 1",
        (name, tenant, ledger.now_us - every_us, ledger.now_us + every_us, cause),
    ):
        return False
    _begun(
        ledger,
        vault,
        run,
        name=name,
        digest=digest,
        inputs=_told(inputs),
        tenant=tenant,
        by="trigger",
        cause=cause,
        trigger=trigger,
    )
    return True


def take_over(
    ledger: Ledger, digests: Mapping[str, str], *, under_way: Collection[str], limit: int
) -> list[Taken]:
    """Runs that nobody asked for and nobody carries out: this process carries them on, the oldest first.

    Their process is gone, or it is this one, and they are not among those that it has `under_way`. `digests`
    are the versions of now, by name: a run of another version ends here, as failed.
    """
    taken: list[Taken] = []
    for row in ledger.all(
        "SELECT p.* FROM playbook_runs AS p JOIN incarnations AS i ON i.id = p.incarnation"
        " WHERE p.state = 'running' AND p.cause IS NOT NULL AND (i.state <> 'live' OR i.id = ?)"
        " ORDER BY p.id",
        (ledger.stream,),
    ):
        if row["incarnation"] == ledger.stream and row["id"] in under_way:
            continue
        if digests.get(row["name"]) != row["digest"]:
            why = "its version is not configured any more"
            _ended(ledger, run=row["id"], tenant=row["tenant"], state="failed", why=why)
        elif row["id"] in under_way or len(taken) < limit:
            taken.append(_taken(ledger, row, by="trigger"))
    return taken


def note_step(
    ledger: Ledger, *, run: str, tenant: str, step: str, state: str, said: str, call_id: str | None
) -> None:
    """Record how one step ended. Raises WrongState where the run is another's by now."""
    _must_have(ledger, run)
    ledger.event(
        "playbook.step",
        tenant=tenant,
        call_id=None,
        run=run,
        step=step,
        state=state,
        said=said,
        call=call_id,
    )


def stop(
    ledger: Ledger,
    *,
    run: str,
    tenant: str,
    step: str,
    scope: str,
    target: str,
    of_tenant: str,
    what: str,
    reason: str,
    by: str,
) -> str:
    """Turn the kill switch on as a step, and record that; return what is said of it.

    Both at once: what a person has turned off since is not turned on again by who carries the run on. Raises
    WrongState where the run is another's by now.
    """
    _must_have(ledger, run)
    changed = switches.turn(
        ledger, kind="kill", scope=scope, target=target, tenant=of_tenant, on=True, reason=reason, by=by
    )
    said = f"Stopped: {what}." if changed else f"{what} was stopped."
    note_step(ledger, run=run, tenant=tenant, step=step, state="done", said=said, call_id=None)
    return said


def end(ledger: Ledger, *, run: str, tenant: str, state: str, **more: str) -> None:
    """Record how a run ended. Raises WrongState where it is another's by now."""
    _must_have(ledger, run)
    _ended(ledger, run=run, tenant=tenant, state=state, **more)


def _must_have(ledger: Ledger, run: str) -> None:
    """Raise WrongState unless the run is this process's, in whichever of its lives it began it."""
    row = ledger.one("SELECT state, incarnation FROM playbook_runs WHERE id = ?", (run,))
    if row is None or row["state"] != "running" or row["incarnation"] not in ledger.lives:
        raise WrongState(
            f"run {run} was taken over by another process while this one slept: see what it does"
        )


def _ended(ledger: Ledger, *, run: str, tenant: str, state: str, **more: str) -> None:
    ledger.execute(
        "UPDATE playbook_runs SET state = ?, ended_us = ? WHERE id = ?", (state, ledger.now_us, run)
    )
    ledger.event("playbook.ended", tenant=tenant, call_id=None, run=run, state=state, **more)


def _taken(ledger: Ledger, row: Row, *, by: str) -> Taken:
    """Carry a run on from where it is."""
    run = row["id"]
    ledger.execute(
        "UPDATE playbook_runs SET state = 'running', incarnation = ?, ended_us = NULL WHERE id = ?",
        (ledger.stream, run),
    )
    _started(
        ledger, run, name=row["name"], digest=row["digest"], tenant=row["tenant"], by=by, carried_on=True
    )
    return Taken(
        run=run,
        name=row["name"],
        inputs=orjson.loads(row["inputs"]),
        started_us=row["started_us"],
        done=_done(ledger, run),
    )


def _done(ledger: Ledger, run: str) -> dict[str, str | None]:
    """The steps of a run that are done, and the call of each that made one."""
    rows = ledger.all(
        "SELECT body FROM events WHERE call_id IS NULL AND kind = 'playbook.step' AND body LIKE ?"
        " ORDER BY stream, seq",
        (f'%"run":"{run}"%',),
    )
    steps = [orjson.loads(row["body"]) for row in rows]
    return {step["step"]: step["call"] for step in steps if step["run"] == run and step["state"] == "done"}


def _told(inputs: Mapping[str, str]) -> str:
    """Inputs as they are stored: equal ones are equal texts."""
    return orjson.dumps(inputs, option=orjson.OPT_SORT_KEYS).decode()


def _begun(
    ledger: Ledger,
    vault: Vault,
    run: str,
    *,
    name: str,
    digest: str,
    inputs: str,
    tenant: str,
    by: str,
    cause: str | None,
    **more: Any,
) -> None:
    ledger.insert(
        "playbook_runs",
        (run, name, digest, inputs, tenant, "running", by, cause, ledger.stream, ledger.now_us, None),
    )
    _started(
        ledger,
        run,
        name=name,
        digest=digest,
        tenant=tenant,
        by=by,
        carried_on=False,
        # Events stay, so they do not have the inputs, which may name a customer.
        inputs=vault.name(tenant, inputs),
        cause=cause,
        **more,
    )


def _started(
    ledger: Ledger,
    run: str,
    *,
    name: str,
    digest: str,
    tenant: str,
    by: str,
    carried_on: bool,
    **more: Any,
) -> None:
    ledger.event(
        "playbook.started",
        tenant=tenant,
        call_id=None,
        run=run,
        playbook=name,
        digest=digest,
        carried_on=carried_on,
        by=by,
        **more,
    )
