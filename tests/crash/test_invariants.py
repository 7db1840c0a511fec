"""Each thing that must not be is noticed after a crash: in a sound record that is broken in one place.

The record is real: a server was killed between the two halves of it. Each test breaks a copy.
"""

from __future__ import annotations

import copy
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import aiohttp
import anyio
import pytest
from tests.crash import books, reconcile
from tests.crash.at_point import fork
from tests.crash.clients import Clients, Told
from tests.crash.every_point import story
from tests.crash.place import Place, beside_acme
from tests.crash.reconcile import Seen, disagreements
from tests.crash.rollback import differences, left_standing
from tests.crash.zygote import a_zygote

from remit.database import reading
from remit.sealer import seal

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    place: Place
    told: Told
    seen: Seen

    def found(self) -> list[str]:
        return disagreements(self.place, self.told, self.seen, living=0)

    def sends(self, *, call_in: str, on_record: bool = True) -> None:
        """A mail goes out after all; and maybe the records do not know that it was called off, either."""
        with reading(self.place.records) as db:
            [mail, *_] = db.all(
                "SELECT id FROM calls WHERE tool = 'acme.send_mail' AND state = ?", (call_in,)
            )
        self.breaks(f"INSERT INTO effects VALUES (99, '{mail['id']}', 'send_mail', 'mail-1', '')", acme=True)
        if not on_record:
            self.breaks(f"UPDATE calls SET state = 'succeeded' WHERE id = '{mail['id']}'")

    def breaks(self, sql: str, *, acme: bool = False) -> None:
        """Do to the records, or to Acme, what nothing that works properly would."""
        path = self.place.acme if acme else self.place.folder / "remit.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA ignore_check_constraints = ON")
            for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                db.execute(f"DROP TRIGGER {name}")
            changed = db.execute(sql).rowcount
        assert changed > 0, "nothing to break"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    """Two lives, the first of which was killed, and what the agent was told by them."""
    folder = tmp_path_factory.mktemp("sound")

    async def made() -> Sound:
        with a_zygote() as zygote:
            async with beside_acme(folder, agents=1) as place:
                clients = Clients(place, random.Random(1))
                for ending in (signal.SIGKILL, signal.SIGTERM):
                    life = await fork(zygote, place)
                    assert await story(clients, life.url)
                    async with aiohttp.ClientSession() as session:
                        for request in (clients.refund(0, 700), clients.update(0, clients.a_customer())):
                            assert await clients.send(session, life.url, request)
                    seal(place.records)
                    life.signal(ending)
                    await life.wait()
                seal(place.records)
                return Sound(place=place, told=clients.told, seen=Seen())

    sound = anyio.run(made)
    assert sound.found() == []
    return sound


@pytest.fixture
def sound(original: Sound, tmp_path: Path) -> Sound:
    folder = tmp_path / "copy"
    shutil.copytree(original.place.folder, folder)
    place = replace(original.place, folder=folder, records=folder / "remit.db")
    return Sound(place=place, told=copy.deepcopy(original.told), seen=copy.deepcopy(original.seen))


def in_records(sql: str) -> Callable[[Sound], None]:
    return partial(Sound.breaks, sql=sql)


def at_acme(sql: str) -> Callable[[Sound], None]:
    return partial(Sound.breaks, sql=sql, acme=True)


def of_acme(state: str, tool: str) -> str:
    """One call."""
    return f"(SELECT MIN(id) FROM calls WHERE kind = 'call' AND state = '{state}' AND tool = 'acme.{tool}')"


BROKEN: list[tuple[str, Callable[[Sound], None]]] = [
    ("I1", in_records(f"DELETE FROM undos WHERE call_id = {of_acme('succeeded', 'refund')}")),
    ("I1", at_acme("INSERT INTO effects (key, tool, thing, value) VALUES ('nobody', 'send_mail', 'm', '')")),
    ("I2", in_records(f"UPDATE calls SET state = 'failed' WHERE id = {of_acme('succeeded', 'refund')}")),
    ("I3", at_acme("DELETE FROM effects WHERE number = (SELECT MAX(number) FROM effects)")),
    (
        "I4",
        in_records(
            "UPDATE calls SET state = 'dispatched', finished_us = NULL"
            f" WHERE id = {of_acme('succeeded', 'refund')}"
        ),
    ),
    ("I4", in_records("UPDATE undos SET state = 'running' WHERE state = 'done'")),
    ("I4", in_records("UPDATE incarnations SET state = 'live' WHERE role = 'http'")),
    (
        "I5",
        at_acme(
            "INSERT INTO effects (key, tool, thing, value)"
            " SELECT key, tool, thing, value FROM effects WHERE tool = 'refund' LIMIT 1"
        ),
    ),
    ("I5", at_acme("UPDATE refunds SET reason = 'the same'")),
    ("A1", in_records("UPDATE events SET body = REPLACE(body, 'refund', 'refuse') WHERE seq = 5")),
    ("A1", in_records("DELETE FROM events WHERE seq = 4")),
    ("A1", in_records("UPDATE incarnations SET last_seq = last_seq + 1 WHERE role = 'http'")),
    ("A2", in_records("UPDATE incarnations SET last_seq = last_seq + 1 WHERE role = 'http'")),
    ("A2", in_records("UPDATE incarnations SET head = SUBSTR(head, 2) || 'x' WHERE state = 'dead'")),
    (
        "A2",
        in_records(
            "UPDATE events SET body = json_set(body, '$.heads', json('[]')) WHERE kind = 'stream.opened'"
        ),
    ),
    ("A3", in_records("DELETE FROM events WHERE kind = 'call.dispatched'")),
    ("A3", in_records("UPDATE calls SET state = 'in_doubt' WHERE state = 'succeeded'")),
    ("A3", in_records("DELETE FROM calls WHERE state = 'denied'")),
    ("A4", in_records("UPDATE log_checkpoints SET root = SUBSTR(root, 2) || 'x'")),
    ("A4", in_records("UPDATE log_checkpoints SET note = note || 'x'")),
    ("A4", in_records("DELETE FROM log_checkpoints WHERE size = (SELECT MIN(size) FROM log_checkpoints)")),
    ("A4", in_records("UPDATE events SET hash = SUBSTR(hash, 2) || 'x' WHERE seq = 3")),
    ("A4", in_records("UPDATE log_runs SET events = events - 1 WHERE first_leaf = 0")),
    ("B1", in_records("UPDATE holds SET amount = amount + 1, state = 'held' WHERE unit = 'eur_cent'")),
    ("B1", in_records("UPDATE holds SET posted = posted + 1")),
    ("B2", in_records("UPDATE accounts SET posted = posted + 1")),
    (
        "B2",
        in_records(
            "INSERT INTO budget_adjustments (at_us, call_id, account, window_start_us, kind, amount)"
            " SELECT resolved_us, call_id, account, window_start_us, 'refund', 1 FROM holds LIMIT 1"
        ),
    ),
    ("B3", in_records("UPDATE accounts SET limit_amount = 1")),
    ("B3", in_records("UPDATE accounts SET overrun = 1")),
    ("B4", in_records("UPDATE holds SET state = 'held'")),
    ("B4", in_records("UPDATE calls SET state = 'in_doubt' WHERE state = 'succeeded'")),
    ("B5", in_records("UPDATE holds SET posted = posted + 1 WHERE account LIKE 'tenant:%'")),
    (
        "B6",
        in_records(
            "INSERT INTO events (stream, seq, at_us, kind, tenant, call_id, body, hash)"
            " SELECT stream, seq + 1000000, at_us, 'call.failed', tenant, call_id, body, hash FROM events"
            " WHERE kind = 'call.succeeded'"
        ),
    ),
    ("B7", in_records("UPDATE accounts SET refunded = posted + 1")),
    ("B7", in_records("UPDATE holds SET refunded = posted + 1")),
    (
        "U1",
        at_acme(
            "INSERT INTO effects (key, tool, thing, value)"
            " SELECT key, tool, thing, value FROM effects WHERE tool = 'cancel_refund' LIMIT 1"
        ),
    ),
    ("U2", at_acme("UPDATE refunds SET status = 'issued', cancelled_at = NULL WHERE status = 'cancelled'")),
    ("U2", at_acme("UPDATE customers SET note = 'as somebody left it' WHERE id LIKE 'cus-1____'")),
    ("U2", at_acme("UPDATE effects SET value = 'another' WHERE value = 'as it was'")),
    ("U3", at_acme("UPDATE effects SET key = 'outsider 1' WHERE number = 3")),
    ("U4", lambda sound: sound.sends(call_in="cancelled")),
    ("U4", lambda sound: sound.sends(call_in="cancelled", on_record=False)),
]


def test_every_invariant_is_broken_here() -> None:
    names = {name for name, _ in BROKEN} | {"U5", "U6"}
    assert names == {*books.INVARIANTS, *reconcile.INVARIANTS, "U5", "U6"}
    assert names == {
        *(f"I{number}" for number in range(1, 6)),
        *(f"A{number}" for number in range(1, 5)),
        *(f"B{number}" for number in range(1, 8)),
        *(f"U{number}" for number in range(1, 7)),
    }


@pytest.mark.parametrize(("name", "breaks"), BROKEN)
def test_a_record_that_is_broken_is_noticed(sound: Sound, name: str, breaks: Callable[[Sound], None]) -> None:
    breaks(sound)
    assert any(flaw.startswith(f"{name}: ") for flaw in sound.found()), sound.found()


def a_step(part: str, *, call: str = "c-1", resource: str = "customer:cus-1") -> dict[str, str]:
    return {
        "call_id": call,
        "part": part,
        "resource": resource,
        "tool": "acme.update_customer",
        "why": "Because.",
    }


def test_a_rollback_that_says_something_else_the_second_time_is_noticed() -> None:
    assert list(differences([a_step("done")], [a_step("done")])) == []
    assert list(differences([a_step("done")], [a_step("conflict")]))
    assert list(differences([a_step("done")], []))


def test_a_rollback_that_leaves_something_standing_is_noticed() -> None:
    assert list(left_standing([a_step("done")], ())) == []
    assert list(left_standing([a_step("conflict")], ()))
    assert list(left_standing([a_step("conflict")], {"cus-1"})) == []
    assert list(left_standing([a_step("conflict"), a_step("doubt", call="c-2")], ())) == []
