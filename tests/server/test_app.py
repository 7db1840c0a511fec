"""What a server does beside its calls, again and again, until it ends."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from tests.server.acme import CONFIG, Terminal, a_place
from tests.server.builders import POLICY, TOOLS, ScriptedSource, a_config, rows, until
from tests.server.test_triggers import LOOK_AND_STOP, a_triggered

from remit.app import App
from remit.config_file import Loaded, load
from remit_adapters.base import Reply


@pytest.mark.parametrize(
    ("work", "pause"),
    [
        ("remit.app.begin_to_send", "_DUE_S"),
        ("remit.app.resume", "_RETAIN_S"),
        ("remit.app.Prober.round", "_PROBE_S"),
        ("remit.app.Journal.catch_up", "_UPKEEP_S"),
        ("remit.app.App._seal", "_DUE_S"),
        ("remit.app.PolicyWatch.run", "_AGAIN_S"),
        ("remit.app.Shadow.run", "_AGAIN_S"),
    ],
)
async def test_work_that_goes_wrong_once_is_tried_again_and_ends_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str, pause: str
) -> None:
    remit = Terminal(a_place(tmp_path))
    remit.config.write_text(f"{CONFIG}audit: {{seal_every: 1s}}\n")
    tries: list[object] = []

    async def goes_wrong_once(*_: object, **__: object) -> list[object]:
        tries.append(None)
        if len(tries) == 1:
            raise ValueError("nobody has thought of this")
        return []

    monkeypatch.setattr(work, goes_wrong_once)
    monkeypatch.setattr(f"remit.app.{pause}", 0.01)
    async with App(load(remit.config), role="http").running():
        await until(lambda: len(tries) > 1)


async def test_what_goes_wrong_as_a_server_ends_keeps_it_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def goes_wrong(*_: object) -> None:
        raise ValueError("nobody has thought of this")

    monkeypatch.setattr("remit.app.Shadow.finish", goes_wrong)
    async with App(load(a_place(tmp_path)), role="http").running():
        pass
    assert rows(tmp_path / "remit.db", "SELECT state FROM incarnations") == [{"state": "closed"}]


class Slow(ScriptedSource):
    """A source that never answers, and knows whether it was stopped over a call."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = 0
        self.cut_off = False

    async def stop(self) -> None:
        self.cut_off |= self.under_way > 0

    async def never(self, *_: object) -> Reply:
        self.under_way += 1
        try:
            return await anyio.sleep_forever()
        finally:
            self.under_way -= 1


async def test_a_playbook_that_a_server_has_under_way_as_it_ends_is_carried_on_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policy.csv").write_text(POLICY)
    book = a_triggered({"switch": {"kind": "safe"}}, "trigger.kind", steps=LOOK_AND_STOP)
    config = a_config(tmp_path, tools=TOOLS, playbooks={"careful": book})
    loaded = Loaded(
        config=config, path=tmp_path / "remit.yaml", folder=tmp_path, positions={}, shown="remit.yaml"
    )

    def states() -> list[str]:
        return [run["state"] for run in rows(tmp_path / "remit.db", "SELECT state FROM playbook_runs")]

    source = Slow()
    monkeypatch.setattr("remit.app.adapter", lambda *_: source)
    source.on["look"] = source.never
    async with App(loaded, role="http").running() as app:
        on = await app.services()
        await on.journal.switch(
            kind="safe", scope="all", target="", tenant="", on=True, reason="odd", by="user:bea"
        )
        await source.reached()
    # As failed it would end, had its source gone before it.
    assert not source.cut_off
    assert states() == ["running"]
    source.on["look"] = {"value": 7}
    async with App(loaded, role="http").running():
        await until(lambda: states() == ["done"])
    assert len(source.sent) == 2
