"""Acme's rules and rows: what the shop can do, each thing a plain function over one open transaction.

Nothing here knows of MCP: a tool is a function with a closed JSON Schema for what it takes and one for what
it gives. Amounts are integers in the currency's minor unit. `acme_server.py` serves these to agents.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema_rs

Row = dict[str, Any]

#: After this, the money is with the customer's bank and a refund cannot be called back.
CANCEL_WITHIN = timedelta(hours=24)

REFUND_POLICY = """\
Acme's refund policy
1. Refund what was paid, never more, to the way it was paid.
2. Up to 100.00 a support agent decides; up to 1,000.00 a refund supervisor agrees first; above that, finance.
3. A refund can be cancelled for 24 hours. After that the money is with the customer's bank.
4. Always give the reason in the customer's own words.
"""


class RuleError(Exception):
    """Acme's rules forbid this; nothing was changed. The message tells the caller what to do instead."""


def text(*, longest: int, shortest: int = 1) -> Row:
    return {"type": "string", "minLength": shortest, "maxLength": longest}


def identifier(prefix: str) -> Row:
    return {"type": "string", "pattern": f"^{prefix}-[0-9]{{3,12}}$", "examples": [f"{prefix}-1001"]}


def closed(properties: Mapping[str, Row], **more: Any) -> Row:
    """An object with these properties and no others. A name that ends in `?` may be left out."""
    return {
        "type": "object",
        "properties": {name.removesuffix("?"): schema for name, schema in properties.items()},
        "required": [name for name in properties if not name.endswith("?")],
        "additionalProperties": False,
        **more,
    }


CUSTOMER_ID, ORDER_ID = identifier("cus"), identifier("ord")
REFUND_ID, TICKET_ID, MAIL_ID = identifier("ref"), identifier("tic"), identifier("mail")
EMAIL = {"type": "string", "pattern": r"^[^@\s]+@[^@\s]+\.[^@\s]+$", "maxLength": 254}
MONEY = {"type": "integer", "minimum": 0, "description": "In the currency's minor unit: 8000 is 80.00 EUR."}
AMOUNT = {**MONEY, "minimum": 1, "maximum": 100_000_000}
CURRENCY = {"type": "string", "pattern": "^[A-Z]{3}$"}
TIME = {"type": "string", "description": "UTC, ISO 8601."}
TIME_OR_NULL = {**TIME, "type": ["string", "null"]}
ORDER_STATUS = {"enum": ["unpaid", "paid", "partially_refunded", "refunded"]}
SUBJECT, BODY = text(longest=200), text(longest=10_000)

ORDER = closed(
    {
        "order_id": ORDER_ID,
        "customer_id": CUSTOMER_ID,
        "item": text(longest=200),
        "currency": CURRENCY,
        "total_minor": MONEY,
        "paid_minor": MONEY,
        "refunded_minor": MONEY,
        "status": ORDER_STATUS,
    }
)
REFUND = closed(
    {
        "refund_id": REFUND_ID,
        "order_id": ORDER_ID,
        "amount_minor": AMOUNT,
        "currency": CURRENCY,
        "reason": text(longest=500),
        "status": {"enum": ["issued", "cancelled"]},
        "issued_at": TIME,
        "cancelled_at": TIME_OR_NULL,
        "idempotency_key": {"type": ["string", "null"]},
        "order_status": ORDER_STATUS,
    }
)
TICKET = closed(
    {
        "ticket_id": TICKET_ID,
        "customer_id": CUSTOMER_ID,
        "subject": SUBJECT,
        "body": BODY,
        "status": {"enum": ["open", "closed"]},
        "resolution": text(shortest=0, longest=1000),
        "opened_at": TIME,
        "closed_at": TIME_OR_NULL,
    }
)
MAIL = closed({"mail_id": MAIL_ID, "to": EMAIL, "subject": SUBJECT, "queued_at": TIME})
FIELDS = {
    "name": text(longest=200),
    "email": EMAIL,
    "tier": {"enum": ["standard", "gold"]},
    "note": text(shortest=0, longest=1000),
}
CUSTOMER = closed({"id": CUSTOMER_ID, "fields": closed(FIELDS)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    name: str
    description: str
    takes: Row
    gives: Row
    #: What it does, in MCP's words for hints (`readOnlyHint` and so on).
    hints: Mapping[str, bool]
    #: Compiled from `takes`: call `run` only with arguments that it found nothing wrong with.
    arguments: jsonschema_rs.Validator
    run: Callable[..., Row]


TOOLS: dict[str, Tool] = {}


def tool(
    description: str,
    *,
    takes: Mapping[str, Row],
    gives: Row,
    reads: bool = False,
    destroys: bool = False,
    repeats_safely: bool = False,
    leaves_acme: bool = False,
) -> Callable[[Callable[..., Row]], Callable[..., Row]]:
    """Offer a function as the tool of its name."""

    def offer(run: Callable[..., Row]) -> Callable[..., Row]:
        schema = closed(takes)
        TOOLS[run.__name__] = Tool(
            name=run.__name__,
            description=description,
            takes=schema,
            gives=gives,
            hints={
                "readOnlyHint": reads,
                "destructiveHint": destroys,
                "idempotentHint": reads or repeats_safely,
                "openWorldHint": leaves_acme,
            },
            arguments=jsonschema_rs.validator_for(schema),
            run=run,
        )
        return run

    return offer


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def only(db: sqlite3.Connection, query: str, key: str, what: str) -> Row:
    """The one row that `query` finds for `key`. Raises RuleError, naming `what`, when there is none."""
    row = db.execute(query, (key,)).fetchone()
    if row is None:
        raise RuleError(f"There is no {what} {key}.")
    return row


@tool("Look one order up.", takes={"order_id": ORDER_ID}, gives=ORDER, reads=True)
def get_order(db: sqlite3.Connection, order_id: str) -> Row:
    return only(db, "SELECT * FROM orders WHERE order_id = ?", order_id, "order")


@tool(
    "List orders, oldest first; of one customer or in one status when given.",
    takes={
        "customer_id?": CUSTOMER_ID,
        "status?": ORDER_STATUS,
        "limit?": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
    },
    gives=closed({"orders": {"type": "array", "items": ORDER}}),
    reads=True,
)
def list_orders(
    db: sqlite3.Connection, customer_id: str | None = None, status: str | None = None, limit: int = 20
) -> Row:
    query = """
        SELECT * FROM orders
        WHERE customer_id = coalesce(?, customer_id) AND status = coalesce(?, status)
        ORDER BY order_id LIMIT ?"""
    return {"orders": db.execute(query, (customer_id, status, limit)).fetchall()}


SELECT_REFUND = """
    SELECT refund_id, order_id, amount_minor, currency, reason, refunds.status, issued_at, cancelled_at,
           idempotency_key, orders.status AS order_status
    FROM refunds JOIN orders USING (order_id) """


@tool("Look one refund up.", takes={"refund_id": REFUND_ID}, gives=REFUND, reads=True)
def get_refund(db: sqlite3.Connection, refund_id: str) -> Row:
    return only(db, SELECT_REFUND + "WHERE refund_id = ?", refund_id, "refund")


@tool(
    "List the refunds of one order, oldest first, cancelled ones included.",
    takes={"order_id": ORDER_ID},
    gives=closed({"refunds": {"type": "array", "items": REFUND}}),
    reads=True,
)
def list_refunds(db: sqlite3.Connection, order_id: str) -> Row:
    get_order(db, order_id)
    rows = db.execute(SELECT_REFUND + "WHERE order_id = ? ORDER BY refunds.rowid", (order_id,))
    return {"refunds": rows.fetchall()}


@tool(
    "Give back part or all of what was paid for an order. Repeat with the same idempotency_key after a lost"
    " answer: the money is given back once.",
    takes={
        "order_id": ORDER_ID,
        "amount_minor": AMOUNT,
        "reason": text(shortest=3, longest=500),
        "idempotency_key?": text(shortest=8, longest=128),
    },
    gives=REFUND,
    destroys=True,
)
def refund(
    db: sqlite3.Connection, order_id: str, amount_minor: int, reason: str, idempotency_key: str | None = None
) -> Row:
    same = "WHERE idempotency_key = ?"
    if idempotency_key and (before := db.execute(SELECT_REFUND + same, (idempotency_key,)).fetchone()):
        if (before["order_id"], before["amount_minor"]) != (order_id, amount_minor):
            raise RuleError("This idempotency_key belongs to another refund. Use a new key for a new refund.")
        return before
    order = get_order(db, order_id)
    refundable_minor = order["paid_minor"] - order["refunded_minor"]
    if amount_minor > refundable_minor:
        raise RuleError(
            f"Order {order_id} has {refundable_minor} (minor units of {order['currency']}) left to refund;"
            f" {amount_minor} is too much. Ask for at most what is left."
        )
    db.execute(
        "UPDATE orders SET refunded_minor = refunded_minor + ? WHERE order_id = ?", (amount_minor, order_id)
    )
    # Rows are never deleted and the write lock is held, so the count makes the next number.
    (new,) = db.execute(
        """INSERT INTO refunds (refund_id, order_id, amount_minor, reason, issued_at, idempotency_key)
           SELECT 'ref-' || (2001 + count(*)), ?, ?, ?, ?, ? FROM refunds RETURNING refund_id""",
        (order_id, amount_minor, reason, now(), idempotency_key),
    ).fetchall()
    return get_refund(db, new["refund_id"])


@tool(
    "Call a refund back within 24 hours of its issue. Cancelling a cancelled refund changes nothing.",
    takes={"refund_id": REFUND_ID},
    gives=REFUND,
    destroys=True,
    repeats_safely=True,
)
def cancel_refund(db: sqlite3.Connection, refund_id: str) -> Row:
    row = get_refund(db, refund_id)
    if row["status"] == "cancelled":
        return row
    if datetime.now(UTC) - datetime.fromisoformat(row["issued_at"]) > CANCEL_WITHIN:
        raise RuleError(
            f"Refund {refund_id} was issued at {row['issued_at']} and can no longer be cancelled:"
            " the 24 hours are over. Ask finance to collect the money."
        )
    db.execute(
        "UPDATE refunds SET status = 'cancelled', cancelled_at = ? WHERE refund_id = ?", (now(), refund_id)
    )
    db.execute(
        "UPDATE orders SET refunded_minor = refunded_minor - ? WHERE order_id = ?",
        (row["amount_minor"], row["order_id"]),
    )
    return get_refund(db, refund_id)


@tool("Look one support ticket up.", takes={"ticket_id": TICKET_ID}, gives=TICKET, reads=True)
def get_ticket(db: sqlite3.Connection, ticket_id: str) -> Row:
    return only(db, "SELECT * FROM tickets WHERE ticket_id = ?", ticket_id, "ticket")


@tool(
    "Open a support ticket for a customer.",
    takes={"customer_id": CUSTOMER_ID, "subject": SUBJECT, "body": BODY},
    gives=TICKET,
)
def open_ticket(db: sqlite3.Connection, customer_id: str, subject: str, body: str) -> Row:
    get_customer(db, customer_id)
    (new,) = db.execute(
        """INSERT INTO tickets (ticket_id, customer_id, subject, body, opened_at)
           SELECT 'tic-' || (3001 + count(*)), ?, ?, ?, ? FROM tickets RETURNING *""",
        (customer_id, subject, body, now()),
    ).fetchall()
    return new


@tool(
    "Close an open support ticket and say how it was resolved.",
    takes={"ticket_id": TICKET_ID, "resolution": text(longest=1000)},
    gives=TICKET,
)
def close_ticket(db: sqlite3.Connection, ticket_id: str, resolution: str) -> Row:
    if get_ticket(db, ticket_id)["status"] == "closed":
        raise RuleError(f"Ticket {ticket_id} is closed already.")
    db.execute(
        "UPDATE tickets SET status = 'closed', resolution = ?, closed_at = ? WHERE ticket_id = ?",
        (resolution, now(), ticket_id),
    )
    return get_ticket(db, ticket_id)


@tool(
    "Open a closed support ticket again.", takes={"ticket_id": TICKET_ID}, gives=TICKET, repeats_safely=True
)
def reopen_ticket(db: sqlite3.Connection, ticket_id: str) -> Row:
    db.execute(
        "UPDATE tickets SET status = 'open', resolution = '', closed_at = NULL WHERE ticket_id = ?",
        (ticket_id,),
    )
    return get_ticket(db, ticket_id)


@tool(
    "Send a mail in Acme's name. It leaves at once; nothing can call it back.",
    takes={"to": EMAIL, "subject": SUBJECT, "body": BODY},
    gives=MAIL,
    leaves_acme=True,
)
def send_mail(db: sqlite3.Connection, to: str, subject: str, body: str) -> Row:
    (new,) = db.execute(
        """INSERT INTO outbox (mail_id, recipient, subject, body, queued_at)
           SELECT 'mail-' || (4001 + count(*)), ?, ?, ?, ? FROM outbox
           RETURNING mail_id, recipient AS "to", subject, queued_at""",
        (to, subject, body, now()),
    ).fetchall()
    return new


@tool("Look one customer up.", takes={"id": CUSTOMER_ID}, gives=CUSTOMER, reads=True)
def get_customer(db: sqlite3.Connection, id: str) -> Row:
    fields = only(db, "SELECT * FROM customers WHERE id = ?", id, "customer")
    return {"id": fields.pop("id"), "fields": fields}


@tool(
    "Change some of a customer's fields; the others stay as they are.",
    takes={
        "id": CUSTOMER_ID,
        "fields": closed({f"{name}?": FIELDS[name] for name in FIELDS}, minProperties=1),
    },
    gives=CUSTOMER,
    destroys=True,
    repeats_safely=True,
)
def update_customer(db: sqlite3.Connection, id: str, fields: Row) -> Row:
    db.execute(
        "UPDATE customers SET name = :name, email = :email, tier = :tier, note = :note WHERE id = :id",
        get_customer(db, id)["fields"] | fields | {"id": id},
    )
    return get_customer(db, id)


def open_database(path: Path) -> sqlite3.Connection:
    """Open Acme's file, made and seeded if need be. Raises sqlite3.Error when it cannot be used."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    db.row_factory = lambda cursor, row: {
        column[0]: value for column, value in zip(cursor.description, row, strict=True)
    }
    db.execute("PRAGMA journal_mode = WAL")
    # A refund that was answered must survive a power cut as well as a killed process.
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    db.executescript(Path(__file__).with_name("acme.sql").read_text("utf-8"))
    return db


def perform(db: sqlite3.Connection, tool: Tool, arguments: Row) -> Row:
    """Run one tool in one transaction: all of it happens, or nothing does. Raises RuleError."""
    with db:
        db.execute("BEGIN" if tool.hints["readOnlyHint"] else "BEGIN IMMEDIATE")
        return tool.run(db, **arguments)
