"""Another pepper than the database knows is noticed at the start, and not by every key that fails."""

from __future__ import annotations

import os
from typing import Any

import anyio
import pytest
from tests.server.acme import Story, Terminal, serving

from remit.errors import WrongState

Place = tuple[Terminal, Story]
KEY = ("agents", "key", "create", "--agent", "agent:support-bot", "--user", "user:alice")


def with_another_pepper(remit: Terminal) -> None:
    pepper = remit.folder / "remit.db.pepper"
    assert pepper.stat().st_mode & 0o077 == 0
    pepper.write_bytes(os.urandom(32))


async def starting(remit: Terminal) -> str:
    """What a server says that does not start."""
    with pytest.RaisesGroup(WrongState, flatten_subgroups=True) as refused:
        async with serving(remit.config):
            pass
    (error,) = leaves(refused.value)
    return str(error)


def leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for each in error.exceptions for leaf in leaves(each)]


def test_a_server_and_a_new_key_are_refused_with_what_to_do(anywhere: Place) -> None:
    remit, _ = anywhere
    assert remit(*KEY).code == 0
    kept = (remit.folder / "remit.db.pepper").read_bytes()
    with_another_pepper(remit)
    refusals = anyio.run(starting, remit), remit(*KEY).err
    for said in refusals:
        for part in ("remit.db.pepper", "1 API keys", "1 calls in doubt", "Restore the file", "store.path"):
            assert part in said
    assert len(remit.json("agents", "key", "list")) == 1
    (remit.folder / "remit.db.pepper").write_bytes(kept)
    assert remit(*KEY).code == 0


def test_when_nothing_needs_the_old_one_the_new_one_is_taken_and_that_is_on_record(anywhere: Place) -> None:
    remit, story = anywhere
    made: Any = remit.json(*KEY)
    with_another_pepper(remit)
    assert remit("agents", "key", "revoke", made["id"]).code == 0
    assert remit(*KEY).code == 1  # a call is still in doubt
    assert (
        remit("doubt", "resolve", story.in_doubt, "--did-not-happen", "--reason", "looked", "--force").code
        == 0
    )
    assert remit(*KEY).code == 0
    events = remit("audit", "export").out
    assert events.count('"kind":"key.pepper"') == 1
    assert remit("audit", "verify").code == 0
