"""The shape of `remit.yaml`: one frozen model, read once at start, passed by argument.

Only shapes and their own consistency live here. Reading the file, naming lines in errors and resolving
secret references is `config_file.py`; what a setting does is told where it is used. Durations are whole
seconds inside, and `30s`, `15m`, `24h`, `7d` in the file. Amounts are integers in the unit's minor part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)

from remit.database import Location, Postgres
from remit.derivations import NotDerivable, compile_derivation
from remit_rbac import ExpressionError, compile_expression

_DURATION = re.compile(r"(\d{1,6})(s|m|h|d)")
#: Names of environment variables that hold a secret, by how they end.
_OF_A_SECRET = re.compile(r"(?i)(^|_)(apikey|key|token|secret|password|passwd|passphrase|credentials)$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration(value: object) -> object:
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        return int(match[1]) * _SECONDS[match[2]]
    raise ValueError("write a duration as a number and a unit, for example 30s, 15m, 24h or 7d")


def _lasting(value: int) -> int:
    if value == 0:
        raise ValueError("this must last 1s at least")
    return value


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            "this machine knows no such time zone; write one such as Europe/Berlin, or install tzdata"
        ) from None
    return value


def _is_reference(value: str) -> bool:
    scheme, _, rest = value.partition(":")
    return scheme in ("env", "file") and rest != ""


def _reference(value: str) -> str:
    if _is_reference(value):
        return value
    raise ValueError("secrets are references: write env:NAME or file:/path, never the secret itself")


def _environment(value: Mapping[str, str]) -> Mapping[str, str]:
    for name, told in value.items():
        if _OF_A_SECRET.search(name) and not _is_reference(told):
            raise ValueError(
                f"{name} is called like a secret, and secrets are references: write env:NAME or file:/path"
            )
    return value


def _web_address(value: str) -> str:
    if not re.match(r"https?://", value):
        raise ValueError("this must begin with https:// or http://")
    _must_name_a_host(value)
    return value


def _must_name_a_host(url: str) -> None:
    try:
        parts = urlsplit(url)
        if parts.hostname and (parts.port is None or parts.port):
            return
    except ValueError:
        pass
    raise ValueError("this URL names no host, or its port is no number from 1 to 65535")


def _resource(value: str) -> str:
    if "?" in value or "#" in value:
        raise ValueError("this is the URL of the MCP endpoint, without ? and #")
    return _web_address(value)


def _key_set(value: str) -> str:
    if not re.match(r"https://|file:/[^/]|http://(127\.0\.0\.1|localhost|\[::1\])[:/]", value):
        raise ValueError("this must begin with https:// or be file:/path (or http:// on loopback)")
    if not value.startswith("file:"):
        _must_name_a_host(value)
    return value


def _host_header(value: str) -> str:
    if not re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", value):
        raise ValueError("write a Host header exactly, such as remit.internal:8420; there are no wildcards")
    return value


def _origin(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^/*?#\s]+", value):
        raise ValueError(
            "write an Origin header exactly, such as https://app.example.com; no path, no wildcards"
        )
    return value


def _pattern(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{0,127}(\*|[A-Za-z0-9_.-])", value):
        raise ValueError("name a tool as source.tool, or end with * to mean all that begin so")
    return value


def expression(*roots: str) -> AfterValidator:
    """An expression over `roots` (see `remit_rbac.compile_expression`), refused at load when it is wrong."""

    def check(value: str | int) -> str | int:
        if isinstance(value, str):
            try:
                compile_expression(value, roots=roots)
            except ExpressionError as error:
                raise ValueError(f"column {error.column}: {error.message}") from None
        return value

    return AfterValidator(check)


def _jmespath(value: str) -> str:
    try:
        compile_derivation(value)
    except NotDerivable as error:
        raise ValueError(f"this is not JMESPath: {error}") from None
    return value


#: What rules read below `r.ctx.run`, beside what the operator's tools establish (see `runs.py`).
RUN_NAMES = ("id", "calls", "writes", "tools", "tool_calls", "conflicts")


def _run_name(value: str) -> str:
    if value in RUN_NAMES:
        raise ValueError(f"{value} is what Remit itself says about a run: choose another name")
    return value


Duration = Annotated[
    int,
    BeforeValidator(_duration),
    Field(json_schema_extra={"type": "string", "pattern": f"^{_DURATION.pattern}$"}),
]
#: Of something that cannot be without: a pause between two rounds, or a time in which to answer.
Lasting = Annotated[Duration, AfterValidator(_lasting)]
Zone = Annotated[str, AfterValidator(_zone)]
SecretRef = Annotated[str, AfterValidator(_reference)]
#: What a child process is given, by name.
Environment = Annotated[Mapping[str, str], AfterValidator(_environment)]
WebAddress = Annotated[str, AfterValidator(_web_address)]
SourceId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
SubjectId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,128}$")]
AgentName = Annotated[str, Field(pattern=r"^agent:[A-Za-z0-9_.@-]{1,128}$")]
UserName = Annotated[str, Field(pattern=r"^user:[A-Za-z0-9_.@-]{1,128}$")]
#: The most that a price or a limit can be, and that a budget counts: what every JSON reader takes exactly.
AMOUNT_MAX = 2**53 - 1
Amount = Annotated[int, Field(strict=True, ge=0, le=AMOUNT_MAX)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
RunName = Annotated[Name, AfterValidator(_run_name)]
JmesPath = Annotated[str, AfterValidator(_jmespath)]
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$")]
Unit = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _database_url(value: str) -> str:
    if _is_reference(value) or value.startswith(("postgresql://", "postgres://")):
        return value
    raise ValueError("write env:NAME, file:/path, or postgresql://user@host/database without a password")


def _unwritten_url(value: str) -> str:
    if _is_reference(value):
        return value
    raise ValueError("write env:NAME or file:/path: the URL of a database may hold a password")


class Store(Strict):
    #: The audit database, a SQLite file; its keys lie beside it. With `url`, only the keys lie there.
    path: Path = Path("remit.db")
    #: A PostgreSQL database instead, which replicas can share: `env:NAME` or `file:/path` of its URL, or the
    #: URL itself when there is no password in it.
    url: Annotated[str, AfterValidator(_database_url)] | None = None
    #: On PostgreSQL: a replica that has not been heard of for so long is taken for dead.
    lease: Lasting = 15
    #: While nothing can be recorded, nothing is let out: with `true` calls that only read are, and how many
    #: there were is recorded afterwards.
    reads_when_down: bool = False
    #: `full` survives power loss; `relaxed` may forget the outcome (never the intent) of the last calls.
    durability: Literal["full", "relaxed"] = "full"
    #: Wraps the keys of what calls carry: leads to 64 hexadecimal digits. Without it, it is a file beside the
    #: database, made at the first start.
    master_key: SecretRef | None = None

    @property
    def location(self) -> Location:
        return Postgres(self.url, self.path) if self.url else self.path


class PolicyTable(Strict):
    """A table as Casbin's SQLAlchemy adapters keep it: `id`, `ptype`, `v0` to `v5`. It is only read."""

    #: Leads to the SQLAlchemy URL of its database: `env:NAME` or `file:/path`.
    url: Annotated[str, AfterValidator(_unwritten_url)]
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")] = "casbin_rule"


class PolicySource(Strict):
    """Where the policy comes from. What is written in files is also what `remit policy push` stores."""

    #: `files`: these files, read again whenever they change. `database`: the version that a person activated.
    source: Literal["files", "database"] = "files"
    #: A Casbin model; without it the one that ships with Remit is used.
    model: Path | None = None
    #: The organisation's rules, for all tenants; `policy.*.csv` names all that match, in the order of their
    #: names. With `source: database`, needed to push versions only.
    files: Annotated[tuple[Path, ...], Field(min_length=1)] = ()
    #: Rows that other Casbin programs keep, beside the files: `module:function` gives a pycasbin adapter.
    adapters: tuple[FunctionName, ...] = ()
    #: Rows of a Casbin table, beside the files, in the order of their ids.
    table: PolicyTable | None = None
    #: What each tenant adds; such a file may speak about its own tenant only.
    tenants: Mapping[SubjectId, Annotated[tuple[Path, ...], Field(min_length=1)]] = {}
    #: Policy tests: a version that fails one of them is refused.
    tests: tuple[Path, ...] = ()
    #: `indexed` takes microseconds however many rules there are; `pycasbin` asks an unmodified Casbin, which
    #: reads every row for every question.
    engine: Literal["indexed", "pycasbin"] = "indexed"
    #: A version with a rule that no call of the tools here can answer (its argument is none of the tool's, or
    #: has another type): `refuse` it, or `warn`, since such a rule denies in any case.
    misfits: Literal["refuse", "warn"] = "refuse"
    #: Whoever pushed a version cannot be the one who activates it.
    second_person: bool = False

    @model_validator(mode="after")
    def _somewhere(self) -> PolicySource:
        if self.source == "files" and not (self.files or self.elsewhere):
            raise ValueError("files is missing; write files: [policy.csv], or source: database")
        if self.source == "files" and self.second_person:
            raise ValueError("second_person needs source: database; who may edit the files decides otherwise")
        return self

    @property
    def elsewhere(self) -> bool:
        """Whether there are rows that other programs keep."""
        return bool(self.adapters or self.table)


class StdioIdentity(Strict):
    """Who speaks over stdio; `REMIT_TENANT`, `REMIT_AGENT` and `REMIT_USER` override it."""

    tenant: SubjectId
    agent: AgentName
    user: UserName


class CliIdentity(Strict):
    """Whom the command line acts as when it approves, undoes or switches (`--as` overrides it)."""

    tenant: SubjectId
    user: UserName


class Jwt(Strict):
    """OAuth 2.1 access tokens (RFC 9068) from one pinned issuer."""

    issuer: WebAddress
    #: `https://...` or `file:/path`; plain http only on loopback.
    jwks: Annotated[str, AfterValidator(_key_set)]
    audience: Annotated[str, AfterValidator(_resource)]
    tenant_claim: str = "tenant"
    #: Used when the token has no tenant claim; without it such a token is refused.
    tenant: SubjectId | None = None
    algorithms: tuple[Literal["RS256", "PS256", "ES256", "EdDSA"], ...] = ("RS256", "ES256", "EdDSA")
    scopes: tuple[str, ...] = ()


class Identity(Strict):
    stdio: StdioIdentity | None = None
    cli: CliIdentity | None = None
    jwt: Jwt | None = None


class Tls(Strict):
    certificate: Path
    key: Path


class Http(Strict):
    bind: Annotated[str, Field(pattern=r"^(\[[0-9a-f:]+\]|[A-Za-z0-9.-]+):\d{1,5}$")] = "127.0.0.1:8420"
    #: The address that clients use, when it is not `bind` (behind a proxy).
    public_url: WebAddress | None = None
    allowed_hosts: tuple[Annotated[str, AfterValidator(_host_header)], ...] = ()
    allowed_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = ()
    tls: Tls | None = None
    #: A proxy in front of Remit terminates TLS. Needed (or `tls`) for any bind but loopback.
    behind_tls_proxy: bool = False

    @property
    def host(self) -> str:
        return self.bind.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.bind.rpartition(":")[2])

    @model_validator(mode="after")
    def _loopback_or_tls(self) -> Http:
        if self.host not in ("127.0.0.1", "localhost", "::1") and not (self.tls or self.behind_tls_proxy):
            raise ValueError(
                "bind is not loopback: set tls, or behind_tls_proxy: true when a proxy terminates TLS"
            )
        if self.port > 65535:
            raise ValueError("bind: a port is at most 65535")
        return self


Relay = Literal["elicitation", "sampling", "roots", "logging"]


class McpSource(Strict):
    """An MCP server: a child process (`command`) or a streamable HTTP endpoint (`url`)."""

    kind: Literal["mcp"]
    command: tuple[str, ...] | None = None
    #: The child's environment, exactly, beside PATH and LANG. Values may be references; what is called like a
    #: secret must be one.
    env: Environment = {}
    cwd: Path | None = None
    url: str | None = None
    #: Sent to `url` only. Values are references.
    headers: Mapping[str, SecretRef] = {}
    bearer: SecretRef | None = None
    era: Literal["auto", "modern", "legacy"] = "auto"
    #: What the exported names begin with; `""` exports the source's own names (one such source only).
    prefix: Annotated[str, Field(pattern=r"^([a-z][a-z0-9_-]{0,31})?$")] | None = None
    #: Requests and notifications of the source that may reach the calling client.
    relay: tuple[Relay, ...] = ()
    connect_timeout: Lasting = 30
    #: Start without it when it cannot be reached; its tools are absent until it can.
    optional: bool = False
    #: It is there for trying things: `remit tools prove` may change what it holds.
    staging: bool = False

    @model_validator(mode="after")
    def _one_target(self) -> McpSource:
        if (self.command is None) == (self.url is None):
            raise ValueError("give either command (a list of words) or url, not both and not neither")
        if self.command is not None and not self.command:
            raise ValueError("command is empty: give the program and its arguments as a list")
        if self.url is not None and not re.match(r"https?://", self.url):
            raise ValueError("url must begin with https:// (or http:// on a trusted network)")
        if self.url is not None:
            _must_name_a_host(self.url)
        if self.url is None and (self.headers or self.bearer):
            raise ValueError("headers and bearer go with url; a child process takes its secrets from env")
        return self


Source = McpSource


class Effect(StrEnum):
    """What a call does to the world, as the operator declares it. Undeclared means irreversible."""

    READ = "read"
    REVERSIBLE = "reversible"
    RESTORABLE = "restorable"
    COMPENSABLE = "compensable"
    DEFERRED = "deferred"
    IRREVERSIBLE = "irreversible"


#: The classes whose calls are taken back by another call.
TAKEN_BACK = frozenset({Effect.REVERSIBLE, Effect.RESTORABLE, Effect.COMPENSABLE})


class When(Strict):
    """A refinement of the effect class: calls whose arguments meet the condition have this one."""

    condition: Annotated[str, expression("args"), Field(alias="if")]
    effect: Effect


class Lookup(Strict):
    """A governed read: the tool and its arguments as expressions."""

    call: Annotated[str, AfterValidator(_pattern)]
    args: Mapping[str, Annotated[str | int, expression("args", "result", "before")]] = {}


class Image(Lookup):
    """A governed read of what a call changes, to be kept."""

    #: JMESPath over the answer: what of it is kept and compared. Without it, all.
    select: JmesPath | None = None
    #: What the source calls this version of it, for example `result.version`.
    etag: Annotated[str, expression("result")] | None = None


class Verify(Lookup):
    args: Mapping[str, Annotated[str | int, expression("args", "result", "before", "original")]] = {}
    #: Over the read's `result`; also `args`, `before`. True means that the undo took hold.
    expect: Annotated[str, expression("args", "result", "before", "original")]


class Fact(Lookup):
    """A governed read before the call is decided, offered to rules as `r.ctx.facts.<name>`."""

    args: Mapping[str, Annotated[str | int, expression("args", "parsed", "facts", "run", "each")]] = {}
    #: A list: what is read for each of its elements, which `args` see as `each`, is the fact.
    each: Annotated[str, expression("args", "parsed", "facts", "run")] | None = None
    #: JMESPath over the answer: what of it rules see and records keep. Without it, all.
    select: JmesPath | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The facts that it is computed from."""
        found = (path for path in self._paths() if path[0] == "facts")
        return frozenset(str(path[1]) if len(path) > 1 else "" for path in found)

    def _paths(self) -> Iterator[tuple[str | int, ...]]:
        for text in (*self.args.values(), self.each or "0"):
            yield from compile_expression(str(text), roots=("args", "parsed", "facts", "run", "each")).paths

    @model_validator(mode="after")
    def _each_is_of_a_list(self) -> Fact:
        if self.each is None and any(path[0] == "each" for path in self._paths()):
            raise ValueError("its args read each, and nothing says of what: add each, which gives a list")
        return self


class Find(Lookup):
    """A read that shows what became of a call whose answer was lost."""

    args: Mapping[str, Annotated[str | int, expression("args", "before", "key")]] = {}
    #: The list in the answer whose elements are looked at. Without it, the answer is looked at.
    each: Annotated[str, expression("result")] | None = None
    #: True for the `item` that the call made; `key` is the idempotency key that the call was sent with.
    match: Annotated[str, expression("args", "before", "key", "result", "item")]
    #: What stands for the call's own result.
    bind: Annotated[str, expression("args", "before", "key", "item")] = "item"
    #: True when the answer shows all there is, so that finding nothing proves that nothing happened.
    complete: Annotated[str, expression("result")] | None = None


class Undo(Lookup):
    """How a call is taken back: another tool of the catalog, its arguments from this call's own."""

    within: Duration = 86400
    verify: Verify | None = None
    #: What stays behind although the undo worked (compensable only).
    residue: str | None = None
    #: How much of the cost comes back into the budgets with the undo, in percent; never the unit `calls`.
    refund: Annotated[int, Field(strict=True, ge=0, le=100)] = 0


class Compare(Lookup):
    """A read that shows what a call changes, made before the call and after its undo, to be equal."""

    args: Mapping[str, Annotated[str | int, expression("args")]] = {}
    #: JMESPath over the answer: what of it must be equal. Without it, all.
    select: JmesPath | None = None


class Prove(Strict):
    """How `remit tools prove` tries the way back."""

    #: The arguments of the call that is made and taken back.
    args: Mapping[str, JsonValue] | None = None
    #: What must be as it was. Without it, what `before` reads.
    compare: tuple[Compare, ...] = ()


class PriceRule(Strict):
    """What a call may cost in one unit: a hold before (`estimate`), the truth after (`actual`)."""

    estimate: Annotated[str | Amount, expression("args")]
    actual: Annotated[str | Amount, expression("args", "result")] | None = None


def in_waves(facts: Mapping[str, Fact]) -> tuple[Mapping[str, Fact], ...]:
    """The facts in the order in which they can be looked up: each wave needs earlier ones only.

    Raises ValueError when some wait for each other, or for one that is not there.
    """
    waves: list[Mapping[str, Fact]] = []
    left, known = dict(facts), set[str]()
    while left:
        ready = {name: fact for name, fact in left.items() if fact.needs <= known}
        if not ready:
            raise ValueError(f"{', '.join(left)} need each other, or a fact that is not declared beside them")
        waves.append(ready)
        known |= ready.keys()
        left = {name: fact for name, fact in left.items() if name not in ready}
    return tuple(waves)


#: How far an agent is trusted: what that means is policy's to say.
Autonomy = Literal["observe", "read", "propose", "act_reversible", "act"]


class ToolRules(Strict):
    effect: Effect | None = None
    #: What else the effect is, by the call's arguments: the first condition that holds counts. A call for
    #: which one cannot be answered is irreversible.
    when: tuple[When, ...] = ()
    #: What rules may go by beside names: `money`, `personal` and so on, offered as `r.ctx.labels`.
    labels: tuple[Name, ...] = ()
    undo: Undo | None = None
    prove: Prove | None = None
    #: Read before the call is dispatched; offered to `undo` as `before`.
    before: Image | None = None
    #: Read after the call, and again before it is taken back: a difference is a conflict. A restorable tool
    #: that says nothing reads what `before` reads.
    after: Image | None = None
    #: How a call in doubt is resolved.
    find: Find | None = None
    #: How long a deferred call is held back, in which it can be cancelled.
    hold_back: Duration | None = None
    #: The argument that takes a version: the source then changes that version only. Remit fills it with the
    #: `etag` of what it read, when the agent does not.
    if_match: str | None = None
    price: Mapping[Unit, Annotated[str | Amount, expression("args")] | PriceRule] = {}
    #: Some sources report failure as ordinary text: true here means that the call failed, without effect.
    failed_when: Annotated[str, expression("args", "result", "text")] | None = None
    #: What the call touches, for example `'order:' + args.order_id`; a later touch makes an undo a conflict.
    resource: Annotated[str, expression("args", "result")] | None = None
    #: Whom a call is about beside its user, a name or a list of them, for example `'customer:' +
    #: args.customer_id`: what it carries can then be erased by that name (`remit audit erase`).
    subject: Annotated[str, expression("args")] | None = None
    #: Arguments that carry JSON in a text, offered to rules as `r.ctx.parsed.<argument>`.
    parse: Mapping[str, Literal["json"]] = {}
    #: Looked up before the call is decided, offered to rules as `r.ctx.facts.<name>`.
    facts: Mapping[Name, Fact] = {}
    #: JMESPath over `args`, `parsed`, `facts`, `run` and what is `derived` above; offered to rules as
    #: `r.ctx.derived.<name>`.
    derive: Mapping[Name, JmesPath] = {}
    #: What a success establishes for the run, offered to the rules on its later calls as `r.ctx.run.<name>`.
    establishes: Mapping[RunName, Annotated[str, expression("args", "result", "text")]] = {}
    #: Calls of one run wait for each other, as far as their tools say so.
    serial: bool = False
    #: The argument that carries an idempotency key to the source; Remit fills it when the agent does not.
    idempotency_arg: str | None = None
    #: What an error answer (`isError`) of the source means: it did nothing, or who knows.
    on_error: Literal["no_effect", "unknown"] = "unknown"
    #: An equal call within this time is answered with the recorded result instead of being sent again.
    repeat_window: Duration | None = None
    timeout: Lasting | None = None
    #: Replaces the source's own description towards agents.
    description: str | None = None

    @model_validator(mode="after")
    def _undo_fits(self) -> ToolRules:
        effects = [*filter(None, [self.effect]), *(refined.effect for refined in self.when)]
        if self.effect and self.undo and not TAKEN_BACK.intersection(effects):
            raise ValueError(f"effect {self.effect} has no undo: remove undo, or say reversible")
        if self.effect and self.hold_back is not None and Effect.DEFERRED not in effects:
            raise ValueError(f"effect {self.effect} is not held back: remove hold_back, or say deferred")
        for effect in effects:
            if effect in TAKEN_BACK and not self.undo:
                raise ValueError(f"effect {effect} needs undo: name the tool that takes the call back")
            if effect is Effect.DEFERRED and self.hold_back is None:
                raise ValueError(
                    "effect deferred needs hold_back: how long the call can be cancelled, such as 10m"
                )
            if effect is Effect.RESTORABLE and not self.before:
                raise ValueError(
                    "effect restorable needs before: the read that captures what will be replaced"
                )
        return self

    @model_validator(mode="after")
    def _facts_can_be_found(self) -> ToolRules:
        in_waves(self.facts)
        return self


BudgetScope = Literal["tenant", "user", "agent", "run", "tool"]
SwitchScope = Literal["all", "tenant", "agent", "user", "run", "tool", "source"]


class RunsAs(Strict):
    """In whose name a playbook acts: policy governs both, as it does any agent and its user."""

    tenant: SubjectId
    agent: AgentName
    user: UserName


class PlaybookStep(Strict):
    """One step: a governed call, a rollback, or the kill switch."""

    id: Name
    #: Skipped unless this is true, over `inputs` and the results of earlier `steps`.
    when: Annotated[str, expression("inputs", "steps")] | None = None
    call: Annotated[str, AfterValidator(_pattern)] | None = None
    args: Mapping[str, Annotated[str | int, expression("inputs", "steps")]] = {}
    #: Over the call's `result`, `inputs` and `steps`: when it is not true, the playbook ends there.
    expect: Annotated[str, expression("inputs", "steps", "result")] | None = None
    #: Take back all that this run, agent or tool did.
    rollback: Literal["run", "agent", "tool"] | None = None
    since: Duration | None = None
    #: Turn the kill switch on, in the tenant of `as` only.
    stop: SwitchScope | None = None
    #: Which run, agent, tool and so on, as an expression.
    of: Annotated[str, expression("inputs", "steps")] | None = None

    @model_validator(mode="after")
    def _one_thing(self) -> PlaybookStep:
        if sum(it is not None for it in (self.call, self.rollback, self.stop)) != 1:
            raise ValueError("a step is one of call, rollback and stop")
        if self.call is None and (self.args or self.expect):
            raise ValueError("args and expect belong to a call")
        if self.rollback is None and self.since is not None:
            raise ValueError("since belongs to a rollback")
        if self.call is not None and self.of is not None:
            raise ValueError("of belongs to a rollback or a stop: what a call is about stands in its args")
        if (self.rollback or self.stop not in (None, "all")) and self.of is None:
            raise ValueError("say of what, with of: an expression such as inputs.agent")
        return self


class Failures(Strict):
    """Too many of the newest calls of a tool failed, or are in doubt."""

    tool: Annotated[str, AfterValidator(_pattern)]
    #: Percent of them.
    share: Annotated[int, Field(strict=True, ge=1, le=100)]
    #: How many calls are looked at. While there are fewer, nothing is concluded.
    of_last: Annotated[int, Field(strict=True, ge=1, le=1000)] = 20
    within: Duration = 600


class Spent(Strict):
    """An account has come to a share of its limit, in this window."""

    scope: BudgetScope
    unit: Unit
    #: Percent, with what is held for calls under way.
    at: Annotated[int, Field(strict=True, ge=1, le=100)] = 100


class Switched(Strict):
    """A switch was turned on, otherwise than by this playbook."""

    #: Without it, either.
    kind: Literal["kill", "safe"] | None = None
    #: Without it, any.
    scope: SwitchScope | None = None


class Trigger(Strict):
    """What starts a playbook without a person: one of `failures`, `label`, `budget` and `switch`."""

    failures: Failures | None = None
    #: A call of a tool with this label was let out.
    label: Name | None = None
    budget: Spent | None = None
    switch: Switched | None = None
    #: The time that must pass after a run that nobody began. Older labels and switches are not looked at.
    every: Lasting = 3600
    #: The playbook's inputs, over what set it off: `trigger.agent` and so on.
    inputs: Mapping[Name, Annotated[str, expression("trigger")]] = {}

    @property
    def kind(self) -> Literal["failures", "label", "budget", "switch"]:
        if self.failures:
            return "failures"
        return "label" if self.label else "budget" if self.budget else "switch"

    @property
    def gives(self) -> tuple[str, ...]:
        """What `inputs` may read below `trigger`."""
        if self.budget:
            return ("account", "unit", self.budget.scope)
        if self.switch:
            more = self.switch.scope
            return ("kind", "scope", "target", *((more,) if more and more != "all" else ()))
        return ("call", "tool", "agent", "run")

    @model_validator(mode="after")
    def _one_thing(self) -> Trigger:
        if sum(it is not None for it in (self.failures, self.label, self.budget, self.switch)) != 1:
            raise ValueError("a trigger is one of failures, label, budget and switch")
        if self.every < 60:
            raise ValueError("every is at least 1m: a playbook must not start again and again")
        for text in self.inputs.values():
            for _, *path in compile_expression(text, roots=("trigger",)).paths:
                if not path or path[0] not in self.gives:
                    known = ", ".join(f"trigger.{name}" for name in self.gives)
                    raise ValueError(f"{text} is not known here; this trigger gives {known}")
        return self


class Playbook(Strict):
    """A recovery procedure. Run by `remit playbook run`, or by a trigger, and recorded step by step."""

    about: str = ""
    runs_as: Annotated[RunsAs, Field(alias="as")]
    #: What must be given, by name; `steps` see them as `inputs`.
    inputs: tuple[Name, ...] = ()
    steps: Annotated[tuple[PlaybookStep, ...], Field(min_length=1, max_length=64)]
    #: What starts it without a person. Nothing, until declared.
    on: Annotated[tuple[Trigger, ...], Field(max_length=16)] = ()

    @model_validator(mode="after")
    def _triggers_give_the_inputs(self) -> Playbook:
        for trigger in self.on:
            if wrong := sorted(trigger.inputs.keys() ^ set(self.inputs)):
                raise ValueError(
                    f"each trigger in on gives the playbook's inputs and no others, with inputs:"
                    f" {{{wrong[0]}: trigger...}}; not given, or unknown: {', '.join(wrong)}"
                )
        return self

    @model_validator(mode="after")
    def _named_apart(self) -> Playbook:
        names = [step.id for step in self.steps]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two steps are called {twice[0]}")
        return self


class Budget(Strict):
    """A limit in one unit over one window, for each account of a scope (`id: "*"`) or for one of them."""

    scope: BudgetScope
    id: str = "*"
    unit: Unit
    window: Literal["total", "minute", "hour", "day", "month"]
    limit: Amount
    #: Time zone of hour, day and month windows.
    zone: Zone = "UTC"
    #: What becomes of a call that goes beyond the limit: it is refused, it needs a person, it waits until the
    #: limit can take it, or it runs and the excess is recorded.
    on_exceed: Literal["deny", "approve", "defer", "observe"] = "deny"
    #: With `defer`: a call that has waited this long is called off.
    wait: Duration = 31 * 86400
    #: From this share of the limit on (percent), each receipt tells the agent that the limit comes near.
    warn_at: Annotated[int, Field(strict=True, ge=1, le=100)] = 80


class Approvals(Strict):
    #: How long a request may wait for people; then it is refused.
    pending: Lasting = 900
    #: How long an approval may lie unused.
    use_within: Lasting = 300


class Limits(Strict):
    call_timeout: Lasting = 60
    result_bytes: Annotated[int, Field(ge=1024, le=64 * 2**20)] = 2**20
    per_agent: Annotated[int, Field(ge=1)] = 16
    per_source: Annotated[int, Field(ge=1)] = 64
    queue: Annotated[int, Field(ge=1)] = 4096
    #: Facts that are looked up for one call, at most.
    facts: Annotated[int, Field(ge=0, le=64)] = 8


class Timestamp(Strict):
    """An authority that stamps checkpoints with the time (RFC 3161)."""

    #: Plain http will do: its answer is signed, and it is told a digest only.
    url: WebAddress
    #: Its root certificates, in PEM: an answer that is not signed under one of them is not kept.
    roots: Path
    #: Each checkpoint and the answer to it are put here, as `SIZE.checkpoint` and `SIZE.tsr`.
    folder: Path
    #: How often the newest checkpoint is stamped, at most.
    every: Lasting = 3600


class Anchor(Strict):
    """Where checkpoints of the log are put, out of the reach of whoever can write the database."""

    #: Each checkpoint is appended to this file: on another volume, or where it can only be added to.
    file: Path | None = None
    #: A witness (c2sp.org/tlog-witness): its submission prefix. Plain http only on loopback.
    witness: str | None = None
    #: The key of the witness, as `NAME+ID+KEY`: what is not signed with it is no signature.
    key: str | None = None
    #: Needs the `timestamps` extra.
    timestamp: Timestamp | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Anchor:
        if sum(it is not None for it in (self.file, self.witness, self.timestamp)) != 1:
            raise ValueError("give one of file, witness and timestamp")
        if self.witness and not re.match(
            r"https://|http://(127\.0\.0\.1|localhost|\[::1\])[:/]", self.witness
        ):
            raise ValueError("witness must begin with https:// (or http:// on loopback)")
        if self.witness:
            _must_name_a_host(self.witness)
        if (self.key is None) != (self.witness is None):
            raise ValueError(
                "give the key of a witness, as NAME+ID+KEY, with the witness, and with nothing else"
            )
        if self.key is not None:
            from remit.checkpoint import read_witness  # loads what only logs need

            read_witness(self.key)
        return self


class Retention(Strict):
    """How long what calls carried is kept. Calls, events and every proof stay."""

    #: Arguments, answers and all else that is sealed, from the call on; but as long as it can be undone.
    payloads: Lasting | None = None
    #: What was there before and after a call. It goes with the call's way back in any case.
    before_images: Lasting | None = None


class Audit(Strict):
    #: How often new events are sealed into the log and its root is signed.
    seal_every: Lasting = 10
    anchors: tuple[Anchor, ...] = ()
    retention: Retention = Retention()


class Telemetry(Strict):
    #: An OTLP/HTTP endpoint; needs the `otlp` extra. Off until set.
    otlp: WebAddress | None = None


#: What rules read directly below `r.ctx`, beside the operator's own names (see `context.py`).
CONTEXT_NAMES = frozenset(
    {
        "autonomy",
        "claim",
        "confirmed",
        "derived",
        "effect",
        "facts",
        "hour",
        "in_chain",
        "labels",
        "parsed",
        "price",
        "run",
        "tenant",
    }
    | {"undo_proven", "undo_ready", "weekday"}
)

AgentTool = Literal["status", "explain", "undo", "withdraw"]


class Config(Strict):
    version: Literal[1]
    store: Store = Store()
    policy: PolicySource
    identity: Identity = Identity()
    http: Http = Http()
    sources: Annotated[Mapping[SourceId, Source], Field(min_length=1)]
    tools: Mapping[Annotated[str, AfterValidator(_pattern)], ToolRules] = {}
    budgets: tuple[Budget, ...] = ()
    #: Recovery procedures, by name.
    playbooks: Mapping[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")], Playbook] = {}
    approvals: Approvals = Approvals()
    limits: Limits = Limits()
    audit: Audit = Audit()
    telemetry: Telemetry = Telemetry()
    #: Facts that rules may see as `r.ctx.env`, `r.ctx.jurisdiction` and so on.
    context: Mapping[Name, str | int | bool] = {}
    #: How far each agent is trusted, offered to rules as `r.ctx.autonomy`; who is not named here may `act`.
    autonomy: Mapping[AgentName, Autonomy] = {}
    #: The time zone of `r.ctx.hour` and `r.ctx.weekday`.
    zone: Zone = "UTC"
    #: Remit's own tools that agents are offered, as `remit.status` and so on.
    agent_tools: tuple[AgentTool, ...] = ("status", "explain", "undo", "withdraw")

    @model_validator(mode="after")
    def _names_fit(self) -> Config:
        bare = [name for name, source in self.sources.items() if source.prefix == ""]
        if bare and len(self.sources) > 1:
            raise ValueError(f'prefix "" on {bare[0]} needs it to be the only source: give it a prefix')
        prefixes = [name if source.prefix is None else source.prefix for name, source in self.sources.items()]
        if "remit" in prefixes:
            raise ValueError("remit.* are Remit's own tools: give the source another name, or a prefix")
        for prefix in prefixes:
            if prefixes.count(prefix) > 1:
                raise ValueError(f"two sources export under {prefix!r}: give one another prefix")
        for name, rules in self.tools.items():
            if len(rules.facts) > self.limits.facts:
                raise ValueError(f"{name} has more facts than limits.facts allows: {self.limits.facts}")
        if taken := self.context.keys() & CONTEXT_NAMES:
            raise ValueError(f"context names {min(taken)}, which Remit sets itself: choose another name")
        accounts = [(budget.scope, budget.id, budget.unit, budget.window) for budget in self.budgets]
        for account in accounts:
            if accounts.count(account) > 1:
                scope, subject, unit, window = account
                raise ValueError(f"two budgets limit {unit} per {window} for {scope} {subject}: keep one")
        return self
