"""What a server does beside its calls, again and again, until it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.server.acme import CONFIG, Terminal, a_place
from tests.server.builders import until

from remit.app import App
from remit.config_file import load


@pytest.mark.parametrize(
    ("work", "pause"),
    [
        ("remit.app.send_due", "_DUE_S"),
        ("remit.app.resume", "_RETAIN_S"),
        ("remit.app.Prober.round", "_PROBE_S"),
        ("remit.app.Journal.catch_up", "_UPKEEP_S"),
        ("remit.app.App._seal", "_DUE_S"),
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
