"""Whatever people query is what the sealed events tell: views, tables, lists, reports and balances.

`life.py` makes a record in which everything happens; `told.py` folds its exported events and knows no table.
Here each answer of Remit stands beside the one that follows from events.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from tests.oracle.life import AGENTS, BUDGETS, SETTINGS, TENANTS, TOOLS, USERS, Life
from tests.oracle.told import Call, Facts, Row, Told, unit_of
from tests.server.acme import Terminal
from tests.server.builders import by_hand, rows
from tests.server.test_erasing import a_place
from tests.undo.world import THINGS

from remit.database import Location, Postgres
from remit.records import CallQuery, open_records
from remit.states import STATES, WAY_BACK_STATES

_DAY_US = 86_400_000_000
LIMITS = {(each["scope"], each["unit"], each["window"]): each["limit"] for each in BUDGETS}
_LABELS = ("quiet", "loud", "money", "none")
#: Of each: where it is, and what its events tell.
Lives: TypeAlias = "list[tuple[Path, Told]]"
_WHO = ("tenant", "agent", '"user"', "run", "tool")


@pytest.mark.usefixtures("every_database")
def test_what_people_query_is_what_the_events_tell(tmp_path: Path) -> None:
    told = lived(tmp_path, seed=50, steps=110)
    happened = {call.state for call in told.calls.values()}
    assert happened >= {"denied", "rejected", "expired", "cancelled", "succeeded", "failed"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("every_database")
def test_it_is_so_whatever_happened(tmp_path: Path) -> None:
    happened, ways_back = set[str](), set[str | None]()
    for seed in range(1, 9):
        folder = tmp_path / str(seed)
        folder.mkdir()
        told = lived(folder, seed=seed, steps=200)
        happened |= {call.state for call in told.calls.values()}
        ways_back |= {told.way_back(call, told.until_us) for call in told.calls.values()}
    assert happened == set(STATES) - {"dispatched"}
    assert ways_back >= set(WAY_BACK_STATES) - {"running", "failed"}  # nothing is under way, and few fail


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Lives:
    """Two records: each fault shows in one of them."""
    made = [Life(tmp_path_factory.mktemp("life"), seed) for seed in (50, 53)]
    for life in made:
        life.live(110)
        life.live(110)
    return [(life.folder / "remit.db", told_by(life)) for life in made]


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("budget_moves", "state <> 'held'", "state = 'posted'"),
        ("spend_by_day", "h.posted - h.refunded", "h.posted"),
        ("spend_by_day", "MAX(h.posted - h.refunded)", "SUM(h.posted - h.refunded)"),
        ("denials", "verdict <> 'execute' AND", "verdict = 'deny' AND effect <> 'read' AND"),
        ("approvals_open", " AND a.expires_us > unixepoch() * 1000000", ""),
        ("undoable", "u.expires_us <= unixepoch() * 1000000", "u.expires_us <= 0"),
        ("undoable", "AND other.tenant = c.tenant", ""),
        ("undoable", "COALESCE(its.state, '') <> 'done'", "1 = 1"),
        ("run_timeline", "'erased:'", "'gone:'"),
        ("run_timeline", "LEFT JOIN touches", "JOIN touches"),
    ],
)
def test_a_view_that_tells_otherwise_is_noticed(
    lives: Lives, tmp_path: Path, name: str, before: str, after: str
) -> None:
    (row,) = rows(lives[0][0], "SELECT sql FROM sqlite_master WHERE name = ?", name)
    assert before in row["sql"]
    must_notice(lives, tmp_path, name, f"DROP VIEW {name}", row["sql"].replace(before, after))


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM holds WHERE call_id = (SELECT MAX(call_id) FROM holds)",
        "DELETE FROM accounts WHERE unit = 'eur_cent'",
        "DELETE FROM touches WHERE call_id = (SELECT MAX(call_id) FROM touches)",
        "UPDATE calls SET run = 'run-9' WHERE id = (SELECT MIN(id) FROM calls)",
        "UPDATE undos SET state = 'ready' WHERE state = 'done'",
        "DELETE FROM votes",
        "UPDATE budget_adjustments SET amount = amount + 1 WHERE kind = 'refund'",
    ],
)
def test_a_row_that_tells_otherwise_is_noticed(lives: Lives, tmp_path: Path, statement: str) -> None:
    must_notice(lives, tmp_path, "tell", statement)


def must_notice(lives: Lives, folder: Path, what: str, *statements: str) -> None:
    with pytest.raises(AssertionError, match=what):
        changed(lives, folder / "remit.db", statements)


def changed(lives: Lives, copy: Path, statements: Iterable[str]) -> None:
    """Hold copies of the records, in which this was done, against their events."""
    for record, told in lives:
        shutil.copy(record, copy)
        for statement in statements:
            by_hand(copy, statement)
        tables_tell(copy, told)


def lived(folder: Path, *, seed: int, steps: int) -> Told:
    """Two process lives after each other, and what people can ask after each of them."""
    life, chance = Life(folder, seed), random.Random(seed)
    for _ in range(2):
        life.live(steps)
        told = told_by(life)
        tables_tell(life.remit.path, told)
    shell = a_place(folder, **SETTINGS)
    lists_tell(shell, life, told, chance)
    reports_tell(shell, told, chance)
    budgets_tell(shell, told)
    assert shell("audit", "verify").code == shell("budget", "verify").code == 0
    return told


def told_by(life: Life) -> Told:
    export = a_place(life.folder, **SETTINGS)("audit", "export").out
    with open_records(life.remit.path) as records:
        return Told(export.splitlines(), LIMITS, records.vault.name)


# Views and tables, as another program reads them.


def tables_tell(at: Location, told: Told) -> None:
    now_us = told.until_us // 1_000_000 * 1_000_000  # as fine as the clock of views on SQLite
    for name, (columns, expected) in answers(told, now_us).items():
        found = answered(at, name, columns, now_us)
        for row in found:
            if "resource" in row:  # events have its digest only
                tenant = told.calls[row.get("id") or row["call_id"]].tenant
                row["resource"] = told.named(tenant, row["resource"])
        is_so, must_be = Counter(tuple(row.values()) for row in found), Counter(expected)
        assert not (more := is_so - must_be), f"{name} tells what did not happen: {next(iter(more))}"
        assert not (less := must_be - is_so), f"{name} does not tell: {next(iter(less))}"


def answers(told: Told, now_us: int) -> dict[str, tuple[str, Iterable[Row]]]:
    """By view or table: what is asked for, and the rows that must come."""
    calls = told.calls.values()
    ways = {call.id: told.way_back(call, now_us) for call in calls}
    spent = ((call.created_us // _DAY_US * _DAY_US, call.tenant, call.agent, call) for call in calls)
    who = attrgetter("tenant", "agent", "user", "run", "tool")
    return {
        "budget_moves": ("at_us, call_id, account, window_start_us, kind, amount", told.moves.elements()),
        "spend_by_day": ("day_us, tenant, agent, unit, calls, spent", costs(spent)),
        "denials": (
            f"id, created_us, {', '.join(_WHO)}, code",
            ((it.id, it.created_us, *who(it), it.code) for it in calls if it.state == "denied"),
        ),
        "approvals_open": (
            'call_id, tenant, agent, "user", tool, id, state, votes_needed, created_us, expires_us, votes',
            (
                (call.id, call.tenant, call.agent, call.user, call.tool, *said(it), it.votes.count("approve"))
                for call in calls
                if (it := call.request) and it.state in ("pending", "approved") and it.expires_us > now_us
            ),
        ),
        "undoable": (
            f"id, {', '.join(_WHO)}, resource, dispatched_us, undo_tool, expires_us, residue",
            (
                (it.id, *who(it), it.touched, it.dispatched_us, way.tool, way.expires_us, way.residue)
                for it in calls
                if (way := it.way) and ways[it.id] == "ready"
            ),
        ),
        "run_timeline": (
            f"id, {', '.join(_WHO)}, created_us, kind, of_call, effect, verdict, code, state, resource,"
            " way_back, undo_call",
            (
                (it.id, *who(it), *timeline(it), it.touched, ways[it.id], it.way and it.way.undo_call)
                for it in calls
            ),
        ),
        "accounts": (
            "id, window_start_us, held, posted, refunded, overrun",
            ((*account, *balance.values()) for account, balance in told.balances.items()),
        ),
        "holds": (
            "call_id, account, unit, window_start_us, amount, state, posted, refunded",
            ((it.id, name, unit_of(name), *held(hold)) for it in calls for name, hold in it.holds.items()),
        ),
        "touches": ("call_id, resource", ((it.id, it.touched) for it in calls if it.touched)),
        "undos": (
            "call_id, tool, expires_us, undo_call",
            ((it.id, it.way.tool, it.way.expires_us, it.way.undo_call) for it in calls if it.way),
        ),
        "approvals": (
            "call_id, id, state, votes_needed, created_us, expires_us",
            ((it.id, *said(it.request)) for it in calls if it.request),
        ),
        "votes": (
            'approval_id, "user", vote',
            (
                (it.id, user, vote)
                for it in map(attrgetter("request"), calls)
                if it
                for user, vote in votes(it)
            ),
        ),
    }


said = attrgetter("id", "state", "votes_needed", "created_us", "expires_us")
held = attrgetter("window_us", "amount", "state", "posted", "refunded")
timeline = attrgetter("created_us", "kind", "of_call", "effect", "verdict", "code", "state")


def votes(request: Any) -> Iterable[tuple[str, str]]:
    return zip(request.voters, request.votes, strict=True)


def answered(at: Location, name: str, columns: str, now_us: int) -> list[dict[str, Any]]:
    """The rows of a table or view; of a view by its SQL as it stands in the database, at this time."""
    if isinstance(at, Postgres):
        views = rows(at, "SELECT definition AS sql FROM pg_views WHERE viewname = ?", name)
    else:
        views = rows(at, "SELECT sql FROM sqlite_master WHERE type = 'view' AND name = ?", name)
    if not views:
        return rows(at, f"SELECT {columns} FROM {name}")  # noqa: S608 - all of it is ours
    sql = views[0]["sql"].strip().rstrip(";").removeprefix(f"CREATE VIEW {name} AS")
    seconds = str(now_us // 1_000_000)
    sql = sql.replace("unixepoch()", seconds).replace("clock_timestamp()", f"to_timestamp({seconds})")
    return rows(at, f"SELECT {columns} FROM ({sql}) AS it")  # noqa: S608 - as above


def costs(of: Iterable[tuple[Any, ...]]) -> Iterator[Row]:
    """Calls, each behind what it is counted under: by unit how many they are, and what they spent."""
    number, spent = Counter[Row](), Counter[Row]()
    for *about, call in of:
        for unit, amount in call.spent().items():
            number[*about, unit] += 1
            spent[*about, unit] += amount
    return ((*about, number[about], spent[about]) for about in number)


def counted(of: Iterable[Row]) -> Iterator[Row]:
    return ((*about, times) for about, times in Counter(of).items())


# Commands.


def lists_tell(shell: Terminal, life: Life, told: Told, chance: random.Random) -> None:
    """`remit calls list`, by whatever it can be asked for, in any company; and its ways back."""
    at, now_us = life.remit.path, told.until_us
    kept = {row["call_id"] for row in rows(at, "SELECT call_id FROM payloads WHERE kind = 'arguments'")}
    newest = sorted(told.calls.values(), key=lambda call: (call.created_us, call.id), reverse=True)
    with open_records(at, clock=lambda: now_us) as records:
        listed = {call.id: call.way_back for call in records.calls(CallQuery(), limit=len(newest))}
    assert listed == {call.id: told.way_back(call, now_us) for call in newest}
    for _ in range(15):
        chosen = chance.sample(list(filters(life, told, kept, chance)), chance.choice((1, 1, 2, 2, 3)))
        limit = chance.choice((3, 10_000))
        words = [word for option, value, _ in chosen for word in (option, value)]
        found = shell.json("calls", "list", "--limit", str(limit), *words)
        expected = [call.id for call in newest if all(fits(call) for *_, fits in chosen)]
        assert [call["id"] for call in found] == expected[:limit], words


def filters(
    life: Life, told: Told, kept: Collection[str], chance: random.Random
) -> Iterator[tuple[str, str, Callable[[Call], object]]]:
    """Every option of `remit calls list` with a value, and which calls fit it."""
    for option, values in {
        "agent": (*AGENTS, "agent:none"),
        "user": USERS,
        "tenant": TENANTS,
        "verdict": ("execute", "approve", "advise", "deny"),
        "state": STATES,
        "run": [f"run-{number}" for number in range(1, 6)],
    }.items():
        value = chance.choice(values)
        yield f"--{option}", value, lambda it, option=option, value=value: getattr(it, option) == value
    tool, label = chance.choice(("shop.buy", "shop.*", "shop.l*", "none.*")), chance.choice(_LABELS)
    yield "--tool", tool, lambda it: it.tool == tool or (tool[-1] == "*" and it.tool.startswith(tool[:-1]))
    yield "--label", label, lambda it: label in TOOLS[it.tool].get("labels", ())
    since, until = sorted(chance.choice(list(told.calls.values())).created_us // 1000 for _ in "12")
    yield "--since", moment(since), lambda it: it.created_us // 1000 >= since
    yield "--until", moment(until + 1), lambda it: it.created_us // 1000 <= until
    unit, amount = chance.choice(("eur_cent", "mail", "calls")), chance.choice((-1, 0, 19, 44))
    yield "--cost-over", f"{unit}={amount}", lambda it: unit in it.spent() and it.spent()[unit] > amount
    thing = chance.choice(THINGS)
    yield (
        "--arg",
        f"thing={thing}",
        lambda it: it.id in kept and not it.cleared and life.thing_of(it, told.calls) == thing,
    )


def reports_tell(shell: Terminal, told: Told, chance: random.Random) -> None:
    """`remit report`: of all, and of some time in one tenant."""
    from_us, to_us = sorted(chance.choice(list(told.calls.values())).created_us // 1000 * 1000 for _ in "12")
    report_tells(shell, told, 0, 2_000_000_000_000_000, None)
    report_tells(shell, told, from_us, to_us + 1000, chance.choice(TENANTS))


def report_tells(shell: Terminal, told: Told, from_us: int, to_us: int, tenant: str | None) -> None:
    time = ["--from", moment(from_us // 1000), "--to", moment(to_us // 1000)]
    report = shell.json("report", *time, *(["--tenant", tenant] if tenant else []))
    assert report["findings"] == []
    sections = {each["title"]: Counter(tuple(row) for row in each["rows"]) for each in report["sections"]}

    def is_within(at_us: int, where: str | None) -> bool:
        return from_us <= at_us < to_us and tenant in (None, where)

    within = [call for call in told.calls.values() if is_within(call.created_us, call.tenant)]
    own = [call for call in within if call.kind == "call"]
    refused = Counter((call.tenant, call.agent) for call in own if call.state == "denied")
    agents = Counter((call.tenant, call.agent) for call in own)
    taken = [(call, call.way) for call in within if call.way and call.way.undo_call]
    doubtful = [call for call in within if call.state == "in_doubt" or call.resolved]
    met = {it.of_call for it in within if it.kind == "undo" and "undo_conflict" in (it.code, it.error_code)}
    expected: dict[str, Iterable[Row]] = {
        "Calls": counted((call.verdict, call.state) for call in own),
        "Agents": ((*who, times, refused[who]) for who, times in agents.items()),
        "Why calls were refused": counted((it.kind, it.code) for it in within if it.state == "denied"),
        "Approvals, by whom": counted(
            (user, vote, call.tool) for call in within if call.request for user, vote in votes(call.request)
        ),
        "Undone": counted(
            (call.tool, told.calls[way.undo_call or ""].user, way.state)
            for call, way in taken
            if way.state not in ("ready", "void")
        ),
        "Spent": costs((call.tenant, call.agent, call) for call in within),
        "Policies that decided": counted((it.policy_version,) for it in within if it.policy_version),
    }
    for title, must_be in expected.items():
        assert sections[title] == Counter(must_be), title
    incidents = Counter(what.partition(":")[0] for _, what, *_ in sections["Incidents"].elements())
    failed = [way for _, way in taken if way.state in ("failed", "indeterminate")]
    assert incidents == +Counter({"in doubt": len(doubtful), "undo": len(failed) + len(met)})
    acts = Counter(it["kind"] for it in told.events if is_within(it["at_us"], it["tenant"]) and is_act(it))
    assert Counter(what for _, what, *_ in sections["Overrides and other acts of people"].elements()) == acts


def is_act(event: Facts) -> bool:
    """Whether it is what the report calls an act of people."""
    kinds = ("audit.erased", "call.resolved")
    return event["kind"] in kinds or event["kind"].startswith("switch.")


def budgets_tell(shell: Terminal, told: Told) -> None:
    """`remit budget show`: every window, and the newest of each account."""
    by_account = {
        (account, window): (held, posted, refunded, overrun, limit_of(account))
        for (account, window), (held, posted, refunded, overrun) in told.standing().items()
    }
    newest = {name: max(window for other, window in by_account if other == name) for name, _ in by_account}
    amounts = itemgetter("held", "posted", "refunded", "overrun", "limit_amount")
    for words, expected in (
        (("--all",), by_account),
        ((), {key: it for key, it in by_account.items() if newest[key[0]] == key[1]}),
    ):
        found = shell.json("budget", "show", *words)
        assert {(it["id"], it["window_start_us"]): amounts(it) for it in found} == expected


def limit_of(account: str) -> int:
    scope, unit, window = account.split(":")[0], *account.split(":")[-2:]
    return LIMITS[scope, unit, window]


def moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()
