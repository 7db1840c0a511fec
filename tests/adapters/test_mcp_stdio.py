"""A child process cannot hurt the gateway: it gets little, says little, and dies with all it started."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.adapters.sources import (
    MODERN,
    Events,
    a_call,
    appears,
    connected,
    refused,
    rogue_target,
    stdio_target,
    until,
)

from remit_adapters.base import AdapterError, Caller, Event
from remit_adapters.mcp import McpAdapter, StdioTarget

pytestmark = pytest.mark.filterwarnings("error")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that serves in production; its pipes are not asyncio's."""
    return ("asyncio", {"use_uvloop": True})


RELAY = frozenset({"elicitation", "logging"})
FORMS = {"elicitation": {}}


async def structured(adapter: Any, name: str, arguments: Any = None, /, **more: Any) -> Any:
    return (await adapter.run(a_call(name, arguments, **more))).body["structuredContent"]


# What the child gets.


async def test_the_child_inherits_nothing_but_the_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIT_TEST_CANARY", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    target = rogue_target()
    async with connected(StdioTarget(command=target.command, env={"ASKED": "for"})) as adapter:
        env = (await structured(adapter, "env"))["env"]
    assert set(env) <= {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "HOME", "TMPDIR", "ASKED"}
    assert env["ASKED"] == "for"


async def test_the_child_has_a_home_of_its_own_that_goes_with_it() -> None:
    async with connected(rogue_target()) as adapter:
        home = (await structured(adapter, "env"))["home"]
        assert os.stat(home).st_mode & 0o777 == 0o700
        assert home != os.environ["HOME"]
    assert Path(home).name not in os.listdir(Path(home).parent)


async def test_the_child_leads_a_group_and_has_no_stray_descriptors(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as stray:
        os.set_inheritable(stray.fileno(), True)
        async with connected(rogue_target()) as adapter:
            seen = await structured(adapter, "env")
    assert seen["pid"] == seen["pgid"]
    assert str(tmp_path / "open") not in seen["files"]


async def test_a_command_that_is_not_there_is_refused_without_naming_its_path() -> None:
    error = await refused(StdioTarget(command=("/nowhere/at-all",)))
    assert error.no_effect
    assert "nowhere" not in error.message


# How a child ends.


async def test_a_child_killed_in_a_call_leaves_it_in_doubt_and_comes_back(tmp_path: Path) -> None:
    events = Events()
    async with connected(stdio_target(), events) as adapter:
        pid = (await structured(adapter, "environment"))["pid"]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill_when, tmp_path / "began", pid)
            with pytest.raises(AdapterError) as caught:
                await adapter.run(a_call("wait", {"place": str(tmp_path)}))
        assert not caught.value.no_effect
        assert caught.value.code == "source_lost"
        assert (await structured(adapter, "environment"))["pid"] != pid
        assert adapter.health().connects == 2
        assert {Event(kind="tools"), Event(kind="resources"), Event(kind="prompts")} <= set(events.seen)


async def kill_when(note: Path, pid: int) -> None:
    await appears(note)
    os.kill(pid, signal.SIGKILL)


async def test_what_a_dying_child_said_is_there_for_operators_and_not_for_agents(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connected(stdio_target()) as adapter:
        with caplog.at_level(logging.WARNING), pytest.raises(AdapterError) as caught:
            await adapter.run(a_call("die"))
        await until(lambda: adapter.health().connects == 2)
        assert "about to die of a test" in adapter.health().detail
    assert "about to die" not in caught.value.message
    assert "about to die of a test" in caplog.text
    assert "exit code 7" in caplog.text


async def test_a_child_that_keeps_dying_is_left_alone_longer_and_longer() -> None:
    async with connected(rogue_target()) as adapter:
        for _ in range(2):
            pid = (await structured(adapter, "env"))["pid"]
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: not alive(pid))
            await until(lambda: adapter.health().state != "up")
        await until(lambda: adapter.health().state == "down")
        with pytest.raises(AdapterError) as caught:
            await adapter.run(a_call("env"))
        assert caught.value.no_effect
        assert caught.value.code == "source_down"
        await until(lambda: adapter.health().state == "up")
        await structured(adapter, "env")


async def test_stopping_ends_the_child_and_its_children() -> None:
    async with connected(rogue_target()) as adapter:
        grandchild = await structured(adapter, "leaves-a-child")
        child = (await structured(adapter, "env"))["pid"]
        assert alive(child)
        assert alive(grandchild)
    await until(lambda: not alive(child) and not alive(grandchild))


async def test_a_child_that_closes_its_output_is_replaced() -> None:
    async with connected(rogue_target()) as adapter:
        first = (await structured(adapter, "env"))["pid"]
        with pytest.raises(AdapterError) as caught:
            await adapter.run(a_call("closes"))
        assert not caught.value.no_effect
        assert (await structured(adapter, "env"))["pid"] != first
        assert not alive(first)


async def test_what_was_subscribed_stays_so_when_the_child_is_replaced() -> None:
    events = Events()
    updated = Event(kind="resource_updated", uri="test://1")
    async with connected(stdio_target(), events) as adapter:
        await adapter.subscribe("test://1", True)
        with pytest.raises(AdapterError):
            await adapter.run(a_call("die"))
        await until(lambda: adapter.health().connects == 2)
        await events.until(lambda seen: updated in seen)  # it may have changed meanwhile
        events.seen.clear()
        await adapter.run(a_call("change", {"what": "test://1"}))
        await events.until(lambda seen: updated in seen)


async def test_a_stopped_adapter_starts_again() -> None:
    async with connected(rogue_target()) as adapter:
        await adapter.stop()
        async with anyio.create_task_group() as tasks:
            await adapter.start(tasks, Events())
            assert await structured(adapter, "env")
            await adapter.stop()


# What a child says.


@pytest.mark.parametrize("how", ["no-newline", "noise"])
async def test_a_child_that_floods_is_killed_with_its_group_and_replaced(how: str) -> None:
    async with connected(rogue_target(), result_bytes_max=1024 * 1024) as adapter:
        grandchild = await structured(adapter, "leaves-a-child")
        child = (await structured(adapter, "env"))["pid"]
        with pytest.raises(AdapterError) as caught:
            await adapter.run(a_call(how))
        assert not caught.value.no_effect
        await until(lambda: not alive(child) and not alive(grandchild))
        assert (await structured(adapter, "env"))["pid"] != child


async def test_a_flooding_child_does_not_starve_its_neighbours() -> None:
    async with (
        connected(rogue_target()) as loud,
        connected(rogue_target()) as quiet,
        anyio.create_task_group() as tasks,
    ):

        async def flood() -> None:
            await loud.run(a_call("loud", {"seconds": 2.0}))

        tasks.start_soon(flood)
        for _ in range(20):
            await quiet.run(a_call("env", deadline_s=2.0))


async def test_standard_error_is_kept_in_a_ring(caplog: pytest.LogCaptureFixture) -> None:
    async with connected(rogue_target()) as adapter:
        await adapter.run(a_call("loud", {"seconds": 0.2}))
        pid = (await structured(adapter, "env"))["pid"]
        with caplog.at_level(logging.WARNING):
            os.kill(pid, signal.SIGKILL)
            await until(lambda: adapter.health().connects == 2)
    assert "yyy" in caplog.text
    assert len(caplog.text) < 5_000


async def test_what_is_not_json_rpc_is_passed_over() -> None:
    async with connected(rogue_target()) as adapter:
        assert await structured(adapter, "banner") == "ok"
        assert await structured(adapter, "other-id") == "ok"
        assert (await adapter.run(a_call("twice"))).body["n"] == 1
        assert await structured(adapter, "env")


WORDS = st.sampled_from(
    [
        "tools/call",
        "ping",
        "elicitation/create",
        "roots/list",
        "notifications/progress",
        "notifications/message",
        "notifications/cancelled",
        "notifications/resources/updated",
        "notifications/tools/list_changed",
        "notifications/subscriptions/acknowledged",
        "notifications/elicitation/complete",
        "x",
    ]
)
PARTS = st.sampled_from(
    [
        "id",
        "method",
        "params",
        "error",
        "code",
        "message",
        "progressToken",
        "progress",
        "requestId",
        "uri",
        "mode",
        "_meta",
        "notifications",
        "io.modelcontextprotocol/subscriptionId",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats(allow_nan=False) | st.text(max_size=3) | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(PARTS, inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.fixed_dictionaries(
    {"method": WORDS}, optional={"id": VALUES, "params": st.dictionaries(PARTS, VALUES, max_size=4) | VALUES}
) | st.dictionaries(PARTS, VALUES, max_size=4)
LINES = MESSAGES.map(lambda message: json.dumps(message).encode()) | st.binary(max_size=9)


@given(lines=st.lists(LINES, max_size=5))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
async def test_whatever_a_child_says_its_answer_arrives(lines: list[bytes], said: McpAdapter) -> None:
    async def nothing(*_: Any) -> Any:
        return {}

    caller = Caller(capabilities={**FORMS, "roots": {}}, progress=nothing, notify=nothing, ask=nothing)
    noise = b"".join(line.replace(b"\n", b"") + b"\n" for line in lines)
    reply = await said.run(a_call("says", {"bytes": noise.decode("latin-1")}), caller)
    assert reply.body["structuredContent"] == "ok"


@pytest.fixture
async def said() -> AsyncGenerator[McpAdapter]:
    async with connected(rogue_target(), relay=frozenset({"elicitation", "roots", "logging"})) as adapter:
        yield adapter


@pytest.mark.parametrize("how", ["no-result", "no-object", "bad-error"])
async def test_an_answer_that_is_none_leaves_the_call_in_doubt(how: str) -> None:
    async with connected(rogue_target()) as adapter:
        with pytest.raises(AdapterError) as caught:
            await adapter.run(a_call(how))
        assert caught.value.code == "invalid_answer"
        assert not caught.value.no_effect


async def test_a_child_that_reads_nothing_is_not_written_to_for_ever() -> None:
    async with connected(rogue_target()) as adapter:
        with pytest.raises(AdapterError, match="did not answer"):
            await adapter.run(a_call("deaf", deadline_s=0.2))
        codes: list[str] = []
        for _ in range(12):
            # The first is under way to the child, at least in part, before its time is over.
            deadline_s = 0.05 if codes else 0.5
            with pytest.raises(AdapterError) as caught:
                await adapter.run(a_call("x", {"text": "x" * 1_000_000}, deadline_s=deadline_s))
            codes.append(caught.value.code)
        assert codes[0] == "timeout"
        assert codes[-1] == "source_busy"
        assert caught.value.no_effect


async def test_a_definition_is_offered_as_it_came() -> None:
    async with connected(rogue_target()) as adapter:
        assert (await adapter.offer()).tools == ({"name": "t", "x-unknown": {"kept": None}},)


async def test_a_list_without_end_is_refused() -> None:
    async with connected(rogue_target("endless")) as adapter:
        with pytest.raises(AdapterError, match="no end"):
            await adapter.offer()


# Which revision.


@pytest.mark.parametrize("habit", ["refuses", "dies", "silent"])
async def test_an_older_server_is_found_out_however_it_takes_the_probe(habit: str) -> None:
    async with connected(rogue_target(habit), connect_timeout_s=6) as adapter:
        assert adapter.health().detail == "revision 2025-06-18"
        hello = await structured(adapter, "initialized-with")
        assert hello["protocolVersion"] == "2025-11-25"
        assert hello["capabilities"] == {}
        assert hello["clientInfo"]["name"] == "remit"


async def test_the_stateless_revision_sends_what_every_request_must_carry() -> None:
    async with connected(rogue_target("answers")) as adapter:
        assert adapter.health().detail == f"revision {MODERN}"
        with pytest.raises(AdapterError):
            # The rogue's results lack nothing else; its kind is absent and counts as complete.
            await adapter.run(a_call("no-result"))
        meta = await structured(adapter, "meta", meta={"traceparent": "00-1"})
        assert meta["io.modelcontextprotocol/protocolVersion"] == MODERN
        assert meta["io.modelcontextprotocol/clientInfo"]["name"] == "remit"
        assert meta["io.modelcontextprotocol/clientCapabilities"] == {}
        assert meta["traceparent"] == "00-1"


async def test_a_server_that_must_be_modern_and_is_not_fails_to_start() -> None:
    error = await refused(rogue_target(), era="modern")
    assert error.rpc == {"code": -32601, "message": "Method not found"}


async def test_a_server_that_never_answers_fails_to_start_in_time() -> None:
    command = (*rogue_target().command[:1], "-c", "import time; time.sleep(600)")
    error = await refused(StdioTarget(command=command), connect_timeout_s=1.0)
    assert "did not come up within 1 s" in error.message


# What it asks.


async def test_a_server_hears_a_ping_back() -> None:
    async with connected(rogue_target()) as adapter:
        assert await structured(adapter, "ping") == {}


async def test_without_relay_a_question_is_cancelled_and_log_lines_stay_here() -> None:
    async def ask(method: str, params: Any) -> Any:
        raise AssertionError("asked")

    async def notify(method: str, params: Any) -> None:
        raise AssertionError("told")

    caller = Caller(capabilities=FORMS, ask=ask, notify=notify)
    async with connected(rogue_target()) as adapter:
        assert (await adapter.run(a_call("ask"), caller)).body["structuredContent"] == {"action": "cancel"}
        assert (await adapter.run(a_call("log"), caller)).body["structuredContent"] == "ok"


async def test_a_client_that_fails_to_answer_counts_as_nobody() -> None:
    async def ask(method: str, params: Any) -> Any:
        raise ConnectionError

    async with connected(rogue_target(), relay=RELAY) as adapter:
        reply = await adapter.run(a_call("ask"), Caller(capabilities=FORMS, ask=ask))
        assert reply.body["structuredContent"] == {"action": "cancel"}


async def test_a_question_is_shown_to_nobody_when_two_calls_could_have_caused_it() -> None:
    """A call that was given up may still be working, and its question is not the next caller's."""
    asked: list[str] = []

    async def ask(method: str, params: Any) -> Any:
        asked.append(method)
        return {"action": "accept", "content": {}}

    caller = Caller(capabilities=FORMS, ask=ask)
    async with connected(rogue_target(), relay=RELAY) as adapter:
        with pytest.raises(AdapterError, match="did not answer"):
            await adapter.run(a_call("silent", deadline_s=0.1), caller)
        reply = await adapter.run(a_call("ask"), caller)
        assert reply.body["structuredContent"] == {"action": "cancel"}
        assert asked == []


async def test_a_question_that_the_source_withdraws_is_withdrawn_from_the_client() -> None:
    withdrawn = anyio.Event()

    async def ask(method: str, params: Any) -> Any:
        try:
            await anyio.sleep_forever()
        finally:
            withdrawn.set()

    async with connected(rogue_target(), relay=RELAY) as adapter, anyio.create_task_group() as tasks:

        async def call() -> None:
            await adapter.run(a_call("withdraws"), Caller(capabilities=FORMS, ask=ask))

        tasks.start_soon(call)
        with anyio.fail_after(15):
            await withdrawn.wait()
        tasks.cancel_scope.cancel()


async def test_an_answer_leaves_nothing_to_ask() -> None:
    begun: list[str] = []

    async def ask(method: str, params: Any) -> Any:
        begun.append(params["message"])
        await anyio.sleep_forever()

    async with connected(rogue_target(), relay=RELAY) as adapter:
        with anyio.fail_after(10):
            reply = await adapter.run(a_call("asks-in-vain"), Caller(capabilities=FORMS, ask=ask))
        assert reply.body["structuredContent"] == "ok"


async def test_a_source_that_asks_and_asks_is_not_put_to_people_without_end() -> None:
    asked: list[str] = []

    async def ask(method: str, params: Any) -> Any:
        asked.append(method)
        await anyio.sleep_forever()

    async with connected(rogue_target(), relay=RELAY) as adapter:
        with pytest.raises(AdapterError, match="did not answer"):
            await adapter.run(a_call("asks-much", deadline_s=2.0), Caller(capabilities=FORMS, ask=ask))
    assert len(asked) == 8


async def test_calls_run_side_by_side_where_no_question_is_relayed(tmp_path: Path) -> None:
    places = [tmp_path / str(n) for n in range(3)]
    async with connected(stdio_target(), era="legacy") as adapter, anyio.create_task_group() as tasks:
        for place in places:
            place.mkdir()
            tasks.start_soon(adapter.run, a_call("wait", {"place": str(place)}))
        for place in places:
            await appears(place / "began")
        for place in places:
            (place / "go").touch()


async def test_calls_take_turns_where_questions_cannot_be_told_apart() -> None:
    async with connected(rogue_target(), relay=RELAY) as adapter, anyio.create_task_group() as tasks:

        async def silent() -> None:
            with pytest.raises(AdapterError, match="did not answer"):
                await adapter.run(a_call("silent", deadline_s=3.0))

        tasks.start_soon(silent)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(AdapterError, match="was not free") as caught:
            await adapter.run(a_call("env", deadline_s=0.1))
        assert caught.value.no_effect


async def test_what_must_not_be_sent_any_more_when_its_turn_has_come_is_not_sent(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()

    def stopped() -> None:
        raise AdapterError("It was stopped.", no_effect=True, code="stopped")

    async def in_vain() -> None:
        with pytest.raises(AdapterError, match="It was stopped"):
            await adapter.run(a_call("wait", {"place": str(second)}, before_sent=stopped))

    async with connected(stdio_target(), era="legacy", relay=RELAY) as adapter:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(adapter.run, a_call("wait", {"place": str(first)}))
            await appears(first / "began")
            tasks.start_soon(in_vain)
            (first / "go").touch()
        assert not (second / "began").exists()
