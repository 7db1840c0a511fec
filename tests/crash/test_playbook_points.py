"""A playbook that began by itself, killed between any two steps: the next process carries it on, and once."""

from __future__ import annotations

import json
import os
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
from tests.crash import points
from tests.crash.points import KILLED, Death, Moment, Outside
from tests.server.builders import Clock, a_database, rows
from tests.server.test_playbooks import BOOK, a_place_with

from remit.audit_keeping import verify_playbooks
from remit.records import open_records
from remit.triggers import begun, carried_out, resumed

STOP_AND_BUY: dict[str, Any] = {
    **BOOK,
    "inputs": ["who"],
    "steps": [
        {"id": "stop", "stop": "tool", "of": "'shop.set'"},
        {"id": "buy", "call": "shop.buy", "args": {"thing": "inputs.who", "price": "5"}},
    ],
    "on": [{"switch": {"scope": "user"}, "inputs": {"who": "trigger.user"}}],
}


async def live(folder: Path, death: Death | None, *, first: bool) -> Counter[Moment]:
    """One life of a process: what sets the playbook off happens in the first, the next finds what it left."""
    clock = Clock()
    clock.advance(s=0 if first else 60)
    passes, seen = points.die_at(death)
    source = Outside(folder / "till", passes)
    async with a_place_with(folder, STOP_AND_BUY, source, clock) as (remit, loaded):
        if first:
            await remit.switch("kill", "user", "user:zed", "acme")
            points._instrument(passes)
        else:  # somebody has looked at what was stopped
            await remit.switch("kill", "tool", "shop.set", "acme", on=False)
        for run in (*await resumed(remit.on, loaded), *await begun(remit.on, loaded)):
            await carried_out(run)
        assert await resumed(remit.on, loaded) == []
    return seen


def lived(folder: Path, death: Death | None, *, first: bool) -> int:
    """The same in a process of its own; returns how that ended."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            (folder / "seen").write_text(json.dumps(anyio.run(lambda: live(folder, death, first=first))))
            code = 0
        except BaseException:  # noqa: BLE001 - a process of its own, whose end is its code
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_run_that_is_killed_at_any_point_is_carried_on_and_does_nothing_twice() -> None:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        whole = Path(place, "whole")
        whole.mkdir()
        a_database(whole)
        assert lived(whole, None, first=True) == 0
        seen: Counter[Moment] = Counter(json.loads((whole / "seen").read_text()))
        everywhere = [Death(moment=moment, number=n + 1) for moment in seen for n in range(seen[moment])]
        assert len(everywhere) > 8
        for number, death in enumerate(everywhere):
            folder = Path(place, str(number))
            folder.mkdir()
            a_database(folder)
            assert lived(folder, death, first=True) == KILLED, str(death)
            assert lived(folder, None, first=False) == 0, str(death)
            assert points.disagreements(folder, at_rest=False) == [], str(death)
            runs = rows(folder / "remit.db", "SELECT state FROM playbook_runs")
            assert runs in ([{"state": "done"}], [{"state": "doubt"}]), str(death)
            stops = rows(folder / "remit.db", "SELECT 1 FROM events WHERE body LIKE '%switch.on%shop.set%'")
            assert len(stops) == 1, str(death)
            with open_records(folder / "remit.db") as records:
                assert list(verify_playbooks(records)) == [], str(death)
