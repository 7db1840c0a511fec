"""The nouns of the pipeline: frozen, plain, without behaviour of their own.

Everything a step hands to the next is here. Nothing here reads a clock, a file or a network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from remit.config import Effect
from remit.derivations import Derivation
from remit.identity import Principal
from remit.proven import Proof
from remit_adapters.base import Json, Operation, Reply
from remit_rbac import Duty, Expression, Rung

Arguments = Mapping[str, Any]


#: What a run can be known by.
Scalar = str | int | float


class Remedy(StrEnum):
    """What an agent that was refused may usefully do."""

    ASK = "ask"
    WAIT = "wait"
    CHANGE = "change"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """A read made by the gateway itself, its arguments computed from the call's."""

    tool: str
    arguments: Mapping[str, Expression]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that rules know about a call because the gateway looked it up."""

    lookup: Lookup
    #: The list for whose elements it is looked up; None: for the call itself.
    each: Expression | None
    #: What of the answer is kept; None: all of it.
    select: Derivation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A read of what a call changes, and what of its answer is kept (see `images.py`)."""

    lookup: Lookup
    select: Derivation | None
    etag: Expression | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FindRule:
    """How the effect of a call is found when its answer was lost (see `probes.py`)."""

    lookup: Lookup
    each: Expression | None
    match: Expression
    bind: Expression
    complete: Expression | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoRule:
    tool: str
    arguments: Mapping[str, Expression]
    within_s: int
    verify: Lookup | None
    expect: Expression | None
    residue: str | None
    refund: int
    #: Its arguments carry parts of what was there before.
    restores: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRule:
    """What a call costs in one unit. `actual` missing: what was held is what it cost."""

    unit: str
    estimate: Expression
    actual: Expression | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """What the tool is for a call whose arguments meet a condition."""

    when: Expression
    tool: Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One exported operation, complete: built once per catalog, shared by all calls."""

    name: str
    source: str
    operation: Operation
    #: The source's own name for it.
    own_name: str
    #: What clients are shown, MCP wire shape.
    definition: Json
    #: SHA-256 of the source's own definition.
    digest: str
    effect: Effect
    #: What a call's arguments make of it instead, in order; see `effects.py`.
    refinements: tuple[Refinement, ...] = ()
    labels: tuple[str, ...]
    #: A plain sentence about what is wrong with the arguments; `None` when nothing is.
    problem: Callable[[Arguments], str | None]
    prices: tuple[PriceRule, ...]
    undo: UndoRule | None
    before: Image | None
    after: Image | None
    find: FindRule | None
    #: How long a deferred call is held back.
    hold_back_s: int
    #: The argument that takes the version which the call is to change.
    if_match: str | None
    failed_when: Expression | None
    resource: Expression | None
    #: Whom a call is about, beside the user for whom it is made: a name, or a list of them.
    subject: Expression | None
    #: Arguments that carry JSON in a text.
    parsed: tuple[str, ...]
    #: What is looked up before the call is decided, in waves that run in parallel.
    facts: tuple[Mapping[str, Fact], ...]
    #: What rules see as `r.ctx.derived`.
    derived: Mapping[str, Derivation]
    #: What a success says about the run.
    establishes: Mapping[str, Expression]
    #: Its facts or derived values are computed from what the run has come to.
    reads_run: bool
    #: The calls of one run wait for each other.
    serial: bool
    idempotency_arg: str | None
    #: An error answer of the source means that it did nothing.
    errors_have_no_effect: bool
    repeat_window_s: int | None
    timeout_s: int
    #: The input schema, when an argument of it is mirrored into a header (`x-mcp-header`).
    header_schema: Json | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Undoing:
    """What an undo call takes back: the original call, with all that its verification may ask about."""

    tool: Tool
    arguments: Arguments
    #: What the source answered to it, and what was read before it.
    result: Any
    before: Any = None
    #: What it left, `kept` and `etag`; None when that was not seen.
    after: Json | None = None
    #: What stays behind although it works.
    residue: str | None = None
    #: By a person's order, although something changed since.
    forced: bool = False
    #: It has not been sent yet: taking it back is calling it off.
    cancels: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """What the user of the calling client answered when asked for one call (see `confirmations.py`)."""

    id: str
    accepted: bool
    binding: str
    until_us: int


CallKind = Literal["call", "undo", "before", "after", "verify", "fact", "probe"]
#: Reads that the gateway makes for its own plans.
OWN_READS = frozenset[CallKind]({"before", "after", "verify", "fact", "probe"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One frozen request to run one tool. Every check sees this object, and so does the adapter."""

    id: str
    kind: CallKind
    #: The call that this one serves; `None` for an agent's own call.
    of_call: str | None = None
    undoing: Undoing | None = None
    principal: Principal
    run: str
    tool: Tool
    arguments: Arguments
    #: The exact bytes of the arguments: what is committed to, approved and forwarded.
    arguments_json: bytes
    fingerprint: str
    received_us: int
    #: A key of the client's choice: the same key never runs twice.
    client_key: str | None = None
    #: What the agent says about the call; may make a verdict stricter, never looser.
    claim: Json = field(default_factory=dict[str, Any])
    #: The program that the agent runs in, and its version, as it says. Recorded, and never believed.
    client: str | None = None
    trace_id: str | None = None
    #: `_meta` for the source, credentials and reserved keys already removed.
    meta: Json = field(default_factory=dict[str, Any])
    input_responses: Json | None = None
    request_state: str | None = None
    confirmation: Confirmation | None = None
    #: Whom the call is about, beside its user (see `vault.py`).
    subjects: tuple[str, ...] = ()
    #: When it was let in, of a deferred call whose time has come (see `deferred.py`).
    scheduled_us: int | None = None
    #: It has waited for a budget: nothing is held for it.
    waited: bool = False

    @property
    def is_held_back(self) -> bool:
        """Whether letting it out means to wait first."""
        return self.tool.effect is Effect.DEFERRED and self.kind == "call" and self.scheduled_us is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A call as its record has it: all that making it again would need."""

    call_id: str
    kind: CallKind
    of_call: str | None
    state: str
    principal: Principal
    run: str
    tool: str
    effect: str
    fingerprint: str
    #: The exact bytes; None when parts were struck out, or they are not kept any more.
    arguments: bytes | None
    before: Any
    received_us: int
    deadline_us: int | None
    client_key: str | None
    claim: Json
    trace_id: str | None
    tool_digest: str
    #: The user's word that was given for it.
    confirmation: str | None
    #: When it is looked at again, while it is held back; and the account that it waits for, if it does.
    due_us: int | None
    waits_for: str | None


#: By code, the reason that is always the same, so that no event has a digest of it. It stays as it is:
#: verification holds calls of earlier years against it.
USUAL_REASONS: Mapping[str, str] = {
    "allowed": "Allowed by policy.",
    "own_read": "A read that the gateway makes for its own plan.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How far one call may go, and why. `reason` is for the agent, `rows` for people."""

    rung: Rung
    code: str
    reason: str
    remedy: Remedy
    duties: tuple[Duty, ...] = ()
    rows: tuple[str, ...] = ()
    policy_version: str = ""
    #: A row could not be evaluated that may matter: with more facts the verdict might be another.
    in_doubt: bool = False

    def owes(self, duty: str) -> bool:
        return any(each.name == duty for each in self.duties)


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """An amount to hold on one account in one window; `limit` applies when the window is new."""

    account: str
    window_start_us: int
    window_end_us: int | None
    unit: str
    amount: int
    limit: int
    #: For the agent: what this account is, for example "your calls per minute".
    label: str
    #: What becomes of a call that the account cannot take.
    on_exceed: Literal["deny", "approve", "defer", "observe"] = "deny"
    #: How long a call may wait for it, where it does.
    wait_s: int = 0
    #: From this amount on, agents are told that the limit comes near; None: never.
    warn_from: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoPlan:
    """A registered way back. `arguments` are known once the result is."""

    tool: str
    resource: str | None
    expires_us: int
    arguments: Arguments | None = None
    residue: str | None = None
    #: How much of what the call cost comes back with it (percent).
    refund: int = 0
    #: What it puts back was read in time, but not bound to the call: who writes in between is overwritten.
    best_effort: bool = False
    #: That it was tried and held, as it is declared now; None: it is the operator's word.
    proof: Proof | None = None
    #: The call is held back, and is called off: nothing is called, `tool` is its own.
    calls_off: bool = False

    def bound(self, arguments: Arguments, resource: str | None) -> UndoPlan:
        """The same, now that the result is known. (As `replace` does, which takes three times as long.)"""
        return UndoPlan(
            tool=self.tool,
            resource=resource,
            expires_us=self.expires_us,
            arguments=arguments,
            residue=self.residue,
            refund=self.refund,
            best_effort=self.best_effort,
            proof=self.proof,
            calls_off=self.calls_off,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The source answered and the answer is recorded; `reply.is_error` may still say that it failed."""

    call_id: str
    reply: Reply
    cost: Mapping[str, int]
    undo: UndoPlan | None
    #: The event that records it, as the Merkle log will have it; None for a repeated answer.
    event: str | None = None
    #: For an undo: what became of the call it serves (`state`), and what stays behind (`residue`).
    undone: Mapping[str, str | None] = field(default_factory=dict[str, "str | None"])
    #: The tool's own rule, or the source, says that it failed.
    failed: bool = False
    #: The answer was recorded by an earlier, equal call: nothing was sent now.
    repeated: bool = False
    #: A read while nothing could be recorded: it is only counted.
    unrecorded: bool = False
    #: Which limits come near, a sentence each.
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Nothing happened, nothing was spent. For advice, `advice` tells what would have happened."""

    call_id: str
    verdict: Verdict
    advice: Json | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """People are asked first."""

    call_id: str
    approval_id: str
    expires_us: int
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """The client asks its user first, and sends the call again with the answer and `state`."""

    call_id: str
    #: The parameters of `elicitation/create`.
    question: Json
    state: str
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The source certainly did nothing."""

    call_id: str
    code: str
    message: str
    rpc: Json | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InDoubt:
    """Sent, and nobody knows what became of it."""

    call_id: str
    code: str
    message: str
    rpc: Json | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """Let in, and held back until `due_us`; nothing was done yet."""

    call_id: str
    due_us: int
    #: The account that cannot take it now: it waits until it can, and is looked at again at `due_us`.
    waits_for: str | None = None
    #: What is held for it, by unit.
    cost: Mapping[str, int] = field(default_factory=dict[str, int])
    warnings: tuple[str, ...] = ()


Outcome = Done | Refused | Pending | Unconfirmed | Scheduled | Failed | InDoubt
