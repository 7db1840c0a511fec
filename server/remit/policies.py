"""Where policies come from: files or the audit database in, one checked `Policy` out.

Every place that needs the policy gets it here, so that what is asked by hand is what decides. Three layers
make one policy: the guardrails that ship, the organisation's files, each tenant's own. A deny of any layer
holds whatever another allows. Nothing here writes, and nothing here watches: that is `policy_watch.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from remit.config import Config, PolicyTable
from remit.config_file import policy_files, resolve
from remit.context import NOT_THERE
from remit.context_schema import context_schema
from remit.database import exists
from remit.errors import RemitError
from remit.records import open_records
from remit.versions import Version
from remit_adapters.base import Json
from remit_rbac import GUARDRAILS, Layer, Policy, PolicyError, load_layers
from remit_rbac.lines import read_values
from remit_rbac.model import SHIPPED
from remit_rbac.sources import adapter_rows, table_rows

#: How rows and problems name the model that ships.
_MODEL = Layer(file="built-in model", content=SHIPPED.read_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyText:
    """The complete text of one policy: what builds it again, anywhere and at any time."""

    model: Layer
    guardrails: tuple[Layer, ...]
    #: The organisation's files, then those of its tenants.
    layers: tuple[Layer, ...]

    def build(self, *, context_schema: Json | None = None) -> BuiltPolicy:
        """The policy that this text is; with the schema of `r.ctx`, one that reads nothing else of it.

        Raises PolicyError naming every problem.
        """
        policy = load_layers(
            self.layers,
            model=self.model,
            guardrails=self.guardrails,
            context_schema=context_schema,
            absent_context=NOT_THERE if context_schema is not None else None,
        )
        return BuiltPolicy(text=self, policy=policy)

    @property
    def parts(self) -> tuple[Layer, ...]:
        return (self.model, *self.guardrails, *self.layers)

    @property
    def digests(self) -> list[dict[str, str | None]]:
        """Each file with the SHA-256 of its bytes, for the record."""
        return [
            {"file": part.file, "tenant": part.tenant, "sha256": hashlib.sha256(part.content).hexdigest()}
            for part in self.parts
        ]

    def of_today(self) -> PolicyText:
        """The same rules under what ships with this Remit: guardrails are not taken from a stored version."""
        model = _MODEL if self.model.file == _MODEL.file else self.model
        return replace(self, model=model, guardrails=(GUARDRAILS,))

    def as_json(self) -> str:
        """How a version is stored. Call it for what has been built: every byte of that is UTF-8."""

        def of(part: Layer) -> dict[str, str | None]:
            return {"file": part.file, "tenant": part.tenant, "text": part.content.decode("utf-8")}

        return json.dumps(
            {
                "model": of(self.model),
                "guardrails": [of(part) for part in self.guardrails],
                "layers": [of(part) for part in self.layers],
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> PolicyText:
        def part(value: dict[str, Any]) -> Layer:
            return Layer(file=value["file"], content=value["text"].encode(), tenant=value["tenant"])

        found = json.loads(text)
        return cls(
            model=part(found["model"]),
            guardrails=tuple(part(value) for value in found["guardrails"]),
            layers=tuple(part(value) for value in found["layers"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPolicy:
    """A policy, and the text that it was built from: building takes its time, so it is done once."""

    text: PolicyText
    policy: Policy

    @property
    def version(self) -> Version:
        """As it is stored."""
        return Version(id=self.policy.version, text=self.text.as_json(), digests=self.text.digests)


def load_policy(settings: Config) -> Policy:
    """The policy that decides under this configuration.

    Raises PolicyError with every problem, RemitError when it cannot be read.
    """
    return built(text_in_force(settings), settings).policy


def built(text: PolicyText, settings: Config) -> BuiltPolicy:
    """The policy that `text` is here: rules that read what this configuration does not set are refused.

    Raises PolicyError with every problem, RemitError beside a `casbin` that took pycasbin's files.
    """
    _refuse_old_casbin()
    return text.build(context_schema=context_schema(settings))


def text_in_force(settings: Config) -> PolicyText:
    """The text of the policy that decides: the files, or the version that was activated."""
    return files_text(settings) if settings.policy.source == "files" else active_text(settings)


def files_text(settings: Config) -> PolicyText:
    """What stands in the configured files, each read once. Raises RemitError when one cannot be read."""
    source = settings.policy
    if not (source.files or source.elsewhere):
        raise RemitError(
            "policy.files names no file: write the files that make the policy into the configuration"
        )
    text = text_of(source.files, source.model, tenants=source.tenants)
    return replace(text, layers=(*adapted(settings), *text.layers))


def adapted(settings: Config) -> tuple[Layer, ...]:
    """What the configured pycasbin adapters and Casbin table give. Raises PolicyError, RemitError."""
    found = [_as_file(name, _rows_by(name)) for name in settings.policy.adapters]
    if table := settings.policy.table:
        found.append(_as_file(table.name, _rows_in(table)))
    return tuple(found)


def text_of(
    files: Iterable[Path], model: Path | None = None, *, tenants: Mapping[str, Iterable[Path]] | None = None
) -> PolicyText:
    """These files as a policy, under the built-in guardrails; a pattern stands for all that match it.

    Raises RemitError when one cannot be read, or a pattern matches nothing.
    """
    layers = [_read(path) for path in _present(files)]
    layers += [_read(path, tenant) for tenant, paths in (tenants or {}).items() for path in _present(paths)]
    return PolicyText(model=_read(model) if model else _MODEL, guardrails=(GUARDRAILS,), layers=tuple(layers))


def active_text(settings: Config) -> PolicyText:
    """The version that was activated last, under the guardrails of this Remit."""
    if exists(settings.store.location):
        with open_records(settings.store.location) as found:
            active = found.active_policy()
            if active is not None:
                return PolicyText.from_json(found.policy_version(active.version).text).of_today()
    raise RemitError("no policy is active: `remit policy push` stores one, `remit policy activate` uses it")


def load_version(settings: Config, version: str) -> BuiltPolicy:
    """A version that decided or was stored, exactly as it was then; the beginning of its id is enough.

    Raises UnknownRecord when there is none, RemitError when its text is no longer what it was.
    """
    with open_records(settings.store.location) as found:
        stored = found.policy_version(version)
    made = PolicyText.from_json(stored.text).build()
    if made.policy.version != stored.id:
        raise RemitError(
            f"the stored text of policy version {stored.id[:12]} was changed: see `remit audit verify`"
        )
    return made


def _rows_by(name: str) -> Sequence[Sequence[str]]:
    """The rows of a pycasbin adapter. Raises RemitError when they cannot be had."""
    module, _, function = name.partition(":")
    try:
        return adapter_rows(getattr(import_module(module), function)())
    except Exception as error:  # whatever somebody else's adapter raises, its policy is not had
        raise RemitError(f"the policy adapter {name} failed: {type(error).__name__}: {error}") from error


def _rows_in(table: PolicyTable) -> Sequence[Sequence[str]]:
    """The rows of a Casbin table. Raises RemitError when they cannot be had, ConfigError without a URL."""
    from sqlalchemy import NullPool, create_engine  # slow to load, and files need none of it
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    url = resolve(table.url, Path("/"))
    failed = f"the policy table {table.name} cannot be read"
    try:
        engine = create_engine(url, poolclass=NullPool)
        if engine.dialect.is_async:
            raise RemitError(
                f"{failed}: write a URL whose driver is synchronous, as sqlite:// or +psycopg is"
            )
        with engine.connect() as connection:
            return table_rows(connection, table.name)
    # What else these say may repeat the URL, and a password with it.
    except DBAPIError as error:
        raise RemitError(f"{failed}: {error.orig}") from None
    except SQLAlchemyError:
        raise RemitError(f"{failed}: {table.url} leads to no URL that SQLAlchemy can use") from None
    except ModuleNotFoundError as error:
        raise RemitError(f"{failed}: its driver is missing; pip install {error.name}") from None


def _as_file(name: str, rows: Iterable[Sequence[str]]) -> Layer:
    """Rows as a file would have them, in their order: row n is line n of what messages and records name.

    Raises PolicyError for rows that no file could have.
    """
    lines, problems = read_values(rows, name)
    if problems:
        raise PolicyError(problems)
    return Layer(file=name, content="\n".join(line.row.text for line in lines).encode())


def _refuse_old_casbin() -> None:
    """pycasbin came from `casbin`, and both install the same files: whichever came last is what runs."""
    with suppress(metadata.PackageNotFoundError):
        found = metadata.version("casbin")
        raise RemitError(
            f"casbin {found} is installed beside pycasbin and has overwritten its files: "
            "pip uninstall casbin, then pip install --force-reinstall pycasbin"
        )


def _present(paths: Iterable[Path]) -> list[Path]:
    paths = list(paths)
    for path in paths:
        if not policy_files([path]):
            raise RemitError(f"no policy file matches {path}: write one, or take the pattern out")
    return policy_files(paths)


def _read(path: Path, tenant: str | None = None) -> Layer:
    try:
        return Layer(file=str(path), content=path.read_bytes(), tenant=tenant)
    except OSError as error:
        raise RemitError(f"the policy file {path} cannot be read: {error.strerror}") from None
