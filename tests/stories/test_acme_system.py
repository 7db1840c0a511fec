"""Acme, the system that the demonstration governs: met as an agent meets it, and the policy it comes with."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import jsonschema_rs
import pytest
from mcp import MCPError, StdioServerParameters
from mcp.client import Client

from remit.config_file import load
from remit.policies import load_policy
from remit_rbac import Policy, Question, Rung

ACME = Path(__file__).parents[2] / "configs" / "acme"
SERVER = str(ACME / "acme_server.py")
MODERN, LEGACY = "2026-07-28", "legacy"

every_era = pytest.mark.parametrize("era", [MODERN, LEGACY])
every_connection = pytest.mark.parametrize(
    ("transport", "era"), [("stdio", MODERN), ("stdio", LEGACY), ("http", MODERN), ("http", LEGACY)]
)


@contextmanager
def acme_over_http(db: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, SERVER, "--db", str(db), "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stdout.readline())["url"], process
        finally:
            process.kill()


@asynccontextmanager
async def acme(db: Path, *, transport: str = "stdio", era: str = MODERN) -> AsyncIterator[Client]:
    with anyio.fail_after(30):
        if transport == "stdio":
            child = StdioServerParameters(command=sys.executable, args=[SERVER], env={"ACME_DB": str(db)})
            async with Client(child, mode=era) as client:
                yield client
        else:
            with acme_over_http(db) as (url, _process):
                async with Client(url, mode=era) as client:
                    yield client


async def ask(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured answer of a call that must succeed, and whose text must say the same."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content[0].text
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


async def refusal(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert result.structured_content is None
    return result.content[0].text


def rows(db: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(db)) as connection:
        return connection.execute(query).fetchall()


def everything(db: Path) -> list[str]:
    with closing(sqlite3.connect(db)) as connection:
        return list(connection.iterdump())


@every_connection
async def test_a_refund_and_its_cancellation_are_seen_by_the_client_and_in_the_database(
    tmp_path: Path, transport: str, era: str
) -> None:
    db = tmp_path / "acme.db"
    async with acme(db, transport=transport, era=era) as client:
        assert (await ask(client, "get_order", order_id="ord-1001"))["status"] == "paid"

        refund = await ask(client, "refund", order_id="ord-1001", amount_minor=8000, reason="It leaks")
        assert refund["status"] == "issued"
        assert refund["order_status"] == "refunded"
        assert rows(db, "SELECT status, refunded_minor FROM orders WHERE order_id = 'ord-1001'") == [
            ("refunded", 8000)
        ]

        cancelled = await ask(client, "cancel_refund", refund_id=refund["refund_id"])
        assert cancelled["status"] == "cancelled"
        assert cancelled["order_status"] == "paid"
        assert await ask(client, "get_refund", refund_id=refund["refund_id"]) == cancelled
        assert rows(db, "SELECT status, refunded_minor FROM orders WHERE order_id = 'ord-1001'") == [
            ("paid", 0)
        ]
        assert rows(db, "SELECT order_id, amount_minor, status FROM refunds") == [
            ("ord-1001", 8000, "cancelled")
        ]


@every_connection
async def test_resources_and_the_prompt_tell_the_policy_and_the_order(
    tmp_path: Path, transport: str, era: str
) -> None:
    async with acme(tmp_path / "acme.db", transport=transport, era=era) as client:
        assert [str(r.uri) for r in (await client.list_resources()).resources] == ["acme://policy/refunds"]
        (template,) = (await client.list_resource_templates()).resource_templates
        assert template.uri_template == "acme://orders/{order_id}"

        policy = (await client.read_resource("acme://policy/refunds")).contents[0].text
        order = json.loads((await client.read_resource("acme://orders/ord-1002")).contents[0].text)
        assert order["total_minor"] == 64000

        prompt = await client.get_prompt("refund_request", {"order_id": "ord-1002"})
        assert policy in prompt.messages[0].content.text
        assert "Workbench" in prompt.messages[0].content.text


@every_era
async def test_every_tool_is_closed_and_says_what_it_does(tmp_path: Path, era: str) -> None:
    async with acme(tmp_path / "acme.db", era=era) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}

    assert set(tools) == {
        "get_order", "list_orders", "get_refund", "list_refunds", "refund", "cancel_refund",
        "get_ticket", "open_ticket", "close_ticket", "reopen_ticket", "send_mail", "get_customer",
        "update_customer",
    }  # fmt: skip
    for tool in tools.values():
        assert tool.description
        assert tool.input_schema["additionalProperties"] is False
        assert tool.output_schema["additionalProperties"] is False
        jsonschema_rs.meta.validate(tool.input_schema)
        jsonschema_rs.meta.validate(tool.output_schema)
        assert tool.annotations.read_only_hint == tool.name.startswith(("get_", "list_"))


async def test_answers_fit_the_schemas_that_were_promised(tmp_path: Path) -> None:
    async with acme(tmp_path / "acme.db") as client:
        schemas = {tool.name: tool.output_schema for tool in (await client.list_tools()).tools}
        refund = {"order_id": "ord-1004", "amount_minor": 100, "reason": "Late"}
        for tool, arguments in [
            ("refund", refund),
            ("refund", {**refund, "idempotency_key": "key-00000001"}),
            ("get_refund", {"refund_id": "ref-2001"}),
            ("cancel_refund", {"refund_id": "ref-2001"}),
            ("list_refunds", {"order_id": "ord-1004"}),
            ("get_order", {"order_id": "ord-1004"}),
            ("list_orders", {}),
            ("open_ticket", {"customer_id": "cus-104", "subject": "Hose", "body": "It is too short."}),
            ("close_ticket", {"ticket_id": "tic-3001", "resolution": "Refunded."}),
            ("get_ticket", {"ticket_id": "tic-3001"}),
            ("reopen_ticket", {"ticket_id": "tic-3001"}),
            ("send_mail", {"to": "desk@garden.example", "subject": "Your hose", "body": "On its way."}),
            ("update_customer", {"id": "cus-104", "fields": {"tier": "standard"}}),
            ("get_customer", {"id": "cus-104"}),
        ]:
            jsonschema_rs.validate(schemas.pop(tool, {}), await ask(client, tool, **arguments))
    assert schemas == {}


async def test_one_idempotency_key_gives_money_back_once(tmp_path: Path) -> None:
    db = tmp_path / "acme.db"
    wanted = {"order_id": "ord-1002", "amount_minor": 4000, "reason": "Bent leg"}
    async with acme(db) as client:
        first = await ask(client, "refund", **wanted, idempotency_key="call-0001")
        assert await ask(client, "refund", **wanted, idempotency_key="call-0001") == first
        other = await refusal(client, "refund", **{**wanted, "amount_minor": 1}, idempotency_key="call-0001")
        assert "new key" in other
        await ask(client, "refund", **wanted, idempotency_key="call-0002")
    assert rows(db, "SELECT count(*), sum(amount_minor) FROM refunds") == [(2, 8000)]


async def test_one_key_asked_for_at_the_same_time_by_two_processes_gives_money_back_once(
    tmp_path: Path,
) -> None:
    db = tmp_path / "acme.db"
    answers: list[dict[str, Any]] = []

    async def refund_some(client: Client) -> None:
        for number in range(10):
            key = f"call-{number:04}"
            wanted = {"order_id": "ord-1003", "amount_minor": 10, "reason": "Dented", "idempotency_key": key}
            answers.append(await ask(client, "refund", **wanted))

    async with acme(db) as one, acme(db) as two, anyio.create_task_group() as tasks:
        for client in (one, two, one, two):
            tasks.start_soon(refund_some, client)
    assert len({answer["refund_id"] for answer in answers}) == 10
    assert rows(db, "SELECT refunded_minor FROM orders WHERE order_id = 'ord-1003'") == [(100,)]


@every_era
async def test_more_than_was_paid_is_never_given_back(tmp_path: Path, era: str) -> None:
    db = tmp_path / "acme.db"
    async with acme(db, era=era) as client:
        part = await ask(client, "refund", order_id="ord-1004", amount_minor=4000, reason="Leaks")
        assert part["order_status"] == "partially_refunded"
        sentence = await refusal(client, "refund", order_id="ord-1004", amount_minor=501, reason="Leaks")
        assert "has 500 (minor units of EUR) left" in sentence
        assert "0 (minor units" in await refusal(
            client, "refund", order_id="ord-1005", amount_minor=1, reason="Unpaid"
        )
    assert rows(db, "SELECT order_id, amount_minor FROM refunds") == [("ord-1004", 4000)]


async def test_the_database_itself_refuses_to_give_back_more_than_was_paid(tmp_path: Path) -> None:
    db = tmp_path / "acme.db"
    async with acme(db) as client:
        await ask(client, "list_orders")
    with pytest.raises(sqlite3.IntegrityError):
        rows(db, "UPDATE orders SET refunded_minor = paid_minor + 1")


async def test_a_refund_can_be_cancelled_for_a_day_and_repeating_it_changes_nothing(tmp_path: Path) -> None:
    db = tmp_path / "acme.db"
    async with acme(db) as client:
        for amount in (100, 200):
            await ask(client, "refund", order_id="ord-1002", amount_minor=amount, reason="Scratched")
        cancelled = await ask(client, "cancel_refund", refund_id="ref-2001")
        assert await ask(client, "cancel_refund", refund_id="ref-2001") == cancelled

        with closing(sqlite3.connect(db)) as connection, connection:
            connection.execute("UPDATE refunds SET issued_at = '2026-01-01T00:00:00+00:00'")
        assert "Ask finance" in await refusal(client, "cancel_refund", refund_id="ref-2002")
    assert rows(db, "SELECT status, refunded_minor FROM orders WHERE order_id = 'ord-1002'") == [
        ("partially_refunded", 200)
    ]


async def test_a_change_of_a_customer_can_be_put_back_from_what_was_read_before(tmp_path: Path) -> None:
    async with acme(tmp_path / "acme.db") as client:
        before = await ask(client, "get_customer", id="cus-103")
        after = await ask(client, "update_customer", id="cus-103", fields={"note": "Call first."})
        assert after["fields"] == before["fields"] | {"note": "Call first."}
        assert await ask(client, "update_customer", id="cus-103", fields=before["fields"]) == before


async def test_tickets_and_mail_leave_rows(tmp_path: Path) -> None:
    db = tmp_path / "acme.db"
    async with acme(db) as client:
        ticket = await ask(client, "open_ticket", customer_id="cus-101", subject="Scale", body="It shows 0.")
        await ask(client, "close_ticket", ticket_id=ticket["ticket_id"], resolution="New battery.")
        closed = await refusal(client, "close_ticket", ticket_id=ticket["ticket_id"], resolution="Again.")
        assert "closed already" in closed
        await ask(client, "send_mail", to="orders@bakery.example", subject="Your scale", body="Works now.")
    assert rows(db, "SELECT status, resolution FROM tickets WHERE ticket_id = 'tic-3003'") == [
        ("closed", "New battery.")
    ]
    assert rows(db, "SELECT mail_id, recipient FROM outbox") == [("mail-4001", "orders@bakery.example")]


async def test_what_does_not_fit_is_refused_in_a_sentence_and_changes_nothing(tmp_path: Path) -> None:
    db = tmp_path / "acme.db"
    refund = {"order_id": "ord-1001", "amount_minor": 80, "reason": "It leaks"}
    cases = [
        ("refund", {**refund, "amount_minor": "80"}, "amount_minor: "),
        ("refund", {**refund, "amount_minor": 0}, "less than the minimum"),
        ("refund", {**refund, "amount_minor": -5}, "less than the minimum"),
        ("refund", {**refund, "amount_minor": 1.5}, "not of type"),
        ("refund", {**refund, "amount_minor": None}, "not of type"),
        ("refund", {**refund, "account": "another"}, "'account' was unexpected"),
        ("refund", {**refund, "idempotency_key": "short"}, "shorter than 8"),
        ("refund", {**refund, "order_id": "ord-9999"}, "There is no order ord-9999."),
        ("refund", {"order_id": "ord-1001", "amount_minor": 80}, '"reason" is a required property'),
        ("get_order", {"order_id": "' OR 1=1 --"}, "does not match"),
        ("get_refund", {"refund_id": "ref-2001"}, "There is no refund ref-2001."),
        ("list_refunds", {"order_id": "ord-9999"}, "There is no order ord-9999."),
        ("open_ticket", {"customer_id": "cus-999", "subject": "a", "body": "b"}, "no customer cus-999"),
        ("reopen_ticket", {"ticket_id": "tic-9999"}, "There is no ticket tic-9999."),
        ("update_customer", {"id": "cus-101", "fields": {}}, "fields: "),
        ("update_customer", {"id": "cus-101", "fields": {"id": "cus-102"}}, "'id' was unexpected"),
    ]

    async with acme(db) as client:
        await ask(client, "list_orders")
        before = everything(db)
        for tool, arguments, sentence in cases:
            assert sentence in await refusal(client, tool, **arguments)
        assert everything(db) == before


@every_era
async def test_what_does_not_exist_is_an_invalid_request(tmp_path: Path, era: str) -> None:
    async with acme(tmp_path / "acme.db", era=era) as client:
        for request in (
            client.call_tool("drop_tables", {}),
            client.read_resource("acme://orders/ord-9999"),
            client.read_resource("acme://elsewhere"),
            client.get_prompt("refund_request", {}),
        ):
            with pytest.raises(MCPError) as error:
                await request
            assert error.value.code == -32602


async def test_a_kill_at_any_moment_leaves_refunds_and_orders_in_agreement(tmp_path: Path) -> None:
    db = tmp_path / "acme.db"

    async def refund_until_killed(calls: int) -> list[str]:
        answered: list[str] = []

        async def refund(client: Client, key: str) -> None:
            wanted = {"order_id": "ord-1003", "amount_minor": 1, "reason": "Dented"}
            await ask(client, "refund", **wanted, idempotency_key=key)
            answered.append(key)
            if len(answered) == calls:
                process.kill()

        with acme_over_http(db) as (url, process):
            try:
                async with Client(url, mode=MODERN) as client, anyio.create_task_group() as tasks:
                    for number in range(calls * 3):
                        tasks.start_soon(refund, client, f"killed-{calls}-{number:03}")
            except ExceptionGroup:
                pass  # how the client says that its server is gone
        return answered

    for calls in (5, 12, 23):
        with anyio.fail_after(30):
            answered = await refund_until_killed(calls)
        assert len(answered) >= calls
        recorded = {key for (key,) in rows(db, "SELECT idempotency_key FROM refunds")}
        assert recorded.issuperset(answered)
        ((refunded_minor,),) = rows(db, "SELECT refunded_minor FROM orders WHERE order_id = 'ord-1003'")
        assert refunded_minor == len(recorded)
        assert rows(db, "PRAGMA integrity_check") == [("ok",)]


async def test_several_servers_may_start_on_one_new_file_together(tmp_path: Path) -> None:
    db = tmp_path / "acme.db"

    async def start() -> None:
        async with acme(db) as client:
            assert len((await ask(client, "list_orders"))["orders"]) == 5

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(start)


def test_a_start_keeps_what_happened_before_it(tmp_path: Path) -> None:
    db = tmp_path / "acme.db"

    async def refund_and_leave() -> None:
        async with acme(db) as client:
            await ask(client, "refund", order_id="ord-1004", amount_minor=2250, reason="Half of it leaks")

    anyio.run(refund_and_leave)
    anyio.run(refund_and_leave)
    assert rows(db, "SELECT status FROM orders WHERE order_id = 'ord-1004'") == [("refunded",)]


@pytest.mark.parametrize("address", ["0.0.0.0:0", "example.com:80", "127.0.0.1:port"])
def test_acme_has_no_login_so_it_listens_on_loopback_only(tmp_path: Path, address: str) -> None:
    command = [sys.executable, SERVER, "--db", str(tmp_path / "acme.db"), "--http", address]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert "127.0.0.1:PORT" in ended.stderr


def test_a_file_that_cannot_be_used_is_said_in_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, SERVER, "--db", str(tmp_path / "absent" / "acme.db")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "Give another file with --db or ACME_DB." in ended.stderr
    assert "Traceback" not in ended.stderr


BOT, ALICE, SUE, STRANGER = "agent:support-bot", "user:alice", "user:sue", "user:stranger"


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(load(ACME / "remit.yaml").config)


def how_far(
    policy: Policy,
    tool: str,
    *,
    effect: str = "reversible",
    agent: str = BOT,
    user: str = ALICE,
    **arguments: Any,
) -> Rung:
    question = Question(
        tenant="acme", agent=agent, user=user, tool=tool, args=arguments, ctx={"effect": effect}
    )
    return policy.decide(question).rung


def may(policy: Policy, subject: str, action: str, tool: str, **arguments: Any) -> bool:
    return policy.allowed(subject, "acme", tool, action, arguments, {"effect": "reversible"}).allowed


@pytest.mark.parametrize(
    ("amount_minor", "rung"),
    [
        (0, Rung.DENY),
        (8_000, Rung.EXECUTE),
        (10_000, Rung.EXECUTE),
        (10_001, Rung.APPROVE),
        (40_000, Rung.APPROVE),
        (100_000, Rung.APPROVE),
        (100_001, Rung.DENY),
        (500_000, Rung.DENY),
        ("80", Rung.DENY),
        (None, Rung.DENY),
    ],
)
def test_the_amount_of_a_refund_decides_how_far_it_goes(
    policy: Policy, amount_minor: Any, rung: Rung
) -> None:
    assert how_far(policy, "acme.refund", amount_minor=amount_minor) is rung
    assert how_far(policy, "acme.refund", amount_minor=amount_minor, user=STRANGER) is Rung.DENY
    assert how_far(policy, "acme.refund", amount_minor=amount_minor, agent="agent:other") is Rung.DENY


def test_only_the_supervisor_approves_and_no_agent_does(policy: Policy) -> None:
    assert policy.approvers("acme", "acme.refund", {"amount_minor": 40_000}, {}) == (SUE,)
    assert policy.approvers("acme", "acme.refund", {"amount_minor": 100_001}, {}) == ()
    assert not may(policy, BOT, "approve", "acme.refund", amount_minor=40_000)


def test_reading_is_allowed_and_nothing_else_of_the_third_party_source(policy: Policy) -> None:
    for tool in ("acme.get_order", "acme.list_refunds", "acme.resources.read", "acme.prompts.get"):
        assert how_far(policy, tool, effect="read") is Rung.EXECUTE
        assert how_far(policy, tool, effect="read", user=STRANGER) is Rung.DENY
    assert how_far(policy, "time.get_current_time", effect="read") is Rung.EXECUTE
    assert how_far(policy, "time.set_clock", effect="irreversible") is Rung.DENY
    assert not policy.visible("acme", BOT, ALICE, "acme.drop_tables")


def test_what_cannot_be_taken_back_is_brought_to_a_person_when_an_agent_does_it(policy: Policy) -> None:
    assert how_far(policy, "acme.send_mail", effect="irreversible") is Rung.APPROVE
    assert how_far(policy, "acme.update_customer", effect="restorable") is Rung.EXECUTE
    assert how_far(policy, "acme.update_customer", effect="irreversible") is Rung.DENY
    mail = policy.allowed(ALICE, "acme", "acme.send_mail", "execute", {}, {"effect": "irreversible"})
    assert mail.allowed


def test_support_and_the_supervisor_may_take_refunds_back(policy: Policy) -> None:
    assert all(may(policy, who, "undo", "acme.refund") for who in (BOT, ALICE, SUE))
    assert not may(policy, STRANGER, "undo", "acme.refund")


async def test_every_tool_of_acme_is_in_the_policy(tmp_path: Path, policy: Policy) -> None:
    async with acme(tmp_path / "acme.db") as client:
        for tool in (await client.list_tools()).tools:
            assert policy.visible("acme", BOT, ALICE, f"acme.{tool.name}"), tool.name
