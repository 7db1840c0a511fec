"""Faults to seed into undo, rollback, probes and deferral, each of which the random histories must notice.

Each is one replacement in one file of the package: the text must stand there exactly once, so that a fault
cannot silently stop being seeded when the code changes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    file: str
    old: str
    new: str


MUTANTS = [
    # Once only, in order, and nothing of others.
    Mutant("ways_back.py", 'elif row["state"] != "ready":', 'elif row["state"] == "void":'),
    Mutant("ways_back.py", "elif not insisted and _touched_since(", "elif False and _touched_since("),
    Mutant("pipeline.py", "None if undoing.forced else conflict(undoing, now, verdict)", "None"),
    Mutant("images.py", "    if left is None:\n", "    if left is None:\n        return None\n"),
    Mutant("images.py", "(now.body, now.etag) != (", "(now.body, left['etag']) != ("),
    Mutant("images.py", 'and it.left["replaced"] == pile[-1][1]', "and True"),
    Mutant("rollback.py", "sorted(calls, key=_moment, reverse=True)", "sorted(calls, key=_moment)"),
    Mutant("states.py", 'ACTED = ("scheduled", "cancelled", ', "ACTED = ("),
    Mutant(
        "pipeline.py", "if before and before.etag is not None and", "if before and call.kind == 'call' and"
    ),
    Mutant("states.py", "ELSE u.best_effort AND back", "ELSE u.best_effort AND 1 = 0 AND back"),
    # What is put back.
    Mutant(
        "pipeline.py",
        "approved=approved,\n                before=before.body if before",
        "approved=approved,\n                before=b'{\"value\": 0}' if before",
    ),
    # Doubt.
    Mutant("probes.py", "if len(items) == 1:", "if len(items) <= 1:"),
    Mutant("probes.py", "        if answer:\n", "        if True:\n"),
    Mutant("pipeline.py", "is not None and late is None:", "is not None:"),
    Mutant("probes.py", "if await on.journal.changed_since(entry.call_id, entry.tenant):", "if False:"),
    # Held back.
    Mutant("deferred.py", "SET state = 'cancelled', finished_us", "SET finished_us"),
    Mutant("deferred.py", "    if ended == 1:\n        balances", "    if ended == 9:\n        balances"),
    Mutant("deferred.py", "return taken == 1", "return True"),
    Mutant("undo.py", "waits = entry.waits or entry.effect == Effect.DEFERRED", "waits = False"),
]
