"""A record of many calls: how large it is, what each documented question costs, how fast it is verified.

Calls of each kind are made once, by the real pipeline, and read back. Copies of their rows are then written
in bulk, with other names, ids, times, payloads and hashes, spread over 90 days until now: everything is
encoded, chained and sealed as the product does it, so `remit audit verify` must find nothing. Arguments and
results are small. What is asked is every query in `docs/audit.md`, word for word, its views, and each filter
of `remit calls list`; of three times each, the shortest counts.

    python -m benchmarks.growth [--calls 10000000] [--postgres] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Boolean
from tests.server.builders import a_remit, a_reply, tools

from benchmarks.ledger import postgres
from benchmarks.targets.launch import ROOT
from remit.audit import verify_balances, verify_events
from remit.binding import binding_of
from remit.calls_told import WORDS
from remit.chain import GENESIS, canonical, link
from remit.database import Location
from remit.errors import StoreUnavailable
from remit.ids import now_us, uuid7
from remit.journal import open_journal
from remit.model import Pending
from remit.postgres import Session
from remit.records import CallQuery, Records, open_records
from remit.redo import inserts
from remit.sealer import seal
from remit.tables import metadata
from remit.vault import Seal, committed

DAYS = 90
AGENTS, USERS, ORDERS = 200, 500, 100_000
CALLS_OF_A_RUN = 12
CALLS_OF_A_LIFE = 250_000
AT_ONCE = 5_000
#: Longer than this, a query is given up.
GIVEN_UP_S = 120
TARGET_MS = 50
#: How many of 100,000 calls are of which kind.
MIX = {"read": 85_000, "write": 13_000, "denied": 1_500, "failed": 450, "approved": 40, "pending": 10}

TOOLS = tools(buy={"price": {"eur_cent": "args.price"}, "on_error": "no_effect"})
BUDGETS = [{"scope": "agent", "unit": "eur_cent", "window": "day", "limit": 10**15}]
#: What the documented queries ask for is what these are called here.
RENAMED = (("shop.look", "acme.get_order"), ("shop.buy", "acme.refund"), ("shop.give_back", "acme.take_back"))
PER_CALL = ("calls", "payloads", "holds", "budget_adjustments", "touches", "undos", "approvals")
DAY_US = 86_400_000_000


@dataclass(slots=True, kw_only=True)
class Shape:
    """One kind of call: its rows and events, with slots for what differs from call to call."""

    #: By table: each row's constants, and which of its columns are which slot or text.
    rows: list[tuple[str, list[Any], list[tuple[int, str]], list[tuple[int, str]]]]
    #: Payloads: kind and text.
    payloads: list[tuple[str, str]]
    #: Kind, time and body of each event.
    events: list[tuple[str, str, str]]
    #: Of which its events have a digest: the slot of that, and the words.
    words: list[tuple[str, str]]
    #: How long after the call was received each time is.
    times: dict[str, int]
    #: Whether it holds on its agent's account, and what it cost there.
    pays: bool
    spends: int


async def shapes(folder: Path) -> dict[str, Shape]:
    """Make a call of each kind, and take its rows as the pattern of others."""
    ids: dict[str, str] = {}
    async with a_remit(folder, tools=TOOLS, budgets=BUDGETS) as remit:
        shop, at = remit.source, remit.clock
        shop.on["look"] = {"status": "paid"}
        shop.on["buy"] = {"order": "made-@"}
        made = {"thing": "thing-@", "price": 77}
        ids["read"] = (await remit.done("shop.look", {"thing": "thing-@"}, run="run-@")).call_id
        ids["write"] = (await remit.done("shop.buy", made, run="run-@")).call_id
        at.advance(s=1)
        ids["denied"] = (await remit.refused("shop.buy", {**made, "price": 9000}, run="run-@")).call_id
        shop.on["buy"] = a_reply("out of stock", is_error=True)
        ids["failed"] = (await remit.call("shop.buy", made, run="run-@", client_key=None)).call_id
        shop.on["buy"] = {"order": "made-@"}
        for kind, price in (("approved", 777), ("pending", 778)):
            asked = await remit.call("shop.buy", {**made, "price": price}, run="run-@")
            assert isinstance(asked, Pending), asked
            ids[kind] = asked.call_id
            if kind == "approved":
                await remit.vote(asked.approval_id)
                await remit.done("shop.buy", {**made, "price": price}, run="run-@")
        path = remit.path
    with open_records(path) as records:
        return {kind: shape(records, call_id) for kind, call_id in ids.items()}


def shape(records: Records, call_id: str) -> Shape:
    (call,) = (dict(row) for row in records.rows("SELECT * FROM calls WHERE id = ?", (call_id,)))
    start: int = call["created_us"]
    times: dict[str, int] = {}
    known: list[tuple[str, str]] = [
        (call_id, "id"),
        (call["incarnation"], "stream"),
        (call["fingerprint"], "fingerprint"),
        *((call[name], name) for name in ("arguments_commit", "result_commit") if call[name]),
        ("agent:bot", "agent"),
        ("user:ann", "user"),
        ("run-@", "run"),
        ("thing-@", "thing"),
        ("made-@", "made"),
        (str(start // DAY_US * DAY_US), "day"),
    ]
    if call["approval_id"]:
        known.append((call["approval_id"], "approval"))
        (asked,) = records.rows("SELECT binding FROM approvals WHERE call_id = ?", (call_id,))
        known.append((asked["binding"], "binding"))

    def slotted(value: Any) -> str:
        """A text with `%(slot)s` in the places of what differs."""
        text = str(value).replace("%", "%%")
        for found, slot in known:
            text = text.replace(found, f"%({slot})s")
        for old, new in RENAMED:
            text = text.replace(old, new)

        def moment(match: re.Match[str]) -> str:
            slot = f"t{int(match[0]) - start}"
            times[slot] = int(match[0]) - start
            return f"%({slot})s"

        return re.sub(r"(?<![\w.])1800\d{12}(?![\w.])", moment, text)

    events: list[tuple[str, str, str]] = []
    words: dict[str, str] = {}
    for row in records.rows("SELECT * FROM events WHERE call_id = ? ORDER BY rowid", (call_id,)):
        facts = orjson.loads(row["body"])
        for column, slot in WORDS.items():
            if facts.get(slot) and slot not in words:
                words[slot] = slotted(call[column])
                known.append((facts[slot], slot))
        if facts.get("context_commit"):
            known.append((facts["context_commit"], "context_commit"))
        if facts.get("touched"):
            known.append((facts["touched"], "touched"))
        body = slotted(row["body"].replace(f'"seq":{row["seq"]},', '"seq":@@,')).replace("@@", "%(seq)s")
        events.append((row["kind"], slotted(row["at_us"])[2:-2], body))
    rows: list[tuple[str, list[Any], list[tuple[int, str]], list[tuple[int, str]]]] = []
    payloads: list[tuple[str, str]] = []
    for table in PER_CALL:
        key = "id" if table == "calls" else "call_id"
        for row in records.rows(f"SELECT * FROM {table} WHERE {key} = ?", (call_id,)):  # noqa: S608
            if table == "payloads":
                text = records.opened(call_id, row["kind"]) or b""
                payloads.append((row["kind"], slotted(text.decode())))
                continue
            columns = metadata.tables[table].columns
            values = [bool(row[it.name]) if isinstance(it.type, Boolean) else row[it.name] for it in columns]
            rows.append((table, *cells(values, slotted)))
    for row in records.rows(
        "SELECT votes.* FROM votes JOIN approvals ON id = approval_id WHERE call_id = ?", (call_id,)
    ):
        rows += [("votes", *cells(list(row), slotted))]
    holds = [row[0] for row in records.rows("SELECT posted FROM holds WHERE call_id = ?", (call_id,))]
    return Shape(
        rows=rows,
        payloads=payloads,
        events=events,
        words=list(words.items()),
        times=times,
        pays=bool(holds),
        spends=sum(holds),
    )


def cells(
    row: Sequence[Any], slotted: Callable[[Any], str]
) -> tuple[list[Any], list[tuple[int, str]], list[tuple[int, str]]]:
    """A row's constants, its cells that are a slot, and those that are a text with some."""
    constants, slots, texts = list(row), list[tuple[int, str]](), list[tuple[int, str]]()
    for place, value in enumerate(row):
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            continue
        text = slotted(value)
        if match := re.fullmatch(r"%\((\w+|t-?\d+)\)s", text):
            slots.append((place, match[1]))
        elif "%(" in text:
            texts.append((place, text))
        elif isinstance(value, str):
            constants[place] = text.replace("%%", "%")
    return constants, slots, texts


class Copies:
    """Writes copies of calls; the hash chain, the balances and the payloads are their own."""

    def __init__(
        self,
        put: Callable[[str, list[Any]], object],
        seals: Sequence[Seal],
        name: Callable[[str, str], str],
        rng: random.Random,
    ) -> None:
        self._put = put
        self._seals = seals
        self._name = name
        self._rng = rng
        self._rows: dict[str, list[Any]] = defaultdict(list)
        self._posted: dict[tuple[str, int], int] = defaultdict(int)
        self._stream, self._seq, self._head, self._began_us = "", 0, GENESIS, 0
        self._heads: list[dict[str, Any]] = []

    def begin_life(self, at_us: int) -> None:
        self.end_life(at_us)
        self._stream, self._seq, self._head, self._began_us = uuid7(at_us), 1, GENESIS, at_us
        facts = {"stream": self._stream, "seq": 1, "at_us": at_us, "kind": "stream.opened", "tenant": None}
        body = canonical({**facts, "call_id": None, "role": "http", "heads": self._heads[::-1][:8]})
        self._head = link(GENESIS, body)
        self._rows["events"].append((self._stream, 1, at_us, "stream.opened", None, None, body, self._head))

    def end_life(self, at_us: int) -> None:
        if self._stream:
            self._heads.append({"stream": self._stream, "seq": self._seq, "hash": self._head})
            life = (self._stream, "growth", 1, "http", "closed", self._began_us, at_us)
            self._rows["incarnations"].append((*life, self._seq, self._head, None))

    def add(self, like: Shape, number: int, at_us: int) -> None:
        rng, user = self._rng, int(self._rng.random() ** 2 * USERS)
        call_id = uuid7(at_us)
        slots: dict[str, Any] = {
            "id": call_id,
            "stream": self._stream,
            "fingerprint": f"{rng.getrandbits(128):032x}",
            "agent": f"agent:bot-{number // CALLS_OF_A_RUN % AGENTS}",
            "user": f"user:u{user}",
            "run": f"ticket-{number // CALLS_OF_A_RUN}",
            "thing": f"order:ord-{rng.randrange(ORDERS)}",
            "made": f"m{number}",
            "day": at_us // DAY_US * DAY_US,
            "approval": uuid7(at_us),
        }
        slots["touched"] = self._name("acme", slots["thing"])
        for slot, offset in like.times.items():
            slots[slot] = at_us + offset
        for slot, text in like.words:
            slots[slot] = self._name("acme", text % slots)
        noise = rng.randbytes(28 * len(like.payloads))
        seal, aside = self._seals[user], 0
        for kind, text in like.payloads:
            body = (text % slots).encode()
            salt, nonce = noise[aside : aside + 16], noise[aside + 16 : aside + 28]
            aside += 28
            slots[f"{kind}_commit"] = committed(salt, body)
            sealed = nonce + seal.cipher.encrypt(nonce, salt + body, f"{call_id} {kind}".encode())
            self._rows["payloads"].append((call_id, kind, seal.keys, sealed))
            if kind == "shown":
                slots["binding"] = binding_of(orjson.loads(body))
        if "result_commit" not in slots:  # results of reads are not kept
            slots["result_commit"] = f"{rng.getrandbits(256):064x}"
        for kind, at, body in like.events:
            self._seq += 1
            slots["seq"] = self._seq
            text = body % slots
            self._head = link(self._head, text)
            self._rows["events"].append(
                (self._stream, self._seq, slots[at], kind, "acme", call_id, text, self._head)
            )
        for table, constants, filled, texts in like.rows:
            row = constants.copy()
            for place, slot in filled:
                row[place] = slots[slot]
            for place, text in texts:
                row[place] = text % slots
            self._rows[table].append(row)
        if like.pays:
            self._posted[f"agent:acme/{slots['agent']}:eur_cent:day", slots["day"]] += like.spends

    def balances(self) -> None:
        self._rows["accounts"] = [
            (account, start, "acme", "eur_cent", 10**15, 0, posted, 0, 0)
            for (account, start), posted in self._posted.items()
        ]

    def flush(self) -> None:
        order = {name: place for place, name in enumerate(("calls", "approvals", "votes"))}
        for table in sorted(self._rows, key=lambda name: order.get(name, 9)):
            self._put(inserts()[table], self._rows[table])
        self._rows.clear()


@contextmanager
def loading(at: Location) -> Iterator[Callable[[str, list[Any]], object]]:
    """Writes many rows, fast; nobody needs what a power loss leaves of it."""
    if isinstance(at, Path):
        with closing(sqlite3.connect(at, isolation_level=None)) as db:
            for pragma in ("journal_mode = MEMORY", "synchronous = OFF", "cache_size = -2000000"):
                db.execute(f"PRAGMA {pragma}")
            db.execute("BEGIN")
            yield db.executemany
            db.execute("COMMIT")
            db.execute("PRAGMA journal_mode = WAL")
        return
    session = Session(at, name="loader", settings={})
    try:
        with session.transaction():
            yield session.many
        session.script("ANALYZE")
    finally:
        session.close()


async def seals_for(at: Location) -> tuple[list[Seal], Callable[[str, str], str]]:
    """A key for each user, made by the journal's own sealer in a new record, and what names things there."""
    journal: Any = await open_journal(at, role="growth")
    try:
        seals = await journal._writer.write(
            lambda: [journal._sealer.seal_for("acme", (f"user:u{user}",)) for user in range(USERS)]
        )
        return seals, journal._sealer.vault.name
    finally:
        await journal.close()


def load(at: Location, folder: Path, calls: int, say: Callable[[str], object]) -> None:
    kinds = asyncio.run(shapes(folder))
    # Each shape's share, in an order that looks like chance and is the same each time.
    rng = random.Random(1)
    names = [name for name, count in MIX.items() for _ in range(count // 10)]
    rng.shuffle(names)
    began = time.perf_counter()
    copies_end = now_us()
    first = copies_end - DAYS * DAY_US
    seals, name = asyncio.run(seals_for(at))
    with loading(at) as put:
        copies = Copies(put, seals, name, rng)
        for number in range(calls):
            at_us = first + number * (DAYS * DAY_US) // calls
            if number % CALLS_OF_A_LIFE == 0:
                copies.begin_life(at_us)
            copies.add(kinds[names[number % len(names)]], number, at_us)
            if number % AT_ONCE == AT_ONCE - 1:
                copies.flush()
            if number % 500_000 == 499_999:
                say(f"{number + 1} calls after {time.perf_counter() - began:.0f} s")
        copies.end_life(copies_end)
        copies.balances()
        copies.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    question: str
    #: None: given up.
    ms: float | None
    rows: int
    #: Tables that it reads through; it takes as long as they are large.
    scans: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Report:
    database: str
    calls: int
    events: int
    load_s: float
    seal_s: float
    bytes_a_call: int | None
    asked: list[Asked] = field(default_factory=list[Asked])
    #: By one process: every event against the chain; also for each second of its processor time, which does
    #: not depend on what else runs. Then everything, by several.
    chain_events_per_s: int = 0
    chain_events_per_cpu_s: int = 0
    verify_events_per_s: int = 0
    verify_processes: int = 0


def documented() -> Iterator[tuple[str, str]]:
    """The queries of `docs/audit.md`: the sentence before each, and its SQL."""
    page = (ROOT / "docs" / "audit.md").read_text("utf-8")
    page = page[page.index("\n## Questions\n") : page.index("\n## Verifying\n")]
    for said, sql in re.findall(r"([^\n]+)\n\n```sql[^\n]*\n(.*?)```", page, re.DOTALL):
        yield said.rstrip(":"), sql


#: The views as people narrow them down, and one whole.
VIEWS = {
    "denials of a day": "SELECT * FROM denials WHERE created_us > {day}",
    "approvals_open of a tenant": "SELECT * FROM approvals_open WHERE tenant = 'acme'",
    "undoable, the next to expire": "SELECT * FROM undoable WHERE expires_us > {now}"
    " ORDER BY expires_us LIMIT 50",
    "run_timeline of a run": "SELECT * FROM run_timeline WHERE tenant = 'acme' AND run = 'ticket-3001'",
    "budget_moves of a call": "SELECT * FROM budget_moves WHERE call_id = '{call}'",
    "spend_by_day, all of it": "SELECT * FROM spend_by_day",
}


def filters(now: int) -> dict[str, CallQuery]:
    """`remit calls list`, by each of its options, 50 calls each."""
    hour = now - 3_600_000_000
    return {
        "": CallQuery(),
        "--agent": CallQuery(agent="agent:bot-7"),
        "--agent --tenant": CallQuery(agent="agent:bot-7", tenant="acme"),
        "--agent, of nobody": CallQuery(agent="agent:nobody"),
        "--user": CallQuery(user="user:u7"),
        "--user, of nobody": CallQuery(user="user:nobody"),
        "--tenant, of nobody": CallQuery(tenant="nobody"),
        "--tool": CallQuery(tool="acme.refund"),
        "--tool acme.*": CallQuery(tool="acme.*"),
        "--tool, never called": CallQuery(tool="acme.nothing"),
        "--verdict deny": CallQuery(verdict="deny"),
        "--verdict approve": CallQuery(verdict="approve"),
        "--state failed": CallQuery(state="failed"),
        "--state denied": CallQuery(state="denied"),
        "--state awaiting_approval": CallQuery(state="awaiting_approval"),
        "--state in_doubt": CallQuery(state="in_doubt"),
        "--state scheduled": CallQuery(state="scheduled"),
        "--run": CallQuery(run="ticket-3001"),
        "--run --tenant": CallQuery(run="ticket-3001", tenant="acme"),
        "--since 1h": CallQuery(since_us=hour),
        "--until 30d": CallQuery(until_us=now - 30 * DAY_US),
        "--label": CallQuery(tools=("acme.refund",)),
        "--tool --cost-over": CallQuery(tool="acme.refund", cost_over={"eur_cent": 500}),
        "--tool --arg --since 1h": CallQuery(
            tool="acme.refund", args={"thing": "order:ord-1001"}, since_us=hour
        ),
        "--agent --tool --since 1h": CallQuery(agent="agent:bot-7", tool="acme.refund", since_us=hour),
    }


def ask(at: Location, now: int, given_up_s: float) -> Iterator[Asked]:
    """Every question in turn; one that takes longer than that is given up, and the next is asked."""
    with open_records(at) as records:
        (paid,) = records.rows("SELECT MAX(call_id) AS call FROM holds")
    values = {"day": now - DAY_US, "now": now, "call": paid["call"]}
    sqls = [(name, sql.format(**values)) for name, sql in VIEWS.items()]
    if isinstance(at, Path):  # the page is for SQLite
        sqls = [*documented(), *sqls]
    for name, sql in sqls:
        yield asked(at, name, lambda records, sql=sql: list(records.rows(sql)), given_up_s)
    for name, query in filters(now).items():
        question = f"remit calls list {name}".rstrip()
        yield asked(at, question, lambda records, query=query: records.calls(query, limit=50), given_up_s)


def asked(at: Location, question: str, read: Callable[[Records], Sequence[Any]], given_up_s: float) -> Asked:
    """The shortest of three times, after a first one that warms the cache."""
    times: list[float] = []
    rows: Sequence[Any] = ()
    scans: set[str] = set()
    try:
        with open_records(at) as records:
            db: Any = getattr(records._db, "_db", None)  # pyright: ignore[reportPrivateUsage]
            if isinstance(db, sqlite3.Connection):
                until = time.perf_counter() + given_up_s
                db.set_progress_handler(lambda: time.perf_counter() > until, 1_000)
                db.set_trace_callback(lambda sql: scans.update(scanned(at, sql)) if not times else None)
            for _ in range(4):
                began = time.perf_counter()
                rows = read(records)
                times.append(time.perf_counter() - began)
                if sum(times) > given_up_s / 4:
                    break
    except StoreUnavailable as error:
        if "interrupted" not in str(error):
            raise
    return Asked(
        question=question,
        ms=round(min(times[1:] or times) * 1000, 2) if times else None,
        rows=len(rows),
        scans=tuple(sorted(scans)),
    )


def scanned(at: Location, sql: str) -> Iterator[str]:
    assert isinstance(at, Path)
    with closing(sqlite3.connect(f"{at.as_uri()}?mode=ro", uri=True)) as db:
        for row in db.execute(f"EXPLAIN QUERY PLAN {sql}"):
            if match := re.fullmatch(r"SCAN (\w+)", row[3]):
                yield match[1]


def verified(at: Location, report: Report) -> None:
    """Raises when anything is found: then these are not the rows that Remit would have written."""
    with open_records(at) as records:
        began, cpu = time.perf_counter(), time.process_time()
        found = list(verify_events(records))
        report.chain_events_per_s = round(report.events / (time.perf_counter() - began))
        report.chain_events_per_cpu_s = round(report.events / (time.process_time() - cpu))
        found += verify_balances(records)
    where = [str(at)] if isinstance(at, Path) else [str(at.path), "--postgres", at.url]
    command = [sys.executable, "-m", "benchmarks.verify", *where]
    whole = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    report.verify_processes = whole["processes"]
    report.verify_events_per_s = round(report.events / whole["took_s"])
    found += whole["found"]
    if found:
        raise AssertionError(f"{len(found)} findings, such as {found[0]}")


def measured(at: Location, folder: Path, calls: int, say: Callable[[str], object] = lambda _: None) -> Report:
    folder.mkdir()
    began = time.perf_counter()
    load(at, folder, calls, say)
    load_s, began = time.perf_counter() - began, time.perf_counter()
    seal(at)
    report = Report(
        database="sqlite" if isinstance(at, Path) else "postgresql",
        calls=calls,
        events=0,
        load_s=round(load_s, 1),
        seal_s=round(time.perf_counter() - began, 1),
        bytes_a_call=at.stat().st_size // calls if isinstance(at, Path) else None,
    )
    questioned(at, report, say)
    return report


def questioned(at: Location, report: Report, say: Callable[[str], object]) -> None:
    with open_records(at) as records:
        report.events = records.count("events")
        report.calls = records.count("calls")
    for each in ask(at, now_us(), GIVEN_UP_S):
        report.asked.append(each)
        say(line(each))
    verified(at, report)


def line(each: Asked) -> str:
    took = "given up" if each.ms is None else f"{each.ms:12.2f}"
    scans = f"  reads {', '.join(each.scans)} through" if each.scans else ""
    over = " " if each.ms is not None and each.ms <= TARGET_MS else "!"
    return f"{took:>12} ms{over} {each.rows:8} rows  {each.question}{scans}"


def show(report: Report) -> None:
    print(
        f"{report.database}: {report.calls} calls, {report.events} events, {report.bytes_a_call} bytes a call"
    )
    print(f"loaded in {report.load_s} s, sealed in {report.seal_s} s")
    for each in report.asked:
        print(line(each))
    print(
        f"verify: {report.chain_events_per_s} events/s of the chain by one process,"
        f" {report.chain_events_per_cpu_s} for each second of processor time"
    )
    print(f"verify: {report.verify_events_per_s} events/s, all of it, {report.verify_processes} processes")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--postgres", action="store_true", help="on PostgreSQL instead of SQLite")
    parser.add_argument("--quick", action="store_true", help="10,000 calls")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--folder", type=Path, help="where to make the record; needs 4 kB a call")
    asked = parser.parse_args()
    calls = 10_000 if asked.quick else asked.calls
    (ROOT / "out").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.folder or ROOT / "out", prefix="growth-") as name:
        folder = Path(name)
        say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
        if asked.postgres:
            with postgres(folder) as new:
                report = measured(new("growth"), folder / "patterns", calls, say)
        else:
            report = measured(folder / "growth.db", folder / "patterns", calls, say)
    if asked.json:
        print(json.dumps(asdict(report)))
    else:
        show(report)


if __name__ == "__main__":
    main()
