"""A policy on trial: live calls are decided under it too, and what would differ is counted.

It never decides what happens. A call leaves behind, in the pipeline, what policy was asked; that is all it
pays. Beside the event loop, both policies are then asked again, so that a difference is the policy's and
nothing else's, and the counts go to the audit database. What comes faster than that is dropped and counted.

The trial is a row in the database: `remit policy shadow start` writes it, every serving process looks for it.
The application owns it, from `run` to `finish`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from remit.checks.permission import question_of
from remit.comparing import Difference, Group, add, difference, ordered
from remit.config import Config
from remit.database import reading
from remit.errors import StoreBusy, StoreUnavailable
from remit.policies import PolicyText
from remit_rbac import Engine, Policy, PolicyError

if TYPE_CHECKING:
    from remit.model import Call
    from remit.pipeline import Services

_log = logging.getLogger("remit.shadow")
#: Seconds between two looks at the database, and at what waits.
_LOOK_S = 0.5
#: How long the deciding rests, for each second that it has decided: what is left to live calls.
_REST = 9
#: Calls that may wait to be decided again: a second at full speed.
_WAITING_MAX = 4096


@dataclass(frozen=True, slots=True)
class _Trial:
    started_us: int
    policy: Policy


class Shadow:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._trial: _Trial | None = None
        #: A trial whose policy cannot be built here, so that it is tried and told once.
        self._unfit: int | None = None
        self._waiting: deque[tuple[Call, Mapping[str, Any], Engine]] = deque()
        self._dropped = 0

    def take(self, call: Call, context: Mapping[str, Any], policy: Engine) -> None:
        """Note a call that policy was asked about. Called by the pipeline: it only appends."""
        if len(self._waiting) < _WAITING_MAX:
            self._waiting.append((call, context, policy))
        else:
            self._dropped += 1

    async def run(self, services: Services) -> None:
        """Follow the database, and decide again what the pipeline left behind; until cancelled."""
        while True:
            await anyio.sleep(_LOOK_S)
            await self._look(services)
            await self._catch_up(services)

    async def finish(self, services: Services) -> None:
        """Decide what still waits; the journal is about to be closed."""
        services.shadow = None
        await self._catch_up(services)

    async def _look(self, services: Services) -> None:
        started_us = self._trial.started_us if self._trial else None
        try:
            found = await anyio.to_thread.run_sync(self._stored)
        except StoreUnavailable:
            return  # the database is busy or away: it is looked at again soon
        if found is None:
            services.shadow = None
            if self._trial is not None:
                await self._catch_up(services)
            self._trial = None
        elif found[0] not in (started_us, self._unfit):
            await self._catch_up(services)
            await self._begin(services, *found)

    async def _begin(self, services: Services, started_us: int, text: str) -> None:
        try:
            made = await anyio.to_thread.run_sync(PolicyText.from_json(text).build)
        except PolicyError as error:
            _log.error("the policy on trial cannot be used here: %s", error)
            self._unfit, self._trial, services.shadow = started_us, None, None
            return
        self._trial = _Trial(started_us, made.policy)
        services.shadow = self.take

    def _stored(self) -> tuple[int, str] | None:
        """When the trial began, and its text; None when there is none."""
        with reading(self._config.store.location, newest=False) as db:
            row = db.one("SELECT started_us, text FROM shadows WHERE stopped_us IS NULL")
        return (row["started_us"], row["text"]) if row else None

    async def _catch_up(self, services: Services) -> None:
        trial = self._trial
        if trial is None or not (self._waiting or self._dropped):
            return
        dropped, self._dropped = self._dropped, 0
        decided, groups = await anyio.to_thread.run_sync(self._decide, trial.policy, len(self._waiting))
        # Counts that cannot be stored just now are not worth holding up anything for.
        with suppress(StoreBusy, StoreUnavailable):
            await services.journal.note_shadow(
                started_us=trial.started_us, decided=decided, dropped=dropped, groups=groups
            )

    def _decide(self, candidate: Policy, count: int) -> tuple[int, list[Group]]:
        from remit.asking import answer

        groups: dict[Difference, Group] = {}
        for _ in range(count):
            began_s = time.perf_counter()
            call, context, policy = self._waiting.popleft()
            question = question_of(call, context)
            found = difference(answer(question, policy), answer(question, candidate))
            if found is not None:
                add(groups, call.id, found)
            # The event loop has the interpreter most of the time: a live call rarely waits for a decision,
            # and never for two.
            time.sleep(_REST * (time.perf_counter() - began_s))
        return count, ordered(groups)
