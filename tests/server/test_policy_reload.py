"""A running server takes a new policy whole or not at all: from files, from the database, under readers."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import mcp_types as t
import pytest
from mcp import MCPError
from tests.server.acme import Terminal, a_place
from tests.server.builders import POLICY, a_config, a_database, rows, until
from tests.server.fronts import Served, names, served
from tests.server.test_cli_check import a_table
from tests.server.test_policies import kept_elsewhere

from remit.errors import RemitError
from remit.journal import open_journal
from remit.policies import files_text, load_version
from remit.policy_watch import PolicyWatch
from remit.versions import Version
from remit_rbac import Policy, Question, Rung
from remit_rbac.stock import StockPolicy

NO_BUYING = POLICY + "p, *, acme, shop.buy, execute, 1 == 1, deny\np, *, acme, shop.buy, list, 1 == 1, deny\n"
THING = {"thing": "lamp", "price": 5}


@pytest.fixture
def acme(tmp_path: Path) -> Terminal:
    return Terminal(a_place(tmp_path))


def replace(path: Path, text: str) -> None:
    """As editors and deployment tools write: another file, renamed over the old one."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def kinds(remit: Served) -> list[str]:
    found = remit.rows("SELECT kind FROM events WHERE kind LIKE 'policy.%' ORDER BY rowid")
    return [row["kind"] for row in found]


async def test_a_changed_file_decides_without_a_restart_and_clients_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []

    async def hear(said: Any) -> None:
        heard.append(said)

    async with (
        served(tmp_path, monkeypatch, policy=POLICY) as remit,
        remit.client() as client,
        remit.client("legacy", message_handler=hear) as older,
    ):
        await older.list_tools()
        before = remit.on.policy.version
        assert not (await client.call_tool("shop.buy", THING)).is_error
        assert "shop.buy" in names((await client.list_tools()).tools)
        replace(tmp_path / "policy.csv", NO_BUYING)
        await until(lambda: remit.on.policy.version != before)
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("shop.buy", THING)
        assert not (await client.call_tool("shop.look", {"thing": "lamp"})).is_error
        assert "shop.buy" not in names((await client.list_tools()).tools)
        await until(lambda: any(isinstance(said, t.ToolListChangedNotification) for said in heard))
        assert kinds(remit) == ["policy.stored", "policy.activated"] * 2
        assert load_version(remit.app.config, before).policy.version == before
        decided = remit.rows("SELECT tool, policy_version AS version FROM calls WHERE verdict = 'execute'")
        assert {row["tool"]: row["version"] for row in decided} == {
            "shop.buy": before,
            "shop.look": remit.on.policy.version,
        }


async def test_a_bad_version_is_told_recorded_and_not_taken_until_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path, monkeypatch, policy=POLICY) as remit, remit.client() as client:
        before = remit.on.policy.version
        with caplog.at_level(logging.ERROR, "remit.policy"):
            replace(tmp_path / "policy.csv", POLICY.replace("<= 100, allow", "<= 100, Deny"))
            await until(lambda: "policy.rejected" in kinds(remit))
        assert "policy.csv:8:" in caplog.text
        assert "an effect is allow or deny" in caplog.text
        (event,) = remit.rows("SELECT body FROM events WHERE kind = 'policy.rejected'")
        assert "policy.csv:8:" in json.loads(event["body"])["problems"][0]
        assert remit.on.policy.version == before
        assert not (await client.call_tool("shop.buy", THING)).is_error

        # Looked at again, it is not told again; gone altogether, it is, and the old one still decides.
        remit.app.look_at_policy()
        (tmp_path / "policy.csv").unlink()
        await until(lambda: kinds(remit).count("policy.rejected") == 2)
        assert "cannot be read" in caplog.text
        assert remit.on.policy.version == before

        replace(tmp_path / "policy.csv", NO_BUYING)
        await until(lambda: remit.on.policy.version != before)
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("shop.buy", THING)


async def test_a_version_that_fails_a_policy_test_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = {"tenant": "acme", "agent": "agent:bot", "user": "user:ann", "tool": "shop.buy", "args": THING}
    tests = tmp_path / "tests.yaml"
    tests.write_text(json.dumps({"cases": [{**case, "name": "A lamp is bought", "expect": "execute"}]}))
    settings = {"files": [tmp_path / "policy.csv"], "tests": [tests]}
    async with served(tmp_path, monkeypatch, policy=POLICY, policy_settings=settings) as remit:
        before = remit.on.policy.version
        replace(tmp_path / "policy.csv", NO_BUYING)
        await until(lambda: "policy.rejected" in kinds(remit))
        (event,) = remit.rows("SELECT body FROM events WHERE kind = 'policy.rejected'")
        (problem,) = json.loads(event["body"])["problems"]
        assert problem.startswith(f"{tests}:1: policy test 'A lamp is bought' fails: ")
        assert remit.on.policy.version == before
        # Once the test says what is wanted, the same policy is taken.
        replace(tests, tests.read_text().replace('"execute"', '"approve"'))
        await until(lambda: remit.on.policy.version != before)
    replace(tmp_path / "policy.csv", POLICY)
    with pytest.raises(RemitError, match="A lamp is bought"):
        PolicyWatch(remit.app.config).load()


async def test_a_file_that_is_still_being_written_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "policy.csv").write_text(POLICY)
    a_database(tmp_path)
    watch, taken = PolicyWatch(a_config(tmp_path)), list[Policy]()
    watch.load()
    journal = await open_journal(tmp_path / "remit.db", role="http")
    rows_written = NO_BUYING.splitlines(keepends=True)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run, journal, taken.append)
            async with await anyio.open_file(tmp_path / "policy.csv", "w") as file:
                for row in rows_written:
                    await file.write(row)
                    await file.flush()
                    await anyio.sleep(0.1)  # shorter than the time between two looks
            await until(lambda: taken)
            tasks.cancel_scope.cancel()
    finally:
        await journal.close()
    assert {len(policy.rules["p"]) for policy in taken} == {NO_BUYING.count("\np, ") + 2}


async def test_a_pattern_names_all_files_that_match_also_those_that_come_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("20-late", "10-base"):
        (tmp_path / f"policy.{name}.csv").write_text(f"g, user:{name}, role:clerk, acme\n")
    settings = {"files": [tmp_path / "policy.csv", tmp_path / "policy.*.csv"]}
    async with served(tmp_path, monkeypatch, policy=POLICY, policy_settings=settings) as remit:
        files = [layer.file.rpartition("/")[2] for layer in files_text(remit.app.config).layers]
        assert files == ["policy.csv", "policy.10-base.csv", "policy.20-late.csv"]
        before = remit.on.policy.version
        (tmp_path / "policy.15-new.csv").write_text(NO_BUYING.removeprefix(POLICY))
        await until(lambda: remit.on.policy.version != before)
        (tmp_path / "policy.15-new.csv").unlink()
        await until(lambda: remit.on.policy.version == before)
        for name in ("20-late", "10-base"):
            (tmp_path / f"policy.{name}.csv").unlink()
        await until(lambda: "policy.rejected" in kinds(remit))
        assert remit.on.policy.version == before
        with pytest.raises(RemitError, match=r"no policy file matches .*policy\.\*\.csv"):
            files_text(remit.app.config)


async def test_hangup_makes_a_server_look_again_at_what_it_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, monkeypatch, policy=POLICY) as remit:
        before = remit.on.policy.version
        replace(tmp_path / "policy.csv", NO_BUYING)
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: remit.on.policy.version != before)


def pushed(config: Any) -> Version:
    return files_text(config).build().version


@pytest.mark.parametrize("kept", ["by an adapter", "in a table"])
async def test_a_server_takes_rows_that_another_program_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    monkeypatch.setattr("remit.policy_watch._ELSEWHERE_S", 0)

    def keep(text: str) -> None:
        replace(tmp_path / "rows.csv", text)
        a_table(tmp_path / "rows.db", *text.splitlines())

    keep(POLICY)
    config = kept_elsewhere(tmp_path, monkeypatch, POLICY)
    if kept == "in a table":
        monkeypatch.setenv("CASBIN_URL", f"sqlite:///{tmp_path}/rows.db")
        config = a_config(tmp_path, policy={"table": {"url": "env:CASBIN_URL"}})
    a_database(tmp_path)
    journal = await open_journal(tmp_path / "remit.db", role="http")
    watch = PolicyWatch(config)
    taken: list[Policy] = []
    before = watch.load().version
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run, journal, taken.append)
            keep(NO_BUYING)
            await until(lambda: taken)
            keep("p, nonsense")
            await until(
                lambda: rows(tmp_path / "remit.db", "SELECT 1 FROM events WHERE kind = 'policy.rejected'")
            )
            tasks.cancel_scope.cancel()
    finally:
        await journal.close()
    assert len(taken) == 1
    assert taken[0].version != before


async def test_a_server_starts_with_what_an_adapter_gives_later_and_says_that_a_place_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CASBIN_URL", f"sqlite:///{tmp_path}/rows.db")
    a_table(tmp_path / "rows.db")
    kept_elsewhere(tmp_path, monkeypatch, "p, *, acme, shop.buy, execute, 1 == 1, deny\n")
    beside = {
        "files": [tmp_path / "policy.csv"],
        "adapters": ["rows_of_others:waiting"],
        "table": {"url": "env:CASBIN_URL"},
    }
    async with (
        served(tmp_path, monkeypatch, policy=POLICY, policy_settings=beside) as remit,
        remit.client() as client,
    ):
        assert (await client.call_tool("shop.buy", THING)).is_error
        assert "casbin_rule:1:1: warning: there is no row here" in caplog.text


async def test_a_server_takes_the_version_that_a_person_activates(tmp_path: Path) -> None:
    (tmp_path / "policy.csv").write_text(POLICY)
    wide = pushed(a_config(tmp_path))
    (tmp_path / "policy.csv").write_text(NO_BUYING)
    narrow = pushed(a_config(tmp_path))
    a_database(tmp_path)
    person = await open_journal(tmp_path / "remit.db", role="cli")
    server = await open_journal(tmp_path / "remit.db", role="http")
    by = {"by": "user:bea", "note": "", "second_person": True}
    taken: list[str] = []
    try:
        for version in (wide, narrow):
            await person.push_policy(version, by="user:ann", note="")
        await person.activate_policy(wide, **by)
        watch = PolicyWatch(a_config(tmp_path, policy={"source": "database"}))
        assert watch.load().version == wide.id
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run, server, lambda policy: taken.append(policy.version))
            await person.activate_policy(narrow, **by)
            await until(lambda: taken == [narrow.id])
            await person.roll_back_policy(wide, **by | {"by": "user:ann", "note": "too narrow"})
            await until(lambda: taken == [narrow.id, wide.id])
            tasks.cancel_scope.cancel()
    finally:
        await server.close()
        await person.close()


def test_versions_are_pushed_activated_and_gone_back_to_by_command(acme: Terminal) -> None:
    text = acme.config.read_text()
    assert "comes from files" in acme("policy", "activate", "abcd").err
    acme.config.write_text(text.replace("{files: [", "{source: database, second_person: true, files: ["))
    assert "no policy is active" in acme("policy", "check").err

    first = acme.json("policy", "push", "--note", "one")["version"]
    assert "another person" in acme("policy", "activate", first[:8]).err
    assert acme.json("policy", "activate", first[:8], "--as", "user:mia") == {
        "version": first,
        "changed": True,
    }
    policy = acme.folder / "policy.csv"
    policy.write_text(policy.read_text().replace("amount_minor <= 10000,", "amount_minor <= 5000,"))
    second = acme.json("policy", "push")["version"]
    assert acme.json("policy", "push") == {"version": second, "new": False, "activated": False}
    acme.json("policy", "activate", second, "--as", "user:mia")
    listed = {each["version"]: each for each in acme.json("policy", "versions")}
    assert [listed[each]["active"] for each in (first, second)] == [False, True]
    assert (listed[first]["pushed_by"], listed[first]["note"]) == ("user:sue", "one")
    assert "amount_minor <= 5000," in acme("policy", "show", second[:8]).out

    assert acme.json("policy", "rollback")["version"] == first
    assert "no other version" in acme("policy", "rollback").err
    assert acme.json("policy", "rollback", second)["version"] == second
    assert acme.json("policy", "rollback")["version"] == first

    policy.write_text("p, nobody, acme\n")
    assert "policy.csv:1:" in acme("policy", "push").err
    assert acme.json("policy", "versions")[0]["active"]
    assert acme("audit", "verify").code == 0


ALLOWING = """\
g3, agent:bot, user:ann, acme
g, agent:bot, role:clerk, acme
g, user:ann, role:clerk, acme
p, role:clerk, acme, shop.buy, execute, 1 == 1, allow
p, role:clerk, acme, shop.send, recommend, 1 == 1, allow
"""
DENYING = ALLOWING.replace("recommend", "execute") + "p, role:clerk, acme, shop.buy, execute, 1 == 1, deny\n"
QUESTIONS = [
    Question(tenant="acme", agent="agent:bot", user="user:ann", tool=tool, args={}, ctx={})
    for tool in ("shop.buy", "shop.send", "shop.look")
]


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(120)])])
async def test_readers_see_one_version_or_the_other_and_nothing_between(tmp_path: Path, seconds: int) -> None:
    """Eight threads decide without a pause while the policy is replaced by a running watch, over and over."""
    path = tmp_path / "policy.csv"
    path.write_text(ALLOWING)
    a_database(tmp_path)
    watch = PolicyWatch(a_config(tmp_path))
    in_force = [watch.load()]
    path.write_text(DENYING)
    expected = {
        policy.version: [policy.decide(question).rung for question in QUESTIONS]
        for policy in (in_force[0], PolicyWatch(a_config(tmp_path)).load())
    }
    assert sorted(expected.values()) == [
        [Rung.DENY, Rung.EXECUTE, Rung.DENY],
        [Rung.EXECUTE, Rung.APPROVE, Rung.DENY],
    ]
    ends, counts, wrong = time.monotonic() + seconds, list[int](), list[object]()

    def read() -> None:
        count = 0
        while time.monotonic() < ends:
            policy = in_force[-1]
            found = [policy.decide(question) for question in QUESTIONS]
            count += len(found)
            if [each.rung for each in found] != expected[policy.version] or any(
                each.policy_version != policy.version for each in found
            ):
                wrong.append(found)
        counts.append(count)

    # Threads take turns more often than usual: more replacements, at more places.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)
    journal = await open_journal(tmp_path / "remit.db", role="http")
    readers = [threading.Thread(target=read) for _ in range(8)]
    swaps = 0

    def use(policy: Policy) -> None:
        nonlocal swaps
        swaps += 1
        in_force[:] = [policy]

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run, journal, use)
            for reader in readers:
                reader.start()
            while time.monotonic() < ends:
                replace(path, DENYING if swaps % 2 == 0 else ALLOWING)
                watch.ask()
                before = swaps
                with anyio.move_on_after(max(0.1, ends - time.monotonic())):
                    while swaps == before:  # noqa: ASYNC110 - a thread builds, and tells nobody
                        await anyio.sleep(0.001)
            await anyio.to_thread.run_sync(lambda: [reader.join() for reader in readers])
            tasks.cancel_scope.cancel()
    finally:
        sys.setswitchinterval(interval)
        await journal.close()
    print(f"{sum(counts)} decisions by {len(counts)} threads, {swaps} replacements, {len(wrong)} wrong")
    assert wrong == []
    assert swaps >= 3
    assert len(counts) == 8
    assert sum(counts) > 1000
    assert len(rows(tmp_path / "remit.db", "SELECT * FROM policy_versions")) == 2


async def test_an_unmodified_casbin_can_decide_and_takes_a_changed_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"files": [tmp_path / "policy.csv"], "engine": "pycasbin"}
    async with (
        served(tmp_path, monkeypatch, policy=POLICY, policy_settings=settings) as remit,
        remit.client() as client,
    ):
        assert isinstance(remit.on.policy, StockPolicy)
        assert not (await client.call_tool("shop.buy", THING)).is_error
        dear = await client.call_tool("shop.buy", {"thing": "car", "price": 9000})
        assert dear.meta is not None
        assert dear.meta["dev.remit/verdict"]["code"] == "no_rule"
        asked = await client.call_tool("shop.buy", {"thing": "car", "price": 900})
        assert asked.meta is not None
        assert asked.meta["dev.remit/verdict"]["code"] == "pending_approval"
        before = remit.on.policy.version
        replace(tmp_path / "policy.csv", NO_BUYING)
        await until(lambda: remit.on.policy.version != before)
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("shop.buy", THING)
