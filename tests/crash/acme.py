"""Acme's own server with a log of every refund that it was asked for, and a lock for as long as it lives.

Acme gives the money of one idempotency key back once, however often it is asked. So whether it was asked
twice cannot be seen in its tables: `sent.log` has a line for each time, written before anything is done.
`acme.lock` is shared by all that live, so who gets it alone knows that none is left.

    python acme.py [arguments of acme_server.py]
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "configs/acme"))

import acme_server
from acme_shop import Row, Tool, perform


def main() -> None:
    lock = os.open("acme.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_SH)
    log = os.open("sent.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def logged(db: sqlite3.Connection, tool: Tool, arguments: dict[str, Any]) -> Row:
        if tool.name == "refund":
            os.write(log, f"{arguments.get('idempotency_key')}\n".encode())
        return perform(db, tool, arguments)

    acme_server.perform = logged
    acme_server.main()


if __name__ == "__main__":
    main()
