"""`remit policy explain`: why one recorded call was decided as it was, for people who do not program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, cast

import click

from remit.cli.options import CALL, config_option, json_option, print_json

if TYPE_CHECKING:
    from remit.config import Config
    from remit.explaining import Due, Explanation, Rule, Side
    from remit_rbac import Policy, Row
    from remit_rbac.words import Part

_HEADLINES = {
    "execute": "Allowed: nobody had to be asked.",
    "approve": "A person had to agree first.",
    "advise": "Only advice: the agent was told what the call would do, and nothing was done.",
    "deny": "Refused.",
}
_REFUSED = {
    "denied_by_rule": "Refused: a rule forbids it.",
    "no_rule": "Refused: no rule allows it as it was asked for.",
    "no_delegation": "Refused: the agent does not act for this person.",
    "no_approver": "Refused: people must agree, and too few of them may.",
    "over_budget": "Refused: it goes beyond a budget.",
    "budget_exhausted": "Refused: it goes beyond a budget.",
}
_MAY = {
    "execute": "do it without asking",
    "recommend": "do it once a person has agreed",
    "advise": "be told what it would do",
}
_FAR = {
    "execute": "do it without asking",
    "approve": "do it once a person has agreed",
    "advise": "only be told what it would do",
    "deny": "not do it at all",
}
_WOULD = {
    "execute": "It would have been done without asking",
    "recommend": "It would have been put to a person",
    "advise": "Advice would have been given",
}
_TODAY = {
    "execute": "allow it",
    "approve": "ask a person first",
    "advise": "give advice only",
    "deny": "refuse it",
}
_STATES = {
    "denied": "It was not made.",
    "awaiting_approval": "It waits for an answer.",
    "rejected": "It was not made: somebody said no.",
    "expired": "It was not made: nobody answered in time.",
    "withdrawn": "It was not made: the agent withdrew it.",
    "dispatched": "It is under way.",
    "succeeded": "It was made, and succeeded.",
    "failed": "It was made, and failed.",
    "in_doubt": "It was sent, and nobody knows whether it took effect.",
}


@click.command()
@config_option
@json_option
@click.argument("call_id", type=CALL, metavar="CALL")
def explain(config_path: Path, as_json: bool, call_id: str) -> None:
    """Say why a recorded call was decided as it was, in words for people who do not program.

    CALL is a call's id, or enough of its beginning. Tells who asked for what, what each rule said about it,
    whose rights were the narrower, what would have had to be otherwise, and what today's policy would say.
    """
    from remit.config_file import load
    from remit.escaping import escaped
    from remit.explaining import explain
    from remit.policies import load_policy
    from remit.records import open_records

    loaded = load(config_path)
    policy = load_policy(loaded.config)
    with open_records(loaded.config.store.location, loaded.master_key) as found:
        story = found.story(call_id)
        kept = found.asked(story.call.id)
    then = _policy_then(loaded.config, policy, story.call.policy_version)
    told = explain(story, kept, loaded.config, policy, then=then)
    if as_json:
        print_json(_as_json(told))
    else:
        for line in _lines(told):
            click.echo(escaped(line))


def _policy_then(config: Config, policy: Policy, version: str) -> Policy | None:
    """The policy that decided; None when its text is not kept, or is not what it was."""
    from remit.errors import RemitError
    from remit.policies import load_version
    from remit_rbac import PolicyError

    if version in ("", policy.version):
        return policy if version else None
    try:
        return load_version(config, version).policy
    except (RemitError, PolicyError):
        return None


def _lines(told: Explanation) -> Iterator[str]:
    call = told.story.call
    yield (_REFUSED if call.verdict == "deny" else {}).get(call.code, _HEADLINES[call.verdict])
    yield ""
    yield from _asked(told)
    yield ""
    yield from _why(told)
    yield from _besides(told)
    yield from _nearly(told)
    yield from _then(told)
    rows = _rows(told)
    if rows:
        yield ""
        yield "The rules, as they are written:"
        yield from (f"  {_place(row)}  {row.text}" for row in rows)


def _asked(told: Explanation) -> Iterator[str]:
    from remit.cli.output import when
    from remit_rbac.words import value

    call, arguments = told.story.call, told.story.arguments
    yield f"{call.agent} asked for it on {when(call.created_us)}, on behalf of {call.user} of {call.tenant}."
    if not arguments:
        yield f"It wanted to use {call.tool}."
        return
    yield f"It wanted to use {call.tool} with"
    width = max(len(name) for name in arguments)
    yield from (f"  {name.ljust(width)}  {value(given)}" for name, given in arguments.items())


def _why(told: Explanation) -> Iterator[str]:
    call, decision = told.story.call, told.decision
    yield "Why"
    yield from (f"  Note: {gap}" for gap in told.gaps)
    if decision is None:
        yield f"  {call.reason} ({call.code})"
        yield from (f"  - {row}" for row in call.policy_rows)
        return
    if told.same_policy and (call.verdict, call.code) != (told.policy_said, decision.code):
        yield f"  The rules alone would have said: {_FAR[told.policy_said]}."
        yield f"  Something else decided: {call.reason} ({call.code})"
    if not decision.delegated:
        yield f"  No rule says that {call.agent} may act for {call.user} in {call.tenant}."
        return
    agent, user = told.sides
    if agent.attempts == user.attempts:
        yield f"  The same rules hold for {agent.subject} and for {user.subject}, for whom it acts:"
        yield from _side(agent, named="Each")
        return
    yield "  An agent may never do more than the person for whom it acts: the narrower of the two counts."
    yield from _side(agent, named=agent.subject)
    yield from _side(user, named=user.subject)
    yield f"  {_limit(told, agent, user)}"


def _limit(told: Explanation, agent: Side, user: Side) -> str:
    limited_by = told.decision.limited_by if told.decision else "both"
    if limited_by == "both" and agent.verdict == "deny":
        return "So neither may do it at all."
    if limited_by == "both":
        return f"So both may {_FAR[agent.verdict]}."
    if limited_by == "none":
        return "So both may do it without asking."
    narrow, wide = (agent, user) if limited_by == "agent" else (user, agent)
    return (
        f"So the call is limited by {narrow.subject}, who may {_FAR[narrow.verdict]}; "
        f"{wide.subject} alone may {_FAR[wide.verdict]}."
    )


def _side(side: Side, *, named: str) -> Iterator[str]:
    # What the same rules deny is told once.
    for (allowed, rules), group in groupby(side.attempts, key=lambda each: (each.allowed, each.rules)):
        acts = [attempt.act for attempt in group]
        do = "do it at all" if len(acts) == len(_MAY) else ", nor ".join(_MAY[act] for act in acts)
        never = "Neither may" if named == "Each" else f"{named} may not"
        yield f"  {f'{named} may' if allowed else never} {do}:"
        if not rules:
            yield "    there is no rule that would allow it"
        for rule in rules:
            yield f"    {_place(rule.row)} {_says(rule)}"
            yield from _note(rule.row)
            yield from (f"      {line}" for line in _parts(rule.parts))


def _says(rule: Rule) -> str:
    whom = f" {_whom(rule.through)}" if rule.through else ""
    if not rule.allows:
        return f"forbids it{f' to{whom}' if whom else ''}{', since' if rule.parts else ', always'}"
    to = f" to{whom}" if whom else ""
    if rule.holds:
        return f"allows it{to}{', since' if rule.parts else ', always'}"
    return f"would allow it{to}, if all of this were so"


def _whom(through: str) -> str:
    return {"*": "everybody", "agent:*": "every agent", "user:*": "every user"}.get(through, through)


def _note(row: Row) -> Iterator[str]:
    """What the author of the policy wrote above the row, as it is likely the best reason there is."""
    if row.note:
        yield from wrap(
            row.note, 100, initial_indent="      note   ", subsequent_indent=" " * 13, max_lines=4
        )


def _parts(parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        if part.holds is None:
            yield f"cannot be told: {part.text}"
        else:
            yield f"{'true ' if part.holds else 'FALSE'}  {part.text}"


def _besides(told: Explanation) -> Iterator[str]:
    from remit_rbac.words import name, value

    if told.duties:
        yield ""
        yield "What goes with it"
        for due in told.duties:
            yield f"  {_duty(due)} ({_place(due.duty.row)})"
            yield from (line[2:] for line in _note(due.duty.row))
            yield from (f"    {line}" for line in _parts(due.parts))
    if told.story.call.verdict == "approve" and told.decision:
        yield ""
        who = ", ".join(told.approvers) or "nobody whom the policy names"
        yield f"Who may agree: {who}. Never who asked, nor for whom."
    if told.facts:
        yield ""
        yield "What was known beside what the agent said"
        for fact, found in told.facts.items():
            if isinstance(found, Mapping):
                fields = cast("Mapping[str, object]", found)
                yield from (f"  {name([fact, key])}: {value(each)}" for key, each in fields.items())
            else:
                yield f"  {name([fact])}: {value(found)}"


def _duty(due: Due) -> str:
    name, value = due.duty.name, due.duty.value
    if name == "approvals":
        return "one person must agree" if value == "1" else f"{value} different people must agree"
    if name == "redact":
        struck = ", ".join(path.removeprefix("args.") for path in value.split("|"))
        return f"struck out of the record: {struck}"
    if name == "confirm":
        return "the user who talks to the agent must confirm exactly this call"
    return str(due.duty)


def _nearly(told: Explanation) -> Iterator[str]:
    # What both sides lack is told once.
    merged = {(near.row, near.act, near.parts): near for near in told.nearly}
    if merged:
        yield ""
    for act, group in groupby(merged.values(), key=lambda near: near.act):
        yield f"{_WOULD[act]} if this were so:"
        for near in group:
            yield f"  {' and '.join(part.text for part in near.parts)} ({_place(near.row)})"


def _then(told: Explanation) -> Iterator[str]:
    from remit.cli.output import when

    call, approval = told.story.call, told.story.approval
    yield ""
    yield "What became of it"
    for vote in approval.votes if approval else ():
        said = "agreed" if vote.vote == "approve" else "refused"
        yield f"  {vote.user} {said} on {when(vote.at_us)}{f': {vote.comment}' if vote.comment else '.'}"
    yield f"  {_STATES[call.state]}"
    yield ""
    if call.policy_version:
        yield f"Decided by policy version {call.policy_version[:12]}."
    if told.today_version == call.policy_version:
        yield "That is also the policy of today."
    elif told.today:
        verdict, code = told.today
        if verdict == call.verdict:
            yield f"Today's policy, version {told.today_version[:12]}, would decide the same."
        else:
            would = _TODAY[verdict]
            yield f"Today's policy, version {told.today_version[:12]}, would {would} ({code})."


def _rows(told: Explanation) -> list[Row]:
    rules = [rule.row for side in told.sides for attempt in side.attempts for rule in attempt.rules]
    rows = [*rules, *(due.duty.row for due in told.duties)]
    return sorted(set(rows), key=lambda row: (row.file, row.line))


def _place(row: Row) -> str:
    return f"{Path(row.file).name}:{row.line}"


def _as_json(told: Explanation) -> dict[str, Any]:
    call = told.story.call
    return {
        "call": call.id,
        "verdict": call.verdict,
        "code": call.code,
        "reason": call.reason,
        "agent": call.agent,
        "user": call.user,
        "tenant": call.tenant,
        "tool": call.tool,
        "arguments": told.story.arguments,
        "limited_by": told.decision.limited_by if told.decision else None,
        "sides": told.sides,
        "duties": told.duties,
        "approvers": told.approvers,
        "nearly": told.nearly,
        "facts": told.facts,
        "policy_version": call.policy_version,
        "explained_by": told.version,
        "today": {
            "version": told.today_version,
            "verdict": told.today[0] if told.today else None,
            "code": told.today[1] if told.today else None,
        },
        "gaps": told.gaps,
    }
