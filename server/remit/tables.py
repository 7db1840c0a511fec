"""Every table of the audit database. People query these with SQL, so names and units are part of the product.

Every index is a page more to sync with each call: one is here only because a documented query or a step of
the pipeline reads by it.

Times are integers, microseconds since 1970-01-01 UTC (`*_us`). Amounts are integers in the unit named
beside them. JSON columns hold text. Invariants that must survive any bug above them are CHECKs here.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    text,
)

from remit.states import SENT, STATES, way_back

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _where(condition: str) -> dict[str, Any]:
    """Only these rows are in the index."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


def _one_of(column: str, *values: str) -> str:
    """SQL: whether the column has one of these values.

    Not `IN`: for more than two values SQLite builds a set of them anew for every row that it checks, which
    took a third of what recording a call costs.
    """
    return " OR ".join(f"{column} = '{value}'" for value in values)


def _check(column: str, *values: str) -> CheckConstraint:
    return CheckConstraint(_one_of(column, *values), name=column)


#: One row for each life of a process that writes here. Its `id` names that life's stream of events.
incarnations = Table(
    "incarnations",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("role", String(16), nullable=False),
    Column(
        "state",
        String(8),
        _check("state", "live", "closed", "dead"),
        nullable=False,
    ),
    Column("started_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger),
    # The newest event of the stream: what a truncated stream is found by.
    Column("last_seq", BigInteger, nullable=False, server_default="0"),
    Column("head", String(64), nullable=False),
    # Where no lock tells that the process lives: until when it is believed to, by the database's clock.
    Column("lease_until_us", BigInteger),
    Index("ix_incarnations_live", "id", **_where("state = 'live'")),
)

#: Append-only. `hash` covers the previous event's hash and the exact bytes of `body`.
events = Table(
    "events",
    metadata,
    Column("stream", String(36), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("tenant", String(128)),
    Column("call_id", String(36)),
    Column("body", Text, nullable=False),
    Column("hash", String(64), nullable=False),
    PrimaryKeyConstraint("stream", "seq"),
    Index("ix_events_call_id", "call_id"),
)

#: One row for each call, whatever became of it. Ids are UUIDv7, so their order is that of time.
calls = Table(
    "calls",
    metadata,
    Column("id", String(36), primary_key=True),
    Column(
        "kind",
        String(8),
        _check("kind", "call", "undo", "before", "after", "verify", "fact", "probe"),
        nullable=False,
    ),
    # The call that this one serves: what an undo takes back, what a before-read precedes.
    Column("of_call", String(36)),
    Column("tenant", String(128), nullable=False),
    Column("agent", String(134), nullable=False),
    Column("user", String(133), nullable=False),
    Column("run", String(128), nullable=False),
    Column("auth", String(16), nullable=False),
    Column("source", String(32), nullable=False),
    Column("tool", String(128), nullable=False),
    Column("operation", String(24), nullable=False),
    Column("tool_digest", String(64), nullable=False),
    Column("effect", String(16), nullable=False),
    # Keyed digest of tenant, agent, tool and arguments: equal calls have equal fingerprints.
    Column("fingerprint", String(32), nullable=False),
    # Salted commitment to the exact arguments (in `payloads`).
    Column("arguments_commit", String(64), nullable=False),
    Column("client_key", String(128)),
    Column("verdict", String(8), nullable=False),
    Column("code", String(48), nullable=False),
    Column("reason", Text, nullable=False),
    Column("policy_version", String(64), nullable=False),
    # The policy rows that decided, as `file:line: text`, and rows that could not be evaluated. JSON.
    Column("policy_rows", Text, nullable=False),
    Column("state", String(18), _check("state", *STATES), nullable=False),
    Column("approval_id", String(36)),
    Column("incarnation", String(36), nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("dispatched_us", BigInteger),
    # Of a call that is held back: when it is sent, or looked at again.
    Column("due_us", BigInteger),
    # Of a call that waits for a budget: the account that cannot take it.
    Column("waits_for", String(320)),
    Column("deadline_us", BigInteger),
    Column("finished_us", BigInteger),
    Column("result_commit", String(64)),
    Column("error_code", String(48)),
    Column("error", Text),
    # How a call in doubt was resolved, and by whom.
    Column("resolution", Text),
    Column("trace_id", String(32)),
    # What the agent says about the call. Recorded, never believed. JSON.
    Column("claim", Text),
    # The user's own word for exactly these arguments, where a duty asked for it. Good for one call.
    Column("confirmation", String(36)),
    CheckConstraint(
        f"({_one_of('state', *SENT)}) = (dispatched_us IS NOT NULL)",
        name="dispatched_iff_sent",
    ),
    Index("ix_calls_agent", "tenant", "agent", "created_us"),
    Index("ix_calls_user", "tenant", "user", "created_us"),
    Index("ix_calls_run", "tenant", "run", "created_us"),
    Index("ix_calls_tool", "tool", "created_us"),
    Index("ix_calls_fingerprint", "fingerprint", "created_us", **_where("effect <> 'read'")),
    Index("ix_calls_of_call", "of_call", **_where("of_call IS NOT NULL")),
    Index(
        "uq_calls_client_key",
        "tenant",
        "agent",
        "user",
        "client_key",
        unique=True,
        **_where("client_key IS NOT NULL"),
    ),
    Index("uq_calls_confirmation", "confirmation", unique=True, **_where("confirmation IS NOT NULL")),
    Index("ix_calls_open", "incarnation", **_where("state = 'dispatched'")),
    Index("ix_calls_due", "due_us", **_where("state = 'scheduled'")),
    Index("ix_calls_waits_for", "waits_for", "id", **_where("state = 'scheduled' AND waits_for IS NOT NULL")),
    Index("ix_calls_in_doubt", "fingerprint", **_where("state = 'in_doubt'")),
    Index("ix_calls_refused", "created_us", **_where("verdict <> 'execute'")),
    Index("ix_calls_state", "state", "created_us", **_where("state NOT IN ('dispatched', 'succeeded')")),
    sqlite_with_rowid=False,
)

#: What calls carried, sealed (see `vault.py`) so that it can be erased and the proof stays: arguments,
#: results, before-images, what policy saw, what approvers were shown, and the arguments of the way back:
#: `restore` where they carry parts of a before-image, else `undo`.
payloads = Table(
    "payloads",
    metadata,
    Column("call_id", String(36), nullable=False),
    Column(
        "kind",
        String(10),
        _check("kind", "arguments", "result", "before", "after", "context", "shown", "undo", "restore"),
        nullable=False,
    ),
    # The keys in `subject_keys` that it takes to open it, separated by a space.
    Column("keys", Text, nullable=False),
    # Nonce (12 bytes) and AES-256-GCM of salt (16 bytes) and text. The commitment in `calls`, or for a
    # context in its first event, is SHA-256(salt || text).
    Column("body", LargeBinary, nullable=False),
    PrimaryKeyConstraint("call_id", "kind"),
    Index(
        "ix_payloads_images",
        "call_id",
        **_where(_one_of("kind", "before", "after", "restore")),
    ),
    sqlite_with_rowid=False,
)

#: What must be kept although somebody wants it erased, or it is of age. A row is a hold that stands.
legal_holds = Table(
    "legal_holds",
    metadata,
    Column("id", String(8), primary_key=True),
    # Empty: in every tenant.
    Column("tenant", String(128), nullable=False),
    Column(
        "scope",
        String(8),
        _check("scope", "subject", "run", "call", "tool", "agent", "time"),
        nullable=False,
    ),
    # Empty for `time`: then it is what was called from `from_us` to `to_us`.
    Column("target", Text, nullable=False),
    Column("from_us", BigInteger),
    Column("to_us", BigInteger),
    Column("reason", Text, nullable=False),
    Column("set_by", String(133), nullable=False),
    Column("set_us", BigInteger, nullable=False),
)

#: The key of everybody whom payloads are about; rows stay when the key is destroyed.
subject_keys = Table(
    "subject_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    # Keyed digest of tenant and subject: whose it is can be told only by who asks for that very name.
    Column("name", String(32), nullable=False),
    Column("tenant", String(128), nullable=False),
    # Under the master key. Null: destroyed, and with it all that was sealed under it.
    Column("wrapped", LargeBinary),
    Column("created_us", BigInteger, nullable=False),
    Column("erased_us", BigInteger),
    # When what is not sealed was removed as well.
    Column("cleared_us", BigInteger),
    Index(
        "uq_subject_keys_name",
        "name",
        unique=True,
        **_where("wrapped IS NOT NULL"),
    ),
    Index(
        "ix_subject_keys_erased",
        "name",
        **_where("wrapped IS NULL"),
    ),
    Index("ix_subject_keys_uncleared", "id", **_where("wrapped IS NULL AND cleared_us IS NULL")),
    sqlite_with_rowid=False,
)

#: Which calls are about somebody else than the user for whom they were made, too.
call_subjects = Table(
    "call_subjects",
    metadata,
    Column("key_id", String(16), nullable=False),
    Column("call_id", String(36), nullable=False),
    PrimaryKeyConstraint("key_id", "call_id"),
    sqlite_with_rowid=False,
)

#: What the calls of a run have established about it, each once. A run is one agent's, for one user.
run_facts = Table(
    "run_facts",
    metadata,
    Column("tenant", String(128), nullable=False),
    Column("agent", String(134), nullable=False),
    Column("user", String(133), nullable=False),
    Column("run", String(128), nullable=False),
    Column("name", String(32), nullable=False),
    # JSON: a text, a number or a boolean. The event of the call holds SHA-256(salt || value).
    Column("value", Text, nullable=False),
    Column("salt", LargeBinary(16), nullable=False),
    # The call whose success established it, and the first that said otherwise later.
    Column("call_id", String(36), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("conflict_call", String(36)),
    PrimaryKeyConstraint("tenant", "agent", "user", "run", "name"),
    Index("ix_run_facts_call_id", "call_id"),
    sqlite_with_rowid=False,
)

#: What one subject may spend in one unit, for one window of time.
accounts = Table(
    "accounts",
    metadata,
    # scope:id:unit:window, for example `agent:acme/agent:bot:calls:minute`.
    Column("id", String(320), nullable=False),
    Column("window_start_us", BigInteger, nullable=False),
    Column("tenant", String(128), nullable=False),
    Column("unit", String(32), nullable=False),
    Column("limit_amount", BigInteger, nullable=False),
    Column("held", BigInteger, CheckConstraint("held >= 0", name="held"), nullable=False),
    Column("posted", BigInteger, CheckConstraint("posted >= 0", name="posted"), nullable=False),
    Column(
        "refunded",
        BigInteger,
        CheckConstraint("refunded BETWEEN 0 AND posted", name="refunded"),
        nullable=False,
    ),
    # What was really spent beyond the limit: the effect had happened, so the truth is recorded.
    Column("overrun", BigInteger, CheckConstraint("overrun >= 0", name="overrun"), nullable=False),
    PrimaryKeyConstraint("id", "window_start_us"),
    # The line that keeps a budget, whatever the code above it does.
    CheckConstraint("held + posted - refunded - overrun <= limit_amount", name="within_limit"),
    sqlite_with_rowid=False,
)

holds = Table(
    "holds",
    metadata,
    Column("call_id", String(36), nullable=False),
    Column("account", String(320), nullable=False),
    Column("window_start_us", BigInteger, nullable=False),
    Column("unit", String(32), nullable=False),
    Column("amount", BigInteger, CheckConstraint("amount >= 0", name="amount"), nullable=False),
    Column(
        "state",
        String(8),
        _check("state", "held", "posted", "voided"),
        nullable=False,
    ),
    Column("posted", BigInteger, nullable=False, server_default="0"),
    Column("refunded", BigInteger, nullable=False, server_default="0"),
    Column("held_us", BigInteger, nullable=False),
    # When it was released, and what the call cost was posted.
    Column("resolved_us", BigInteger),
    PrimaryKeyConstraint("call_id", "account"),
    CheckConstraint("(state = 'posted') = (posted <> 0)", name="posted_iff_spent"),
    CheckConstraint("(state = 'held') = (resolved_us IS NULL)", name="held_until_resolved"),
    CheckConstraint("refunded BETWEEN 0 AND posted", name="refunded"),
    sqlite_with_rowid=False,
)

#: What changes a balance beside the holds of calls: what went beyond its limit, and what came back.
budget_adjustments = Table(
    "budget_adjustments",
    metadata,
    Column("at_us", BigInteger, nullable=False),
    Column("call_id", String(36), nullable=False),
    Column("account", String(320), nullable=False),
    Column("window_start_us", BigInteger, nullable=False),
    Column(
        "kind",
        String(8),
        _check("kind", "overrun", "refund"),
        nullable=False,
    ),
    Column("amount", BigInteger, nullable=False),
    # Found by call; a call adjusts a balance once in each kind and moment.
    PrimaryKeyConstraint("call_id", "account", "window_start_us", "kind", "at_us"),
    sqlite_with_rowid=False,
)

#: What each call that may change something touches, where the operator has said so: a call cannot be undone
#: over a later touch, whether that has a way back itself or not.
touches = Table(
    "touches",
    metadata,
    Column("resource", String(512), nullable=False),
    Column("call_id", String(36), nullable=False),
    PrimaryKeyConstraint("resource", "call_id"),
    Index("ix_touches_call_id", "call_id"),
    sqlite_with_rowid=False,
)

#: How each call is taken back. Registered in the transaction that lets the call out.
undos = Table(
    "undos",
    metadata,
    Column("call_id", String(36), primary_key=True),
    Column(
        "state",
        String(13),
        _check("state", "registered", "ready", "running", "done", "failed", "void", "indeterminate"),
        nullable=False,
    ),
    Column("tool", String(128), nullable=False),
    # How much of the cost comes back (percent). Its arguments, once the result is known, are in `payloads`.
    Column("refund", Integer, nullable=False),
    Column("resource", String(512)),
    Column("expires_us", BigInteger, nullable=False),
    Column("undo_call", String(36)),
    Column("residue", Text),
    # What it puts back was read first, but whoever writes between that and the call is overwritten.
    Column("best_effort", Boolean, nullable=False),
    Index(
        "ix_undos_ready",
        "expires_us",
        sqlite_where=text("state = 'ready'"),
        postgresql_where=text("state = 'ready'"),
    ),
    sqlite_with_rowid=False,
)

#: Calls that others took back, or that were held back and not done, and whether the run knows.
notices = Table(
    "notices",
    metadata,
    Column("call_id", String(36), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("agent", String(134), nullable=False),
    Column("user", String(133), nullable=False),
    Column("run", String(128), nullable=False),
    Column("tool", String(128), nullable=False),
    # The part that whoever took it back has here: `operator`, or `agent`. `gateway`: it was called off, or
    # failed.
    Column("by", String(16), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("told_us", BigInteger),
    Index("ix_notices_untold", "tenant", "agent", "user", "run", **_where("told_us IS NULL")),
    sqlite_with_rowid=False,
)

#: The newest trial of each way back (`remit tools prove`).
undo_proofs = Table(
    "undo_proofs",
    metadata,
    # SHA-256 of the declaration and of the definitions of every tool that it needs.
    Column("digest", String(64), primary_key=True),
    Column("tool", String(128), nullable=False),
    # The staging source on which it was tried.
    Column("source", String(32), nullable=False),
    Column("state", String(6), _check("state", "proven", "failed"), nullable=False),
    # What the undo left otherwise than it was. A JSON list of sentences.
    Column("differs", Text, nullable=False),
    Column("by", String(133), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("call_id", String(36), nullable=False),
    sqlite_with_rowid=False,
)

#: Each time that a playbook was run. Its steps are calls and events of their own.
playbook_runs = Table(
    "playbook_runs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(32), nullable=False),
    # SHA-256 of the version.
    Column("digest", String(64), nullable=False),
    # JSON.
    Column("inputs", Text, nullable=False),
    Column("tenant", String(128), nullable=False),
    Column(
        "state",
        String(7),
        _check("state", "running", "done", "failed", "waits", "doubt"),
        nullable=False,
    ),
    # Who began it; `trigger`: nobody.
    Column("by", String(133), nullable=False),
    # What set it off, when nobody began it: a call, an account and the start of its window, or a switch.
    Column("cause", Text),
    # The life of the process that carries it out.
    Column("incarnation", String(36), nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger),
    sqlite_with_rowid=False,
)

approvals = Table(
    "approvals",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("call_id", String(36), ForeignKey("calls.id"), nullable=False, unique=True),
    Column("tenant", String(128), nullable=False),
    Column(
        "state",
        String(9),
        _check("state", "pending", "approved", "rejected", "expired", "used", "withdrawn"),
        nullable=False,
    ),
    # SHA-256 over everything that was shown and will be executed; any change needs a new approval.
    Column("binding", String(64), nullable=False),
    Column("fingerprint", String(32), nullable=False),
    Column("votes_needed", Integer, CheckConstraint("votes_needed >= 1", name="votes"), nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    Column("decided_us", BigInteger),
    Index("ix_approvals_open", "tenant", "state", **_where("state IN ('pending', 'approved')")),
    Index("ix_approvals_fingerprint", "fingerprint"),
)

votes = Table(
    "votes",
    metadata,
    Column("approval_id", String(36), ForeignKey("approvals.id"), nullable=False),
    Column("user", String(133), nullable=False),
    Column("vote", String(7), _check("vote", "approve", "reject"), nullable=False),
    Column("auth", String(16), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("comment", Text, nullable=False),
    PrimaryKeyConstraint("approval_id", "user"),
)

#: The kill switch and safe mode. A row is a switch that is on.
switches = Table(
    "switches",
    metadata,
    Column("kind", String(8), _check("kind", "kill", "safe"), nullable=False),
    Column(
        "scope",
        String(8),
        _check("scope", "all", "tenant", "agent", "user", "run", "tool", "source"),
        nullable=False,
    ),
    # Empty for `all`; otherwise the tenant, agent, user, run, tool or source.
    Column("target", String(134), nullable=False),
    # Empty: in every tenant.
    Column("tenant", String(128), nullable=False),
    Column("reason", Text, nullable=False),
    Column("set_by", String(133), nullable=False),
    Column("set_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("kind", "scope", "target", "tenant"),
)

#: The policy that is tried beside the one in force (`remit policy shadow`): at most one row.
shadows = Table(
    "shadows",
    metadata,
    Column("version", String(64), primary_key=True),
    # Everything that makes it, as JSON: its model, its guardrails, its files.
    Column("text", Text, nullable=False),
    Column("started_by", String(133), nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("stopped_us", BigInteger),
    # Calls that were decided under both policies, and calls that came too fast for that.
    Column("decided", BigInteger, nullable=False, server_default="0"),
    Column("dropped", BigInteger, nullable=False, server_default="0"),
)

#: How calls would have been decided otherwise under it: one row for each way.
shadow_differences = Table(
    "shadow_differences",
    metadata,
    # `execute`, `approve`, `advise` or `deny`, with the duties that go with it.
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    # The rules that make the difference, as a JSON list: `- row` decides now, `+ row` would.
    Column("rules", Text, nullable=False),
    Column("count", BigInteger, nullable=False),
    # The first calls of it, by id. JSON.
    Column("examples", Text, nullable=False),
    Column("last_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("before", "after", "rules"),
    sqlite_with_rowid=False,
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("agent", String(134), nullable=False),
    Column("user", String(133), nullable=False),
    # HMAC-SHA-256 of the secret under the pepper file; the secret itself is nowhere.
    Column("digest", String(64), nullable=False),
    Column("label", String(128), nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    Column("revoked_us", BigInteger),
)

#: By what a secret that lies beside the database is known again, though not found out.
secret_checks = Table(
    "secret_checks",
    metadata,
    Column("name", String(16), primary_key=True),
    # HMAC-SHA-256 of a constant under it.
    Column("digest", String(64), nullable=False),
    Column("since_us", BigInteger, nullable=False),
)

#: Which events the leaves of the log are: `first_seq` and the following of a stream, one after another.
log_runs = Table(
    "log_runs",
    metadata,
    Column("first_leaf", BigInteger, primary_key=True),
    Column("stream", String(36), nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("events", BigInteger, CheckConstraint("events > 0", name="events"), nullable=False),
    Index("uq_log_runs_stream", "stream", "first_seq", unique=True),
    sqlite_with_rowid=False,
)

#: The Merkle tree over the leaves, as C2SP tiles: up to 256 hashes of 32 bytes, one after another.
log_tiles = Table(
    "log_tiles",
    metadata,
    Column("level", Integer, nullable=False),
    Column("tile", BigInteger, nullable=False),
    Column("hashes", LargeBinary, nullable=False),
    PrimaryKeyConstraint("level", "tile"),
)

#: Every root that was signed, as a C2SP checkpoint.
log_checkpoints = Table(
    "log_checkpoints",
    metadata,
    Column("size", BigInteger, primary_key=True),
    Column("root", String(64), nullable=False),
    Column("note", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

#: Every key that checkpoints were signed with, as `NAME+ID+KEY`.
log_keys = Table(
    "log_keys",
    metadata,
    Column("verifier", String(255), primary_key=True),
    # The first checkpoint that it signed.
    Column("from_size", BigInteger, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

#: Which checkpoints were put elsewhere, and what a witness signed there.
log_anchors = Table(
    "log_anchors",
    metadata,
    Column("anchor", String(512), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("signatures", Text, nullable=False),
    PrimaryKeyConstraint("anchor", "size"),
    sqlite_with_rowid=False,
)

#: Every policy that ever decided or was pushed, so that a recorded `policy_version` can be looked up.
policy_versions = Table(
    "policy_versions",
    metadata,
    # SHA-256 of the model and the set of rows: what `calls.policy_version` names.
    Column("id", String(64), primary_key=True),
    # The complete text as JSON: model, guardrails, and every file with its name and tenant.
    Column("text", Text, nullable=False),
    # `user:<id>`; null while it is known from a server's files alone.
    Column("pushed_by", String(133)),
    Column("note", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

#: Which version was in force when. Append-only; the highest number counts.
policy_activations = Table(
    "policy_activations",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("version", String(64), ForeignKey("policy_versions.id"), nullable=False),
    Column(
        "kind",
        String(8),
        _check("kind", "files", "activate", "rollback"),
        nullable=False,
    ),
    # Null: a server found it in its files.
    Column("activated_by", String(133)),
    Column("note", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
)

#: Where a view needs the time: each database has its own words for it, and its own name for `instr`.
_NOW = "remit_now_us()"
_NOW_US = {
    "sqlite": "unixepoch() * 1000000",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)",
}

#: Views for people, by name: questions that are asked often, in SQL that every database here understands.
VIEWS = {
    # Every change of a balance. `accounts` is their sum: held = hold - release, posted = post, and so on.
    "budget_moves": """
        SELECT held_us AS at_us, call_id, account, window_start_us, 'hold' AS kind, amount FROM holds
        UNION ALL SELECT resolved_us, call_id, account, window_start_us, 'release', amount FROM holds
        WHERE state <> 'held'
        UNION ALL SELECT resolved_us, call_id, account, window_start_us, 'post', posted FROM holds
        WHERE state = 'posted'
        UNION ALL SELECT at_us, call_id, account, window_start_us, kind, amount FROM budget_adjustments""",
    # What each agent spent, in each unit, by the day (UTC) on which it called.
    "spend_by_day": """
        SELECT day_us, tenant, agent, unit, COUNT(*) AS calls,
               CAST(SUM(spent) AS BIGINT) AS spent FROM (
            SELECT c.created_us / 86400000000 * 86400000000 AS day_us, c.tenant, c.agent, h.unit,
                   MAX(h.posted - h.refunded) AS spent
            FROM calls AS c JOIN holds AS h ON h.call_id = c.id
            GROUP BY c.id, c.created_us, c.tenant, c.agent, h.unit
        ) AS costs GROUP BY day_us, tenant, agent, unit""",
    # What was refused, and why. `verdict` is what makes the index fit.
    "denials": """
        SELECT id, created_us, tenant, agent, "user", run, tool, code, reason, policy_rows
        FROM calls WHERE verdict <> 'execute' AND state = 'denied'""",
    # Requests that people have not decided, or whose approval is not used yet, and can be: whose time is up
    # is told when somebody looks.
    "approvals_open": f"""
        SELECT a.id, a.call_id, a.tenant, c.agent, c."user", c.tool, a.state, a.votes_needed,
               (SELECT COUNT(*) FROM votes AS v WHERE v.approval_id = a.id AND v.vote = 'approve') AS votes,
               a.created_us, a.expires_us
        FROM approvals AS a JOIN calls AS c ON c.id = a.call_id
        WHERE a.state IN ('pending', 'approved') AND a.expires_us > {_NOW}""",  # noqa: S608 - all of it is ours
    # What can be taken back, until `expires_us`.
    "undoable": f"""
        SELECT c.id, c.tenant, c.agent, c."user", c.run, c.tool, u.tool AS undo_tool, u.resource,
               c.dispatched_us, u.expires_us, u.residue
        FROM undos AS u JOIN calls AS c ON c.id = u.call_id
        WHERE u.state = 'ready' AND {way_back(_NOW)} = 'ready'""",  # noqa: S608 - all of it is ours
    # What each run did, call by call, with what it touched and what became of it.
    "run_timeline": f"""
        SELECT c.tenant, c.run, c.created_us, c.id, c.kind, c.of_call, c.agent, c."user", c.tool, c.effect,
               c.verdict, c.code, c.state, touched.resource, {way_back(_NOW)} AS way_back, u.undo_call
        FROM calls AS c LEFT JOIN touches AS touched ON touched.call_id = c.id
        LEFT JOIN undos AS u ON u.call_id = c.id""",  # noqa: S608 - all of it is ours
}


def view(name: str, dialect: str) -> str:
    """The query of a view, as this database says it."""
    sql = VIEWS[name].replace(_NOW, _NOW_US[dialect])
    return sql.replace("instr(", "strpos(") if dialect == "postgresql" else sql


# Lengths are for people. Text is compared byte by byte everywhere: ids are ranges of it, and proofs an order.
for _table in metadata.tables.values():
    for _column in _table.columns:
        if isinstance(_column.type, String):
            _column.type = _column.type.with_variant(Text(collation="C"), "postgresql")
