"""A folder to crash in: Acme's own configuration and policy, many orders to refund, a few agents with keys.

Nothing here runs a server. Acme's file is the outside ledger: what stands in it has really happened.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import yaml
from tests.interop.running import serving

from remit.app import App
from remit.cli.acting import journal_of
from remit.config_file import load
from remit.database import Location, Postgres
from remit.identity import mint_key
from remit.ids import now_us

ACME = Path(__file__).parents[2] / "configs/acme"
#: Acme as a child process of whoever starts this.
ACME_COMMAND = [sys.executable, str(Path(__file__).with_name("acme.py")), "--db", "acme.db"]
ORDERS = 2_000
CUSTOMERS = 4_000
#: What nobody has changed says so.
UNTOUCHED = "as it was"
_PLENTY = 10**12
#: What this place governs beside Acme's own rules.
_MORE_TOOLS = {
    "acme.send_mail": {"effect": "deferred", "hold_back": "1s", "idempotency_arg": "idempotency_key"},
    "acme.cancel_refund": {"idempotency_arg": "idempotency_key"},
    "acme.update_customer": {"idempotency_arg": "idempotency_key"},
}
#: Acme's ledger: a row is written in the transaction of the effect that it is of (see `acme.py`).
LEDGER = """
CREATE TABLE IF NOT EXISTS effects (
    number INTEGER PRIMARY KEY,
    key    TEXT NOT NULL,
    tool   TEXT NOT NULL,
    thing  TEXT NOT NULL,
    value  TEXT NOT NULL
) STRICT;
"""


def order_id(number: int) -> str:
    return f"ord-{10_000 + number}"


def customer_id(number: int) -> str:
    return f"cus-{10_000 + number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    folder: Path
    #: One API key for each agent.
    keys: tuple[str, ...]
    #: Remit starts Acme, so Acme ends with it.
    starts_acme: bool
    #: The audit database.
    records: Location

    @property
    def config(self) -> Path:
        return self.folder / "remit.yaml"

    @property
    def on_postgres(self) -> bool:
        return isinstance(self.records, Postgres)

    @property
    def acme(self) -> Path:
        return self.folder / "acme.db"

    def serve(self) -> list[str]:
        """The command that serves here, at a port of its own."""
        words = ["serve", "--http", "127.0.0.1:0", "--json", "--config", str(self.config)]
        return [sys.executable, "-m", "remit", *words]

    def wait_until_acme_is_gone(self) -> None:
        """Returns once no process of Acme's is left; blocks for as long as one lives."""
        with open(self.folder / "acme.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)


async def a_place(
    folder: Path,
    *,
    agents: int = 3,
    acme_url: str | None = None,
    database: str | None = None,
    through: Path | None = None,
) -> Place:
    """Make `folder` ready to serve. Remit starts Acme itself, unless it is running at `acme_url`.

    `database` is the URL of a PostgreSQL database; without it the records are a SQLite file. Servers reach
    it by the socket in `through` then, and everybody else directly.
    """
    names = [f"agent:bot-{number}" for number in range(agents)]
    records = Postgres(database, folder / "remit.db") if database else folder / "remit.db"
    served = f"{database.partition('?')[0]}?host={through}" if database and through else database
    config = _config(acme_url, served)
    (folder / "remit.yaml").write_text(json.dumps(config, indent=2))  # JSON is YAML
    who = [f"g, {name}, role:support, acme\ng3, {name}, user:alice, acme\n" for name in names]
    more = ["g2, acme.send_mail, grp:can_be_undone\n", *who]
    (folder / "policy.csv").write_text((ACME / "policy.csv").read_text() + "\n" + "".join(more))
    _stock(folder / "acme.db")
    loaded = load(folder / "remit.yaml")
    pepper = App(loaded, role="cli").pepper
    keys: list[str] = []
    async with journal_of(loaded) as journal:
        for name in names:
            record, plaintext = mint_key(
                tenant="acme",
                agent=name,
                user="user:alice",
                label="",
                pepper=pepper,
                at_us=now_us(),
                lifetime_s=86_400,
            )
            await journal.add_key(record, by="local")
            keys.append(plaintext)
    return Place(
        folder=folder,
        keys=tuple(keys),
        starts_acme=acme_url is None,
        records=records,
    )


def _config(acme_url: str | None, database: str | None) -> dict[str, Any]:
    """Acme's own configuration without the other server, and with budgets that last for any campaign."""
    config = yaml.safe_load((ACME / "remit.yaml").read_text())
    acme = {"url": acme_url} if acme_url else {"command": ACME_COMMAND}
    config["sources"] = {"acme": {"kind": "mcp", **acme}}
    config["tools"] = {
        name: {**rule, **_MORE_TOOLS.get(name, {})}
        for name, rule in config["tools"].items()
        if not name.startswith("time.")
    }
    config["budgets"] = [{**budget, "limit": _PLENTY} for budget in config["budgets"]]
    config["http"] = {"bind": "127.0.0.1:0"}
    if database:
        config["store"] = {"path": "remit.db", "url": database, "lease": "1s"}
    return config


def _stock(path: Path) -> None:
    orders = [(order_id(number), "cus-101", "Kettle", "EUR", 10**9, 10**9) for number in range(ORDERS)]
    customers = [
        (customer_id(number), "Customer", "somebody@customer.example", "gold", UNTOUCHED)
        for number in range(CUSTOMERS)
    ]
    with closing(sqlite3.connect(path)) as db:
        db.executescript((ACME / "acme.sql").read_text("utf-8"))
        db.executescript(LEDGER)
        db.executemany(
            "INSERT INTO orders (order_id, customer_id, item, currency, total_minor, paid_minor)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            orders,
        )
        db.executemany(
            "INSERT INTO customers (id, name, email, tier, note) VALUES (?, ?, ?, ?, ?)", customers
        )
        db.commit()


@asynccontextmanager
async def beside_acme(
    folder: Path, *, agents: int = 3, database: str | None = None, through: Path | None = None
) -> AsyncGenerator[Place]:
    """A place whose Acme is a server of its own, and outlives every Remit."""
    with serving([*ACME_COMMAND, "--http", "127.0.0.1:0"], folder) as url:
        yield await a_place(folder, agents=agents, acme_url=url, database=database, through=through)


async def acme_is_gone(place: Place, *, within_s: float = 20) -> bool:
    """Whether every process of Acme's ends by itself."""
    with anyio.move_on_after(within_s):
        await anyio.to_thread.run_sync(place.wait_until_acme_is_gone, abandon_on_cancel=True)
        return True
    return False
