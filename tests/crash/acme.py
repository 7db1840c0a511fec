"""Acme's own server with a ledger of everything that it did, and a lock for as long as it lives.

A row of `effects` (see `place.py`) is written in the transaction of the effect, so what stands there has
really happened, and as often as it stands there. Every tool that changes something takes an
`idempotency_key`, which Remit fills in with the id of its call: so each effect names its call. Acme does
not heed it, but for refunds. `acme.lock` is shared by all that live: who gets it alone knows that none is
left.

    python acme.py [arguments of acme_server.py]
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "configs/acme"))

import acme_server
import jsonschema_rs
from acme_shop import TOOLS, Row, Tool, perform

_KEY = "idempotency_key"
#: What each tool changes, and what it makes of it, in the words of its answer.
_CHANGES = {
    "refund": ("refund_id", "status"),
    "cancel_refund": ("refund_id", "status"),
    "update_customer": ("id", "fields"),
    "send_mail": ("mail_id", "to"),
}


def main() -> None:
    lock = os.open("acme.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_SH)
    for name in _CHANGES:
        tool = TOOLS[name]
        takes = {**tool.takes, "properties": {**tool.takes["properties"], _KEY: {"type": "string"}}}
        TOOLS[name] = replace(tool, takes=takes, arguments=jsonschema_rs.validator_for(takes))
    acme_server.perform = noted
    acme_server.main()


def noted(db: sqlite3.Connection, tool: Tool, arguments: dict[str, Any]) -> Row:
    if tool.name not in _CHANGES:
        return perform(db, tool, arguments)
    key = arguments.get(_KEY, "")
    own = {name: value for name, value in arguments.items() if name != _KEY or tool.name == "refund"}
    with db:
        db.execute("BEGIN IMMEDIATE")
        answer = tool.run(db, **own)
        thing, value = (answer[name] for name in _CHANGES[tool.name])
        note = value["note"] if isinstance(value, dict) else value
        db.execute(
            "INSERT INTO effects (key, tool, thing, value) VALUES (?, ?, ?, ?)", (key, tool.name, thing, note)
        )
        return answer


if __name__ == "__main__":
    main()
