"""Tests of a policy that people write: a call, and what must become of it. YAML in, outcomes out.

    defaults: {tenant: acme, agent: agent:support-bot, user: user:alice}
    cases:
      - name: A supervisor is asked about more than 100.00
        tool: acme.refund
        args: {amount_minor: 40000}
        expect: {verdict: approve, approvers: [user:sue]}

Each case is answered as the gateway would answer it, and nothing is connected, recorded or let out. Beside
the outcomes it is counted which rows of the policy no case made use of. Read and run once by whoever asks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, ValidationError, model_validator

from remit import strict_yaml
from remit.asking import Asker, NoQuestion, Supposed
from remit.config import AgentName, Config, Strict, SubjectId, UserName
from remit.config_problems import ConfigError, Problem, flaws, shape
from remit.errors import RemitError
from remit_rbac import GUARDRAILS, Policy, Row
from remit_rbac.tracing import exercised, step

#: A Wednesday at noon: a test that says no time must not turn out otherwise at night.
NOON = "2026-01-07T12:00:00"
MAX_FILE_BYTES = 2**22


def _moment(value: object) -> object:
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            at = None
        if at is not None and at.tzinfo is not None:
            return int(at.timestamp() * 1_000_000)
    raise ValueError("write a time with its zone, for example 2026-01-31T09:00:00+01:00 or ...Z")


def _short_form(value: object) -> object:
    """`expect: execute` is short for `expect: {verdict: execute}`."""
    return {"verdict": value} if isinstance(value, str) else value


def _duty(value: str) -> str:
    if not value.partition("=")[0]:
        raise ValueError("write a duty as the policy does, for example approvals=2")
    return value


Verdict = Literal["execute", "approve", "advise", "deny", "allow"]
Moment = Annotated[
    int,
    BeforeValidator(_moment),
    Field(json_schema_extra={"type": "string", "format": "date-time"}),
]


class Expected(Strict):
    """What must become of the call. Only what is said is compared."""

    #: `allow` goes with `action`, the others with a call.
    verdict: Annotated[Verdict, Field(examples=["execute"])]
    #: The reason code of the decision, such as `no_rule`.
    code: str | None = None
    #: Exactly who may approve it, in any order.
    approvers: list[UserName] | None = None
    #: Exactly the duties that go with it, as the policy writes them, in any order.
    duties: list[Annotated[str, AfterValidator(_duty)]] | None = None
    #: Whose rights keep the call from going further.
    limited_by: Literal["agent", "user", "both", "none"] | None = None


class Defaults(Strict):
    """What holds for every case of the file that says nothing else."""

    tenant: SubjectId | None = None
    agent: AgentName | None = None
    user: UserName | None = None
    time: Moment | None = None
    #: Attributes of `r.ctx` that are to have these values; a case's own are added to them.
    context: Mapping[str, JsonValue] = {}


class Case(Strict):
    #: A sentence that is true when the case passes.
    name: str | None = None
    tenant: SubjectId | None = None
    agent: AgentName | None = None
    user: UserName | None = None
    #: Ask about one subject and one action instead of a call of an agent for its user: expects allow or deny.
    subject: Annotated[str, Field(pattern=r"^(agent|user):[A-Za-z0-9_.@-]{1,128}$")] | None = None
    action: Literal["execute", "recommend", "advise", "approve", "undo", "list"] | None = None
    tool: Annotated[str, Field(examples=["acme.refund"])]
    args: Mapping[str, JsonValue] = {}
    #: What lookups would find, seen by rules as `r.ctx.facts`.
    facts: Mapping[str, JsonValue] = {}
    #: What the run has established, seen by rules as `r.ctx.run`.
    run: Mapping[str, JsonValue] | None = None
    #: When the call is made; without it on a Wednesday at noon, in the zone of the configuration.
    time: Moment | None = None
    #: What the agent says about the call.
    claim: Mapping[str, JsonValue] = {}
    #: Attributes of `r.ctx` that are to have these values, such as `effect` or `price`.
    context: Mapping[str, JsonValue] = {}
    expect: Annotated[Expected, BeforeValidator(_short_form), Field(examples=["execute"])]

    @model_validator(mode="after")
    def _one_question(self) -> Case:
        if (self.subject is None) != (self.action is None):
            raise ValueError("subject and action go together: who, and what they may do to the tool")
        if self.subject and (self.agent or self.user):
            raise ValueError("ask about a subject alone, or about an agent and its user: remove one of them")
        asked = self.expect.verdict in ("allow", "deny") if self.action else self.expect.verdict != "allow"
        if not asked:
            forms = "allow or deny" if self.action else "execute, approve, advise or deny"
            raise ValueError(f"the verdict of this question is {forms}")
        told = {"verdict", "duties"} if self.action == "undo" else {"verdict"}
        if self.action and self.expect.model_fields_set - told:
            raise ValueError("with action only a verdict is expected: allow or deny; of undo also duties")
        return self


class _File(Strict):
    defaults: Defaults = Defaults()
    cases: Annotated[tuple[Case, ...], Field(examples=["[{tool: acme.refund, expect: execute}]"])]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTest:
    """A case with the defaults of its file, and where it stands."""

    name: str
    file: str
    line: int
    supposed: Supposed
    #: Of a question about one subject; None of a call.
    subject: str | None
    action: str | None
    expected: Expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    test: PolicyTest
    verdict: str
    code: str
    approvers: tuple[str, ...]
    duties: tuple[str, ...]
    #: Each a sentence; none when the case passed.
    differences: tuple[str, ...]
    #: The rows that decided, and those whose condition could not be answered.
    rows: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.differences


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused:
    row: Row
    #: For example `never granted anything`.
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How many rows made a difference to some case. Built-in guardrails and memberships are not counted."""

    rows: int
    unused: tuple[Unused, ...]

    @property
    def percent(self) -> int:
        """Rounded down, so that 100 means all."""
        return 100 if not self.rows else (self.rows - len(self.unused)) * 100 // self.rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    outcomes: tuple[Outcome, ...]
    coverage: Coverage

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if not outcome.passed)


def read_tests(path: Path, config: Config) -> tuple[PolicyTest, ...]:
    """The cases of one file. Raises ConfigError with everything that is wrong, each with line and field."""
    shown = str(path)
    text = _text(path)
    document = strict_yaml.read(text)
    problems = list(flaws(shown, document))
    file = None
    if document.is_mapping:
        try:
            file = _File.model_validate_json(json.dumps(document.value), strict=True)
        except ValidationError as error:
            problems += shape(shown, document, error, _File)
    elif not document.flaws:
        message = "the file must hold `cases:`, a list of calls and what is expected of them"
        problems.append(Problem(file=shown, line=1, column=1, message=message))
    if file and not file.cases:
        problems.append(Problem.at(shown, document.marks, ("cases",), "is empty; write at least one case"))
    tests: list[PolicyTest] = []
    for number, case in enumerate(file.cases if file else ()):
        missing = _missing(case, file.defaults) if file else ()
        problems += [
            Problem.at(
                shown, document.marks, ("cases", number), f"names no {name}; write it here or in defaults"
            )
            for name in missing
        ]
        if file and not missing:
            mark = document.marks["cases", number]
            tests.append(_test(case, file.defaults, config, file=shown, line=mark.line, number=number + 1))
    if problems:
        raise ConfigError(sorted(problems, key=lambda each: (each.line or 0, each.column or 0)))
    return tuple(tests)


def run(tests: Sequence[PolicyTest], config: Config, policy: Policy) -> Iterator[tuple[Outcome, set[Row]]]:
    """Each outcome with the rows that it made use of, one at a time. Raises ConfigError."""
    asker = Asker(config, policy)
    for test in tests:
        try:
            yield _subject_outcome(test, asker) if test.action else _call_outcome(test, asker)
        except NoQuestion as error:
            problem = Problem(file=test.file, line=test.line, column=1, field=test.name, message=str(error))
            raise ConfigError([problem]) from None


def must_pass(config: Config, policy: Policy) -> None:
    """Run the tests that the configuration names. Raises RemitError naming each that fails, ConfigError."""
    tests = [test for path in config.policy.tests for test in read_tests(path, config)]
    failed = [outcome for outcome, _ in run(tests, config, policy) if not outcome.passed]
    if failed:
        raise RemitError(
            "\n".join(
                f"{outcome.test.file}:{outcome.test.line}: policy test {outcome.test.name!r} fails: "
                + "; ".join(outcome.differences)
                for outcome in failed
            )
        )


def coverage(policy: Policy, used: set[Row]) -> Coverage:
    counted = [
        rule
        for ptype in ("p", "p2")
        for rule in policy.rules.get(ptype, ())
        if rule.row.file != GUARDRAILS.file
    ]
    unused = [Unused(row=rule.row, why=_WHY.get(rule.values[5], "was never due")) for rule in counted]
    return Coverage(rows=len(counted), unused=tuple(each for each in unused if each.row not in used))


_WHY = {"allow": "never granted anything", "deny": "never denied anything"}


def json_schema() -> dict[str, Any]:
    """A JSON Schema of the file, for editors."""
    schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema |= _File.model_json_schema()
    expect = schema["$defs"]["Case"]["properties"]["expect"]
    expect["anyOf"] = [{"enum": list(get_args(Verdict))}, {"$ref": expect.pop("$ref")}]
    return schema


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            message = f"is larger than {MAX_FILE_BYTES} bytes; divide it into several files"
            raise ConfigError([Problem(file=str(path), message=message)])
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        message = "is not UTF-8 text; save it as UTF-8"
    except IsADirectoryError:
        message = "is a folder; name the files in it"
    except OSError as error:
        message = f"cannot be read: {(error.strerror or 'it is no file').lower()}"
    raise ConfigError([Problem(file=str(path), message=message)])


def _missing(case: Case, defaults: Defaults) -> tuple[str, ...]:
    needed = ("tenant",) if case.subject else ("tenant", "agent", "user")
    return tuple(name for name in needed if not (getattr(case, name) or getattr(defaults, name)))


def _test(case: Case, defaults: Defaults, config: Config, *, file: str, line: int, number: int) -> PolicyTest:
    # A question about one subject is asked of the rules alone; the other side of the call is nobody.
    agent = "agent:nobody" if case.subject else case.agent or defaults.agent
    user = "user:nobody" if case.subject else case.user or defaults.user
    if case.subject:
        agent = case.subject if case.subject.startswith("agent:") else agent
        user = case.subject if case.subject.startswith("user:") else user
    return PolicyTest(
        name=case.name or f"case {number}: {case.tool}",
        file=file,
        line=line,
        supposed=Supposed(
            tenant=case.tenant or defaults.tenant or "",
            agent=agent or "",
            user=user or "",
            tool=case.tool,
            arguments=case.args,
            at_us=case.time or defaults.time or noon_us(config),
            claim=case.claim,
            facts=case.facts,
            run=case.run,
            context={**defaults.context, **case.context},
        ),
        subject=case.subject,
        action=case.action,
        expected=case.expect,
    )


def noon_us(config: Config) -> int:
    """`NOON` in the zone of the configuration."""
    from zoneinfo import ZoneInfo

    at = datetime.fromisoformat(NOON).replace(tzinfo=ZoneInfo(config.zone))
    return int(at.timestamp() * 1_000_000)


def _call_outcome(test: PolicyTest, asker: Asker) -> tuple[Outcome, set[Row]]:
    answered = asker.ask(test.supposed)
    decision = answered.decision
    duties = tuple(map(str, decision.duties))
    verdict = answered.rung.name.lower()
    found = {
        "verdict": verdict,
        "code": answered.code,
        "approvers": answered.approvers,
        "duties": duties,
        "limited_by": decision.limited_by,
    }
    outcome = Outcome(
        test=test,
        verdict=verdict,
        code=answered.code,
        approvers=answered.approvers,
        duties=duties,
        differences=tuple(_differences(test.expected, found)),
        rows=(*map(str, decision.rows), *(f"{error.row}: {error.message}" for error in decision.errors)),
    )
    # Where no rule was reached, none made a difference.
    return outcome, set() if answered.code == "no_price" else exercised(asker.policy, answered.question)


def _subject_outcome(test: PolicyTest, asker: Asker) -> tuple[Outcome, set[Row]]:
    question = asker.question(test.supposed)
    subject, action = test.subject or "", test.action or ""
    # Who is asked here has not asked for the call; a case may say otherwise.
    context = {"in_chain": 0, **question.ctx} if action == "approve" else question.ctx
    found = step(asker.policy, question.tenant, subject, question.tool, action, question.args, context)
    rules = found.denied_by or found.allowed_by
    errors = [f"{each.rule.row}: {each.error}" for each in found.asked if each.error]
    verdict = "allow" if found.allowed else "deny"
    owed = asker.policy.allowed(
        subject, question.tenant, question.tool, action, question.args, context
    ).duties
    duties = tuple(map(str, owed))
    outcome = Outcome(
        test=test,
        verdict=verdict,
        code="",
        approvers=(),
        duties=duties,
        differences=tuple(_differences(test.expected, {"verdict": verdict, "duties": duties})),
        rows=(*(str(rule.row) for rule in rules), *errors),
    )
    return outcome, {rule.row for rule in found.exercised} | {duty.row for duty in owed}


def _differences(expected: Expected, found: Mapping[str, str | tuple[str, ...]]) -> Iterator[str]:
    for name, value in found.items():
        wanted: str | Sequence[str] | None = getattr(expected, name)
        if wanted is not None and _shown(wanted) != _shown(value):
            yield f"{name}: expected {_shown(wanted)}, got {_shown(value)}"


def _shown(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else ", ".join(sorted(value)) or "none"
