"""Building and wiring: the only place where the parts of a running Remit are made and joined.

An `App` lives as long as its process serves: it opens the journal, loads the policy, connects the sources
and keeps catalog and policy current. It answers nothing itself; fronts wait for `services()` and hand calls
to the pipeline.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib import import_module
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from remit import catalog, telemetry
from remit.config import Config, McpSource
from remit.config_file import Loaded, resolve
from remit.config_problems import ConfigError
from remit.database import beside
from remit.due import begin_to_send
from remit.erasing import resume
from remit.errors import RemitError, StoreUnavailable
from remit.identity import load_pepper, pepper_check
from remit.ids import Clock, now_us
from remit.journal import Journal, open_journal
from remit.keeping import sweep
from remit.pipeline import Services
from remit.policy_watch import PolicyWatch
from remit.probes import Prober
from remit.shadow import Shadow
from remit_adapters.base import Adapter, AdapterError, Event, Offer
from remit_adapters.mcp import HttpTarget, McpAdapter, StdioTarget
from remit_rbac import Engine, Policy, PolicyError

_log = logging.getLogger("remit.app")
#: A client may start Remit by its full path: programs installed beside it are found all the same.
_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
#: Seconds between two looks for outcomes that are owed, approvals whose time is up, and processes that died.
#: A late look allows nothing: time is also checked where an approval is used.
_UPKEEP_S = 2.0
_PROBE_S = 10.0
#: Seconds between two looks for what is kept longer than it is to be.
_RETAIN_S = 60.0
_DUE_S = 1.0
#: Seconds between two looks for what starts a playbook.
_TRIGGER_S = 2.0
#: Seconds before work that never ends by itself, and was cut short, is taken up again.
_AGAIN_S = 1.0
#: How long a process that ends may take to seal what it wrote and to put the checkpoint elsewhere.
_LAST_SEAL_S = 2.0
#: Seconds between two tries to connect an optional source that was not there at the start.
_RETRY_S = 1.0
_RETRY_S_MAX = 60.0


class SourceDown(RemitError):
    """A source that is not optional cannot be reached at start."""


class App:
    def __init__(self, loaded: Loaded, *, role: str, clock: Clock = now_us) -> None:
        self.loaded = loaded
        self.config: Config = loaded.config
        self._role = role
        self._clock = clock
        self._services: Services | None = None
        self._failure: BaseException | None = None
        self._settled = anyio.Event()
        self._offers: dict[str, Offer] = {}
        self._shadow = Shadow(loaded.config)
        self._listeners: list[Callable[[Event], None]] = []
        self._watch = PolicyWatch(loaded.config, hold=self._hold_against_tools)
        #: The work beside the calls, and that none of it goes on.
        self._work: anyio.CancelScope | None = None
        self._rested = anyio.Event()

    async def services(self) -> Services:
        """What calls are governed with, as soon as the start is done. Raises what the start raised."""
        await self._settled.wait()
        if self._services is None:
            raise RemitError("Remit did not start") from self._failure
        return self._services

    @property
    def services_now(self) -> Services | None:
        """The same without waiting: None while starting, or after a failed start."""
        return self._services if self._settled.is_set() else None

    @property
    def pepper(self) -> bytes:
        return load_pepper(beside(self.config.store.location, ".pepper"))

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Have `listener` called, in the event loop, when what is exported or subscribed to has changed."""
        self._listeners.append(listener)

    def look_at_policy(self) -> None:
        """Look for a new policy now, and try again one that was refused."""
        self._watch.ask()

    @asynccontextmanager
    async def running(self, *, sources: Collection[str] | None = None) -> AsyncGenerator[App]:
        """Start everything, and stop it on the way out; yields once all is up.

        `sources` limits which are connected (`()`: none). Raises RemitError, PolicyError or ConfigError.
        """
        async with anyio.create_task_group() as tasks:
            try:
                await self._start(tasks, sources)
                yield self
            finally:
                with anyio.CancelScope(shield=True):
                    await self._stop()
                tasks.cancel_scope.cancel()

    async def _start(self, tasks: TaskGroup, sources: Collection[str] | None) -> None:
        try:
            # A client that started this process waits for its first answer: what is slow to load or to
            # make goes beside the event loop.
            await anyio.to_thread.run_sync(import_module, "remit.tables")
            policy = await anyio.to_thread.run_sync(self._watch.load)
            journal = await open_journal(
                self.config.store.location,
                role=self._role,
                relaxed=self.config.store.durability == "relaxed",
                lease_s=self.config.store.lease,
                queue_max=self.config.limits.queue,
                clock=self._clock,
                key=self.loaded.master_key(),
                config=self.loaded.digest,
            )
            if self.config.telemetry.otlp:
                telemetry.configure(self.config.telemetry.otlp)
            telemetry.notice()
            services = Services(
                config=self.config,
                journal=journal,
                policy=self._engine(policy),
                catalog=catalog.build(self.config, {}),
                adapters={
                    name: adapter(name, source, self.loaded)
                    for name, source in self.config.sources.items()
                    if sources is None or name in sources
                },
                clock=self._clock,
                secret=hmac.digest(self.pepper, b"call fingerprints", hashlib.sha256),
                in_flight={},
            )
            self._services = services
            await journal.know_pepper(pepper_check(self.pepper))
            await self._watch.keep(journal)
            async with anyio.create_task_group() as starts:
                for name in services.adapters:
                    starts.start_soon(self._connect, name, services, tasks)
            self._rebuild(services)
            if self._role != "cli":
                await anyio.to_thread.run_sync(self._watch.hold)
            tasks.start_soon(self._sealing)
            if self._role != "cli":
                watching = "looking for a new policy"
                tasks.start_soon(_again_and_again, watching, self._watch.run, journal, self._use)
            self._work = anyio.CancelScope()
            tasks.start_soon(self._working, services, self._work)
        except BaseException as error:
            self._failure = error
            if self._services is not None:
                with anyio.CancelScope(shield=True):
                    await self._stop()
            self._services = None
            raise
        finally:
            self._settled.set()

    async def cut_short(self) -> None:
        """Take their sources from the calls that are under way: these end, and are recorded and answered."""
        if self._services is None:
            return
        await self._rest()
        async with anyio.create_task_group() as tasks:
            for each in self._services.adapters.values():
                tasks.start_soon(_ended, each)

    async def _stop(self) -> None:
        if self._services is None:
            return
        try:
            await self.cut_short()
            with _going_on("trying a policy"):
                await self._shadow.finish(self._services)
            await self._services.journal.close()
        finally:
            self._services = None  # also where the records are away: once is enough
        if self._role != "cli":
            with anyio.move_on_after(_LAST_SEAL_S):  # no anchor keeps a process from ending
                await self._seal()

    async def _rest(self) -> None:
        """End the work beside the calls, before the sources are gone: it would fail for that, and be recorded
        as failed. What is not begun now is done by the next process that serves."""
        if self._work is not None:
            self._work.cancel()
            await self._rested.wait()

    async def _connect(self, name: str, services: Services, tasks: TaskGroup) -> None:
        source = services.adapters[name]

        def on_event(event: Event) -> None:
            if self._services is None:
                return
            if event.kind == "resource_updated":
                self._tell(event)
            else:
                tasks.start_soon(self._refresh, name, event, services)

        try:
            await source.start(tasks, on_event)
            self._offers[name] = await source.offer()
        except AdapterError as error:
            if not self.config.sources[name].optional:
                raise SourceDown(
                    f"source {name} cannot be reached: {error.message} Mend it, or set optional: true"
                ) from None
            _log.warning("source %s cannot be reached, and is optional: %s", name, error.message)
            tasks.start_soon(self._keep_trying, name, services, tasks, on_event)

    async def _keep_trying(
        self, name: str, services: Services, tasks: TaskGroup, on_event: Callable[[Event], None]
    ) -> None:
        """Connect an optional source that was not there at the start, as soon as it is."""
        pause_s = _RETRY_S
        while name not in self._offers:
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RETRY_S_MAX)
            with suppress(AdapterError):
                if services.adapters[name].health().state == "stopped":
                    await services.adapters[name].start(tasks, on_event)
                await self._refresh(name, Event(kind="tools"), services)

    async def _refresh(self, name: str, event: Event, services: Services) -> None:
        try:
            self._offers[name] = await services.adapters[name].offer()
        except AdapterError:
            return  # its next connection brings another event
        self._rebuild(services)
        self._tell(event)

    def _rebuild(self, services: Services) -> None:
        services.catalog = catalog.build(self.config, self._offers)

    def _hold_against_tools(self, policy: Policy) -> None:
        """Raise PolicyError, or warn, when a rule can never be answered for the tools that are here."""
        if self._services is None:
            return  # which tools there are is not known yet
        # Imported only where it is used: a server answers before it needs this.
        from remit.context_schema import misfits_of

        found = misfits_of(policy, self.config, self._services.catalog)
        errors = [problem for problem in found if problem.level == "error"]
        if errors and self.config.policy.misfits == "refuse":
            raise PolicyError(errors)
        for problem in errors:
            _log.warning("a rule does not fit the tools here: %s", problem)

    def _engine(self, policy: Policy) -> Engine:
        """What asks this policy, as the configuration says."""
        if self.config.policy.engine == "indexed":
            return policy
        from remit_rbac.stock import StockPolicy

        return StockPolicy(policy)

    def _use(self, policy: Policy) -> None:
        if self._services is None:
            return
        self._services.policy = self._engine(policy)
        for kind in ("tools", "resources", "prompts"):  # each list is what policy lets its reader see
            self._tell(Event(kind=kind))

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    async def _working(self, services: Services, until: anyio.CancelScope) -> None:
        """What is done beside the calls and makes calls of its own, or records, until the process ends."""
        journal = services.journal
        try:
            with until:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._upkeep, journal)
                    if self._role != "cli":
                        tasks.start_soon(self._probing, services)
                        tasks.start_soon(self._retaining, journal)
                        tasks.start_soon(self._sending, services, tasks)
                        if self.config.playbooks:
                            tasks.start_soon(self._recovering, services, tasks)
                        tasks.start_soon(_again_and_again, "trying a policy", self._shadow.run, services)
        finally:
            self._rested.set()

    async def _upkeep(self, journal: Journal) -> None:
        while True:
            await anyio.sleep(_UPKEEP_S)
            for step in (journal.catch_up, journal.expire, journal.take_over):
                with _going_on(step.__name__):
                    await step()

    async def _retaining(self, journal: Journal) -> None:
        while True:
            with _going_on("erasing"):
                await resume(journal)
            await anyio.sleep(_RETAIN_S)
            with _going_on("retention"):
                await sweep(journal, self.config.audit.retention, now_us=self._clock())

    async def _probing(self, services: Services) -> None:
        prober = Prober()
        while True:
            with _going_on("probing"):
                for found in await prober.round(services):
                    _log.info("call %s, in doubt: %s (%s)", found.call_id, found.state, found.why)
            await anyio.sleep(_PROBE_S)

    async def _sending(self, services: Services, tasks: TaskGroup) -> None:
        busy: set[str] = set()
        while True:
            with _going_on("sending what is due"):
                await begin_to_send(services, tasks, busy)
            await anyio.sleep(_DUE_S)

    async def _recovering(self, services: Services, tasks: TaskGroup) -> None:
        # Imported only where it is used: most have no playbook that starts by itself.
        from remit import playbooks, triggers

        under_way: set[str] = set()

        async def carry_out(run: playbooks.Run) -> None:
            try:
                await triggers.carried_out(run)
            finally:
                under_way.discard(run.id)

        def begin(runs: Collection[playbooks.Run]) -> None:
            for run in runs:
                if run.id not in under_way:  # it is, where this process was given up for dead, and lives
                    under_way.add(run.id)
                    tasks.start_soon(carry_out, run)

        while True:
            with _going_on("carrying playbooks on"):
                begin(await triggers.resumed(services, self.loaded, under_way))
            with _going_on("starting playbooks"):
                begin(await triggers.begun(services, self.loaded))
            await anyio.sleep(_TRIGGER_S)

    async def _sealing(self) -> None:
        while True:
            await anyio.sleep(self.config.audit.seal_every)
            with _going_on("sealing"):
                await self._seal()

    async def _seal(self) -> None:
        """Seal what was committed, beside the event loop. A failure is told, and tried again next time."""
        await anyio.to_thread.run_sync(import_module, "remit.anchors")
        from remit.anchors import seal_and_anchor

        try:
            _, anchored = await seal_and_anchor(
                self.config.store.location, self.config.audit.anchors, clock=self._clock
            )
        except (RemitError, OSError) as error:
            _log.error("the log of events is not sealed: %s", error)
            return
        for each in anchored:
            if each.error:
                _log.error("the newest checkpoint is not at %s: %s", each.anchor, each.error)


async def _ended(source: Adapter) -> None:
    """End a source; a fault of it keeps neither the others nor the record from being closed."""
    with _going_on("ending a source"):
        await source.stop()


async def _again_and_again(what: str, work: Callable[..., Awaitable[None]], *given: object) -> None:
    """Have work go on that never ends by itself, whatever it meets."""
    while True:
        with _going_on(what):
            await work(*given)
        await anyio.sleep(_AGAIN_S)


@contextmanager
def _going_on(what: str) -> Generator[None]:
    """A supervisor of work that is done again and again: no look of it ends the server, or the next look."""
    try:
        yield
    except StoreUnavailable:
        pass  # calls are refused meanwhile, and say so
    except Exception:  # noqa: BLE001 - what is done in vain now may be done in a moment
        _log.exception("%s was cut short, and is tried again", what)


def adapter(name: str, source: McpSource, loaded: Loaded) -> Adapter:
    """The adapter for one configured source; secrets are read when they are used."""

    def headers() -> Mapping[str, str]:
        try:
            found = {
                header: resolve(reference, loaded.folder) for header, reference in source.headers.items()
            }
            if source.bearer:
                found["Authorization"] = f"Bearer {resolve(source.bearer, loaded.folder)}"
        except ConfigError as error:
            _log.error("source %s: %s", name, error)
            raise AdapterError(
                "The source's credential cannot be read just now; nothing was sent. Tell an operator.",
                no_effect=True,
                code="no_credential",
            ) from None
        return found

    if source.url is not None:
        target: HttpTarget | StdioTarget = HttpTarget(url=source.url, headers=headers)
    else:
        target = StdioTarget(
            command=tuple(source.command or ()),
            env={"PATH": _PATH, **{key: _value(value, loaded) for key, value in source.env.items()}},
            cwd=str(source.cwd or loaded.folder),
        )
    return McpAdapter(
        source=name,
        target=target,
        era=source.era,
        relay=frozenset(source.relay),
        connect_timeout_s=source.connect_timeout,
        result_bytes_max=loaded.config.limits.result_bytes,
    )


def _value(value: str, loaded: Loaded) -> str:
    return resolve(value, loaded.folder) if value.startswith(("env:", "file:")) else value


def process_run() -> str:
    """The run of a stdio server: one piece of work for each life of the client's child process."""
    return f"process-{os.getpid()}"
