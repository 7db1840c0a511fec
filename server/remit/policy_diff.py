"""What two policies say differently: their rows, and who may therefore do more or less.

Conditions are not solved. Where only they differ, it is told whether rows were merely taken away from what
allows or added to what denies (narrower), the other way round (wider), or neither (different).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from remit.config import Config
from remit_rbac import Policy
from remit_rbac.decisions import LADDER, Rung

Change = Literal["wider", "narrower", "different"]
#: What one subject may do beside calling: asked of each user alone.
_ALONE = ("approve", "undo")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChange:
    """A row that only one of the two has; both texts when it is about the same who, where, what and act."""

    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachChange:
    """How far somebody could at best go with a tool, before and after."""

    who: str
    tenant: str
    tool: str
    #: For example `execute`, or `approve` for who may approve. Equal when only conditions differ.
    before: str
    after: str
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    before: str
    after: str
    rows: tuple[RowChange, ...]
    reach: tuple[ReachChange, ...]

    @property
    def widens(self) -> bool:
        """Something may be allowed that was not."""
        return any(each.change != "narrower" for each in self.reach)


def diff(old: Policy, new: Policy, config: Config) -> Diff:
    """Compare over every tenant, subject and tool that one of the policies or the configuration names."""
    tenants = sorted({*old.tenants, *new.tenants})
    tools = _tools(old, new, config)
    reach = [change for tenant in tenants for change in _in_tenant(old, new, tenant, tools)]
    return Diff(before=old.version, after=new.version, rows=tuple(_rows(old, new)), reach=tuple(reach))


def _rows(old: Policy, new: Policy) -> Iterator[RowChange]:
    before, after = _texts(old), _texts(new)
    gone = [row for row in before if row not in after]
    come = [row for row in after if row not in before]
    for row in gone:
        same = next((other for other in come if row[0] in ("p", "p2") and other[:5] == row[:5]), None)
        if same:
            come.remove(same)
        yield RowChange(before=", ".join(row), after=", ".join(same) if same else None)
    yield from (RowChange(before=None, after=", ".join(row)) for row in come)


def _texts(policy: Policy) -> dict[tuple[str, ...], None]:
    rows = [(ptype, *rule.values) for ptype, rules in policy.rules.items() for rule in rules]
    rows += [(name, *link) for name, graph in policy.graphs.items() for link in graph.links]
    return dict.fromkeys(rows)


def _tools(old: Policy, new: Policy, config: Config) -> Mapping[str, str]:
    """Every tool that has a name, and one for each pattern: what to ask about, by what it is called here."""
    named = {name for name in config.tools if not name.endswith("*")}
    patterns: set[str] = set()
    for policy in (old, new):
        for rules in policy.rules.values():
            for rule in rules:
                tool = rule.values[2]
                (patterns if tool.endswith("*") else named).add(tool)
        named.update(link[0] for link in policy.graphs["g2"].links)
    exact = {name: name for name in sorted(named) if not name.startswith("grp:") and "*" not in name}
    # No tool can be called so, so only the pattern itself fits.
    return {**exact, **{f"{name} (any other)": name.removesuffix("*") + "~" for name in sorted(patterns)}}


def _in_tenant(old: Policy, new: Policy, tenant: str, tools: Mapping[str, str]) -> Iterator[ReachChange]:
    both = (old, new)
    agents = sorted({agent for policy in both for agent in policy.subjects(tenant).agents})
    users = sorted({user for policy in both for user in policy.subjects(tenant).users})
    pairs = [(agent, user) for agent in agents for user in users]
    pairs = [pair for pair in pairs if any(policy.delegated(tenant, *pair) for policy in both)]
    for shown, tool in tools.items():
        for agent, user in pairs:
            sides = [_called(policy, tenant, agent, user, tool) for policy in both]
            yield from _changed(f"{agent} for {user}", tenant, shown, *sides)
        for user in users:
            for act in _ALONE:
                rules = [_rules(policy, tenant, user, tool, act) for policy in both]
                sides = [
                    _Reach(act if _may(found) else f"no {act}", int(_may(found)), (found,)) for found in rules
                ]
                yield from _changed(user, tenant, shown, *sides)


@dataclass(frozen=True, slots=True)
class _Rules:
    """The conditions of the rows about one subject, tool and action; none where no arguments are allowed."""

    allows: frozenset[str]
    denies: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Reach:
    told: str
    height: int
    rules: tuple[_Rules, ...]


_NOTHING = _Rules(frozenset(), frozenset())


def _called(policy: Policy, tenant: str, agent: str, user: str, tool: str) -> _Reach:
    if not policy.delegated(tenant, agent, user):
        return _Reach("deny", 0, (_NOTHING,) * 2 * len(LADDER))
    sides = [[_rules(policy, tenant, name, tool, act) for _, act in LADDER] for name in (agent, user)]
    reached = [
        next((rung for (rung, _), found in zip(LADDER, side, strict=True) if _may(found)), Rung.DENY)
        for side in sides
    ]
    rung = min(reached)
    return _Reach(rung.name.lower(), rung, tuple(found for side in sides for found in side))


def _rules(policy: Policy, tenant: str, subject: str, tool: str, act: str) -> _Rules:
    found = policy.rows_for({"sub": subject, "dom": tenant, "tool": tool, "act": act})
    allows = frozenset(rule.values[4] for rule in found if rule.values[5] == "allow")
    denies = frozenset(rule.values[4] for rule in found if rule.values[5] == "deny")
    never = not allows or any(rule.condition is None and rule.values[5] == "deny" for rule in found)
    return _NOTHING if never else _Rules(allows, denies)


def _may(rules: _Rules) -> bool:
    return bool(rules.allows)


def _within(small: _Rules, large: _Rules) -> bool:
    """Whether the one surely allows no more than the other."""
    return small.allows <= large.allows and (small.denies >= large.denies or not small.allows)


def _changed(who: str, tenant: str, tool: str, before: _Reach, after: _Reach) -> Iterator[ReachChange]:
    if before.rules == after.rules or before.height == after.height == 0:
        return
    pairs = list(zip(before.rules, after.rules, strict=True))
    change: Change = "different"
    if after.height == 0 or all(_within(new, old) for old, new in pairs):
        change = "narrower"
    elif before.height == 0 or all(_within(old, new) for old, new in pairs):
        change = "wider"
    yield ReachChange(who=who, tenant=tenant, tool=tool, before=before.told, after=after.told, change=change)
