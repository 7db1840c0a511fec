"""Runs of playbooks as rows: who carries one out, what set it off, how it ended. Parts of a transaction.

A cause has one run, whichever process finds it, and a run whose process is gone is taken over by another. The
steps are carried out by `playbooks.py`, what starts a run without a person is looked for by `triggers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from remit.ledger import Ledger
from remit.vault import Vault


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """A run that another process began and did not end."""

    run: str
    name: str
    inputs: Mapping[str, str]
    started_us: int


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
) -> tuple[str, int]:
    """Begin a run, or carry on an equal one that has not ended well; return its id, and when it began."""
    told = _told(inputs)
    found = ledger.one(
        "SELECT id, started_us FROM playbook_runs WHERE name = ? AND digest = ? AND inputs = ?"
        " AND tenant = ? AND state <> 'done' ORDER BY id DESC LIMIT 1",
        (name, digest, told, tenant),
    )
    if found is None or anew:
        _begun(ledger, vault, run, name=name, digest=digest, inputs=told, tenant=tenant, by=by, cause=None)
        return run, ledger.now_us
    ledger.execute(
        "UPDATE playbook_runs SET state = 'running', incarnation = ?, ended_us = NULL WHERE id = ?",
        (ledger.stream, found["id"]),
    )
    _started(ledger, found["id"], name=name, digest=digest, tenant=tenant, by=by, carried_on=True)
    return found["id"], found["started_us"]


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
        " AND (started_us > ? OR cause = ?) LIMIT 1",
        (name, tenant, ledger.now_us - every_us, cause),
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


def take_over(ledger: Ledger, digests: Mapping[str, str]) -> list[Resumed]:
    """The runs that nobody asked for and whose process is gone: this one carries them on.

    `digests` are the versions of now, by name: a run of another version ends here, as failed.
    """
    resumed: list[Resumed] = []
    for row in ledger.all(
        "SELECT p.* FROM playbook_runs AS p JOIN incarnations AS i ON i.id = p.incarnation"
        " WHERE p.state = 'running' AND p.cause IS NOT NULL AND i.state <> 'live' ORDER BY p.id",
    ):
        run, name, digest, tenant = row["id"], row["name"], row["digest"], row["tenant"]
        if digests.get(name) != digest:
            end(ledger, run=run, tenant=tenant, state="failed", why="its version is not configured any more")
            continue
        ledger.execute("UPDATE playbook_runs SET incarnation = ? WHERE id = ?", (ledger.stream, run))
        _started(ledger, run, name=name, digest=digest, tenant=tenant, by="trigger", carried_on=True)
        inputs = orjson.loads(row["inputs"])
        resumed.append(Resumed(run=run, name=name, inputs=inputs, started_us=row["started_us"]))
    return resumed


def note_step(
    ledger: Ledger, *, run: str, tenant: str, step: str, state: str, said: str, call_id: str | None
) -> None:
    """Record how one step ended."""
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


def end(ledger: Ledger, *, run: str, tenant: str, state: str, **more: str) -> None:
    ledger.execute(
        "UPDATE playbook_runs SET state = ?, ended_us = ? WHERE id = ?", (state, ledger.now_us, run)
    )
    ledger.event("playbook.ended", tenant=tenant, call_id=None, run=run, state=state, **more)


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
