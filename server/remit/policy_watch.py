"""A running server's policy: read at start, looked at ever after, replaced whole or not at all.

A new version is read once, built aside in a thread, checked, put to the policy tests of the configuration,
kept in the audit database, and only then handed over. Whatever is wrong with it, the old one goes on
deciding; what was wrong is logged, recorded and shown as a metric until it is mended. The application runs
one watch while it serves.

Files are looked at by their status, twice a second: that costs some microseconds, works on every file system
and for files that are renamed, linked or mounted over, where notifications of the kernel do not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import anyio
import anyio.to_thread

from remit import telemetry
from remit.config import Config
from remit.config_file import policy_files
from remit.database import reading
from remit.errors import RemitError, StoreUnavailable
from remit.journal import Journal
from remit.policies import BuiltPolicy, adapted, built, text_in_force
from remit_rbac import Policy, PolicyError

_log = logging.getLogger("remit.policy")
#: Seconds between two looks. Files count as written when two looks see the same, so within a second.
_LOOK_S = 0.4
#: Seconds between two looks at rows of a pycasbin adapter or a table: all of them are read each time.
_ELSEWHERE_S = 10.0
#: Most problems of one refused version that are recorded.
_PROBLEMS_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """A version that may decide."""

    look: Hashable
    made: BuiltPolicy


class PolicyWatch:
    def __init__(self, config: Config, *, hold: Callable[[Policy], None] = lambda _: None) -> None:
        self._config = config
        #: Holds a policy against the tools that are here. Raises PolicyError.
        self._hold = hold
        self._files = config.policy.source == "files"
        self._current: _Read | None = None
        #: What was seen when a version was last taken or refused.
        self._tried: Hashable = None
        #: The text that was refused last, while it stands where the next version should.
        self._refused: object = None
        self._asked = anyio.Event()
        #: What other programs kept at the last look, and when that was (monotonic seconds).
        self._rows: Hashable = None
        self._rows_at_s = -_ELSEWHERE_S

    def load(self) -> Policy:
        """Read the policy to start with. Raises PolicyError with every problem, RemitError."""
        self._current = self._read()
        self._tried = self._current.look
        return self._current.made.policy

    def hold(self) -> None:
        """Hold what was loaded against the tools, which are known only now. Raises PolicyError."""
        if self._current is not None:
            self._hold(self._current.made.policy)

    async def keep(self, journal: Journal) -> None:
        """Keep the text of the policy that was loaded, so that what it decided can be looked up."""
        if self._current is not None:
            await journal.decides_by(self._current.made.version, from_files=self._files)

    def ask(self) -> None:
        """Look now, and try again also what was refused before."""
        self._asked.set()

    async def run(self, journal: Journal, use: Callable[[Policy], None]) -> None:
        """Look for new versions until cancelled; `use` is called in the event loop with each."""
        before = self._tried
        while True:
            with anyio.move_on_after(_LOOK_S):
                await self._asked.wait()
            asked = self._asked.is_set()
            self._asked = anyio.Event()
            now = await anyio.to_thread.run_sync(self._look)
            # A file that is being written changes from look to look; an activation is there or is not.
            settled = now == before or not self._files
            if asked or (now != self._tried and settled):
                await self._try(now, journal, use)
            before = now

    async def _try(self, look: Hashable, journal: Journal, use: Callable[[Policy], None]) -> None:
        try:
            read = await anyio.to_thread.run_sync(self._read)
            if read.look != look and self._files:
                return  # it changed while it was read: the next look sees it again
            made = read.made
            if self._current is None or made.text != self._current.made.text:
                await journal.decides_by(made.version, from_files=self._files)
                use(made.policy)
                _log.info("policy version %s decides from now on", made.policy.version[:12])
                telemetry.policy_loaded("activated")
            self._current, self._refused = read, None
            telemetry.policy_stale(False)
        except StoreUnavailable as error:
            _log.error("the policy stays as it was, for the new version cannot be recorded: %s", error)
            return  # tried again with the next look
        except (PolicyError, RemitError) as error:
            await self._refuse(error, journal)
        self._tried = look

    async def _refuse(self, error: PolicyError | RemitError, journal: Journal) -> None:
        telemetry.policy_stale(True)
        if str(error) == self._refused:
            return
        self._refused = str(error)
        _log.error("the policy stays as it was, for the new version was refused:\n%s", error)
        telemetry.policy_loaded("rejected")
        problems = (
            [str(problem) for problem in error.problems] if isinstance(error, PolicyError) else [str(error)]
        )
        with suppress(StoreUnavailable):  # it was logged, and shows as a metric
            await journal.reject_policy(problems=problems[:_PROBLEMS_MAX], digests=self._digests())

    def _digests(self) -> list[dict[str, str | None]]:
        with suppress(RemitError):
            return text_in_force(self._config).digests
        return []

    def _read(self) -> _Read:
        look = self._look()
        made = built(text_in_force(self._config), self._config)
        self._hold(made.policy)
        for problem in made.policy.warnings:
            if problem.code == "no-rows":  # that may be a loss, and nobody runs a check when it comes
                _log.warning("%s", problem)
        if self._config.policy.tests:
            # Imported only where it is used: a server answers before it needs this.
            from remit.policy_tests import must_pass

            must_pass(self._config, made.policy)
        return _Read(look=look, made=made)

    def _look(self) -> Hashable:
        if self._files:
            files = (*_paths(self._config), *self._config.policy.tests)
            return (self._elsewhere(), *((path, _status(path)) for path in files))
        try:
            with reading(self._config.store.location, newest=False) as db:
                row = db.one("SELECT MAX(number) AS newest FROM policy_activations")
            return row["newest"] if row else None
        except StoreUnavailable:
            return self._tried  # whoever writes there next will say what is wrong

    def _elsewhere(self) -> Hashable:
        """What there is of rows that other programs keep; looked at less often than files."""
        if self._config.policy.elsewhere and monotonic() - self._rows_at_s >= _ELSEWHERE_S:
            try:
                # Sorted, for an adapter need not have an order: the same rows are the same policy in any.
                self._rows = tuple(
                    (layer.file, *sorted(layer.content.splitlines())) for layer in adapted(self._config)
                )
            except (RemitError, PolicyError) as error:
                self._rows = str(error)
            self._rows_at_s = monotonic()
        return self._rows


def _paths(config: Config) -> list[Path]:
    source = config.policy
    tenants = [path for paths in source.tenants.values() for path in paths]
    return [*([source.model] if source.model else []), *policy_files(source.files), *policy_files(tenants)]


def _status(path: Path) -> Hashable:
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
