"""What is wrong, or probably not meant, with a policy as a whole. It reads a finished policy only.

Errors here (constraints broken, arguments that do not exist) refuse the policy like those of the loader.
Warnings say where a policy works otherwise than its text suggests. What a policy says about tools can also
be held against them later, when they are known (`hold_against`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from remit_rbac import syntax
from remit_rbac.conditions import Expression, Keys, children, key_match, kind_of, paths_of
from remit_rbac.index import Index, Rule
from remit_rbac.kinds import ANY, Clash, Kinds, clashes, compared_values, contradicted
from remit_rbac.lines import Line
from remit_rbac.model import Constraint
from remit_rbac.policy import Policy
from remit_rbac.problems import Problem
from remit_rbac.schemas import argument_kinds, argument_values, names_near
from remit_rbac.syntax import Node, stock_rewrites


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known about where the policy will be used; None where nothing is."""

    #: Tool name to the JSON Schema of its arguments.
    tool_schemas: Mapping[str, Mapping[str, Any]] | None = None
    #: The JSON Schema of `r.ctx`, whatever the tool.
    context_schema: Mapping[str, Any] | None = None
    #: By action: dotted names below `r.ctx` that are not there when it is asked about.
    absent_context: Mapping[str, Collection[str]] = field(default_factory=dict[str, Collection[str]])


#: Known rows by their values, row type first.
Lines = Mapping[tuple[str, ...], Line]


def lint(policy: Policy, lines: Lines, surroundings: Surroundings) -> Iterator[Problem]:
    """All findings, in no particular order."""
    at = _Places(lines)
    conditions: dict[str, _Condition] = {}
    for constraint in policy.model.constraints:
        yield from _broken(policy, constraint, at)
        yield from _about_nobody(policy, constraint)
    for ptype, rules in policy.rules.items():
        for rule in rules:
            line = at.rule(ptype, rule)
            condition = None
            if rule.condition is not None:
                condition = conditions.get(rule.condition.text) or _read(rule.condition, surroundings)
                conditions[rule.condition.text] = condition
                yield from _condition_findings(rule, line, condition)
                yield from _context_findings(line, condition, surroundings)
    if surroundings.tool_schemas is not None:
        yield from _tool_findings(policy, surroundings.tool_schemas, {})
    yield from _overlaps(policy, at)
    yield from _idle_roles(policy, at)
    yield from _idle_agents(policy, at)
    yield from _missing_approvers(policy, at)
    yield from _odd_names(lines)


@dataclass(frozen=True, slots=True)
class _Places:
    """Finds the line of a row."""

    lines: Lines

    def rule(self, ptype: str, rule: Rule) -> Line:
        return self.lines[ptype, *rule.values]

    def link(self, graph: str, member: str, group: str, domain: str) -> Line:
        return self.lines[graph, member, group, domain]


def _broken(policy: Policy, constraint: Constraint, at: _Places) -> Iterator[Problem]:
    """Where a constraint on roles is broken, tenant by tenant, counting inherited roles."""
    graph = policy.graphs["g"]
    stated = f"{constraint.at.value} ({constraint.at.file}:{constraint.at.line})"
    for tenant in graph.domains:
        holders = {
            role: {name for name in graph.members(role, tenant) if not name.startswith("role:")}
            for role in constraint.roles
        }
        if constraint.kind == "roleMax":
            names = sorted(holders[constraint.roles[0]])
            if len(names) <= constraint.count:
                continue
            message = f"{len(names)} have {constraint.roles[0]}, and {stated} allows {constraint.count}"
            offenders = names[constraint.count :][:1]
        elif constraint.kind == "rolePre":
            role, needed = constraint.roles
            offenders = sorted(holders[role] - holders[needed])
            message = f"has {role} without {needed}, which {stated} asks for"
        else:
            held = {
                name: [role for role in constraint.roles if name in holders[role]]
                for names in holders.values()
                for name in names
            }
            offenders = sorted(name for name, roles in held.items() if len(roles) > constraint.count)
            message = f"has more of these roles than {stated} allows"
        for name in offenders:
            yield _grant(policy, name, constraint.roles, tenant, at).problem(
                "constraint", f"in {tenant}, {name}: {message}", "take a role away", value=1
            )


def _about_nobody(policy: Policy, constraint: Constraint) -> Iterator[Problem]:
    """Roles of a constraint that nobody has in any tenant: a name that is misspelt keeps nobody apart."""
    graph = policy.graphs["g"]
    for role in constraint.roles:
        if not any(_people(policy, role, tenant) for tenant in graph.domains):
            yield replace(
                constraint.at.problem(f"nobody has {role} in any tenant", "check the name, or add a g row"),
                code="role-empty",
                level="warning",
            )


def _grant(policy: Policy, name: str, roles: Collection[str], tenant: str, at: _Places) -> Line:
    """The last row that gives the name one of the roles, which it has, directly or through another."""
    graph = policy.graphs["g"]
    return [
        at.link("g", name, group, tenant)
        for group in graph.direct(name, tenant)
        if not graph.closure(group, tenant).isdisjoint(roles)
    ][-1]


@dataclass(frozen=True, slots=True)
class _Condition:
    """What there is to say about one text of a condition, however many rows have it."""

    constant: bool
    contradicted: syntax.Path | None
    rewritten: tuple[syntax.Literal, ...]
    no_lower_bound: tuple[Keys, ...]
    paths: tuple[syntax.Path, ...]
    misfits: tuple[_Misfit, ...]


def _read(expression: Expression, surroundings: Surroundings) -> _Condition:
    nodes = list(_walk(expression.node))
    return _Condition(
        constant=not expression.paths,
        contradicted=contradicted(expression.node),
        rewritten=tuple(
            node
            for node in nodes
            if isinstance(node, syntax.Literal) and type(node.value) is str and stock_rewrites(node.value)
        ),
        no_lower_bound=tuple(sorted(_bounded_above_only(nodes), key=str)),
        paths=tuple(paths_of(expression.node)),
        misfits=()
        if surroundings.context_schema is None
        else tuple(_misfits(expression, {"": {"ctx": surroundings.context_schema}})),
    )


def _condition_findings(rule: Rule, line: Line, condition: _Condition) -> Iterator[Problem]:
    if condition.constant:
        yield line.problem(
            "never-applies", "this condition is always false", "delete the row", value=5, level="warning"
        )
    if (path := condition.contradicted) is not None:
        yield line.problem(
            "never-applies",
            f"no value of {_dotted(path.keys)} is all that is asked of it here",
            "write || where either will do, or delete the row",
            value=5,
            offset=path.column - 1,
            level="warning",
        )
    for literal in condition.rewritten:
        yield line.problem(
            "stock-rewrites-text",
            f"stock Casbin rewrites '{literal.value}' before it compares; here it is taken as written",
            "avoid !, &&, ||, r. and p. in quotes if other Casbin engines read this file",
            value=5,
            offset=literal.column - 1,
            level="warning",
        )
    if line.ptype == "p" and rule.values[5] == "allow" and rule.values[3] in ("execute", "recommend", "*"):
        for path in condition.no_lower_bound:
            yield line.problem(
                "no-lower-bound",
                f"{_dotted(path)} has no lower bound, so a negative number passes",
                f"add {_dotted(path)} > 0",
                value=5,
                level="warning",
            )


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for child in children(node):
        yield from _walk(child)


def _bounded_above_only(nodes: Iterable[Node]) -> set[Keys]:
    """The arguments that are compared with an upper bound and with nothing else."""
    above: set[Keys] = set()
    otherwise: set[Keys] = set()
    for part in nodes:
        if not isinstance(part, syntax.Comparison):
            continue
        left = part.first
        for operator, right in part.links:
            for side, upper in ((left, ("<", "<=")), (right, (">", ">="))):
                if isinstance(side, syntax.Path) and side.keys[1:2] == ("args",):
                    (above if operator in upper else otherwise).add(side.keys)
            left = right
    return above - otherwise


def _dotted(path: Keys) -> str:
    return ".".join(str(key) for key in path)


def _overlaps(policy: Policy, at: _Places) -> Iterator[Problem]:
    """Allow rows that a row without condition makes pointless."""
    table = policy.model.tables["p"]
    always = [rule for rule in policy.rules["p"] if rule.condition is None]
    indexes = {
        effect: Index(table, [rule for rule in always if rule.values[5] == effect], policy.graphs)
        for effect in ("deny", "allow")
    }
    for rule in policy.rules["p"]:
        if rule.values[5] != "allow":
            continue
        # A row covers another when it matches the other's own columns, patterns and all.
        subject, tenant, tool, action = rule.values[:4]
        request = {"sub": subject, "dom": tenant, "tool": tool, "act": action}
        for effect, code, message in (
            ("deny", "shadowed", "never allows anything, because of"),
            ("allow", "redundant", "adds nothing to"),
        ):
            wider = [found for found in indexes[effect].find(request) if found is not rule]
            if wider:
                yield at.rule("p", rule).problem(
                    code, f"this row {message} {wider[0].row}", "delete one of the two", level="warning"
                )
                break


def _idle_roles(policy: Policy, at: _Places) -> Iterator[Problem]:
    """Roles and tool groups that are named and empty, or filled and never named."""
    members, graph = policy.graphs["g"], policy.graphs.get("g2")
    named: set[tuple[str, str]] = set()
    for ptype, rules in policy.rules.items():
        for rule in rules:
            subject, tenant, tool = rule.values[:3]
            tenants = members.domains if tenant == "*" else [tenant]
            if subject.startswith("role:"):
                fresh = (subject, tenant) not in named
                named.add((subject, tenant))
                if fresh and not any(_people(policy, subject, place) for place in tenants):
                    yield at.rule(ptype, rule).problem(
                        "role-empty", f"nobody has {subject} in {tenant}", "add a g row", level="warning"
                    )
            if graph is not None and tool.startswith("grp:") and len(graph.members(tool, "")) == 1:
                yield at.rule(ptype, rule).problem(
                    "group-empty", f"no tool is in {tool}", "add a g2 row", level="warning"
                )
    named.update((subject, tenant) for tenant in members.domains for subject in _acted_for(policy, tenant))
    named.update((role, "*") for constraint in policy.model.constraints for role in constraint.roles)
    for tenant in members.domains:
        for role in sorted(name for name in members.names(tenant) if name.startswith("role:")):
            used = any({(held, tenant), (held, "*")} & named for held in members.closure(role, tenant))
            givers = members.givers(role, tenant)
            if givers and not used:
                yield at.link("g", givers[0], role, tenant).problem(
                    "role-unused", f"no rule names {role} in {tenant}", "delete the row", level="warning"
                )


def _people(policy: Policy, role: str, tenant: str) -> bool:
    return any(not name.startswith("role:") for name in policy.graphs["g"].members(role, tenant))


def _acted_for(policy: Policy, tenant: str) -> set[str]:
    graph = policy.graphs["g3"]
    return {target for agent in graph.names(tenant) for target in graph.direct(agent, tenant)}


def _idle_agents(policy: Policy, at: _Places) -> Iterator[Problem]:
    """Agents with roles or rules in a tenant where they act for nobody."""
    delegations = policy.graphs["g3"]
    for tenant in policy.graphs["g"].domains:
        if delegations.direct("agent:*", tenant):
            continue
        for agent in policy.subjects(tenant).agents:
            groups = policy.graphs["g"].direct(agent, tenant)
            if groups and not delegations.direct(agent, tenant):
                yield at.link("g", agent, groups[0], tenant).problem(
                    "agent-without-user",
                    f"{agent} acts for nobody in {tenant}, so it can do nothing there",
                    f"add g3, {agent}, user:<id>, {tenant}",
                    level="warning",
                )


def _missing_approvers(policy: Policy, at: _Places) -> Iterator[Problem]:
    """Calls that wait for more people than there are."""
    for rule in policy.rules["p"]:
        _, tenant, tool, action, _, effect = rule.values
        if (action, effect) != ("recommend", "allow") or "*" in tenant + tool or tool.startswith("grp:"):
            continue  # of a row with patterns, some calls may be others' to approve
        if not policy.candidates(tenant, tool) and not policy.open_to_approve(tenant, tool):
            yield at.rule("p", rule).problem(
                "no-approver",
                f"nobody in {tenant} may approve {tool}",
                f"give `approve` on {tool} to users",
                level="warning",
            )
    approvable: dict[str, list[str]] = {}
    for rule in policy.rules.get("p2", ()):
        name, _, count = rule.values[5].partition("=")
        if name != "approvals":
            continue
        subject, tenant, tool = rule.values[:3]
        if tool not in approvable:
            approvable[tool] = list(_approvable(policy, tool))
        most = 0
        for place in (*policy.tenants, _OTHER) if tenant == "*" else (tenant,):
            for each in approvable[tool]:
                # Who asks is not asked.
                people = len({*policy.candidates(place, each)} - {subject})
                most = max(most, 100 if policy.open_to_approve(place, each) else people)
            if most >= int(count):
                break
        else:
            who = "nobody" if most == 0 else "one person" if most == 1 else f"{most} people"
            where = "any tenant" if tenant == "*" else tenant
            yield at.rule("p2", rule).problem(
                "too-few-approvers",
                f"{who} in {where} may approve {tool}, and {count} must",
                f"give `approve` on {tool} to more users, or ask for fewer",
                value=6,
            )


#: Stands for the tenants, or the ends of tool names, that a policy does not name. No name holds it.
_OTHER = "~"


def _approvable(policy: Policy, pattern: str) -> Iterator[str]:
    """Tools that a pattern is about, among them for each number of approvers one that has so many."""
    if "*" not in pattern and not pattern.startswith("grp:"):
        yield pattern
        return
    groups = policy.graphs.get("g2")
    own = groups.members(pattern, "") if groups is not None and pattern.startswith("grp:") else None
    if own is not None:
        yield from own
        return
    for rule in policy.rules["p"]:
        named = rule.values[2]
        if rule.values[3] not in ("approve", "*") or rule.values[5] != "allow":
            continue
        if named.startswith("grp:"):
            yield from (
                (tool for tool in groups.members(named, "") if key_match(tool, pattern)) if groups else ()
            )
        elif "*" not in named:
            yield from [named] if key_match(named, pattern) else ()
        else:
            narrow, wide = sorted((named, pattern), key=len, reverse=True)
            yield from [narrow.replace("*", _OTHER)] if key_match(narrow, wide) else ()


def _odd_names(lines: Lines) -> Iterator[Problem]:
    for line in lines.values():
        for number, text in enumerate(line.values[:4]):
            if not text.isascii():
                yield line.problem(
                    "mixed-script",
                    f"{text} has letters that can look like others",
                    "check it letter by letter",
                    value=number,
                    level="warning",
                )


def hold_against(
    policy: Policy,
    tool_schemas: Mapping[str, Mapping[str, Any]],
    context_schemas: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Problem, ...]:
    """What of a loaded policy cannot be answered for these tools, or is about none of them.

    By tool name: the JSON Schema of its arguments, and of what rules on it see as `r.ctx` (for tools that
    are left out, nothing is said). An error is a condition that no call of any tool of its row can answer.
    """
    return tuple(_tool_findings(policy, tool_schemas, context_schemas or {}))


def _tool_findings(
    policy: Policy,
    tool_schemas: Mapping[str, Mapping[str, Any]],
    context_schemas: Mapping[str, Mapping[str, Any]],
) -> Iterator[Problem]:
    covered: dict[str, list[str]] = {}
    found: dict[tuple[str, str], list[_Misfit]] = {}
    for ptype, rules in policy.rules.items():
        for rule in rules:
            pattern = rule.values[2]
            tools = covered.get(pattern)
            if tools is None:
                tools = covered[pattern] = _tools(policy, pattern, tool_schemas)
            line = Line(rule.row, (ptype, *rule.values))
            if not tools:
                yield line.problem(
                    "unknown-tool",
                    f"no source offers {pattern}",
                    "check the name, or delete the row",
                    value=3,
                    level="warning",
                )
                continue
            if ptype == "p2":
                yield from _unredactable(rule, line, {tool: tool_schemas[tool] for tool in tools})
            if rule.condition is not None:
                key = (pattern, rule.condition.text)
                if key not in found:
                    schemas = {
                        tool: {"args": tool_schemas[tool], "ctx": context_schemas.get(tool, {})}
                        for tool in tools
                    }
                    found[key] = list(_misfits(rule.condition, schemas))
                yield from (misfit.at(line) for misfit in found[key])


def _unredactable(rule: Rule, line: Line, schemas: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    """Arguments to be struck out that no tool of the row has. Tools without them have nothing to strike."""
    name, _, value = rule.values[5].partition("=")
    if name != "redact":
        return
    offset = len("redact=")
    for path in value.split("|"):
        keys = path.split(".")[1:]
        if all(argument_kinds(schema, tuple(keys)) is None for schema in schemas.values()):
            yield line.problem(
                "unknown-argument",
                f"{_some(sorted(schemas))} {'has' if len(schemas) == 1 else 'have'} no argument "
                f"{'.'.join(keys)}, so nothing would be struck out",
                "check the name; where a list is on the way, name the list: it is struck out whole",
                value=6,
                offset=offset,
            )
        offset += len(path) + 1


def _tools(policy: Policy, pattern: str, known: Collection[str]) -> list[str]:
    graph = policy.graphs.get("g2")
    if graph is not None and pattern.startswith("grp:"):
        members = graph.members(pattern, "")
        return [tool for tool in known if tool in members]
    if "*" not in pattern:
        return [pattern] if pattern in known else []
    return [tool for tool in known if key_match(tool, pattern)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Misfit:
    """What one text of a condition reads, and some tools do not have so."""

    code: str
    message: str
    fix: str
    offset: int
    level: Literal["error", "warning"]

    def at(self, line: Line) -> Problem:
        return line.problem(self.code, self.message, self.fix, value=5, offset=self.offset, level=self.level)


#: By tool, the JSON Schemas of `args` and `ctx`, as far as they are known; `""` stands for every tool.
_Schemas = Mapping[str, Mapping[str, Mapping[str, Any]]]


def _misfits(condition: Expression, schemas: _Schemas) -> Iterator[_Misfit]:
    """What of a condition cannot be answered, each once."""
    found = [*_unknown(condition, schemas), *_unequal(condition, schemas)]
    for tool, each in schemas.items():
        # A name that is not there is told once, as such.
        of_tool = clashes(condition.node, lambda keys, each=each: _kinds_at(each, keys) or ANY)
        found.extend(_clashing(clash, tool) for clash in of_tool)
    yield from dict.fromkeys(found)


def _kinds_at(schemas: Mapping[str, Mapping[str, Any]], keys: Keys) -> Kinds | None:
    """The kinds of an attribute of the request, where a schema speaks of it; None when there is none."""
    schema = schemas.get(str(keys[1]))
    return ANY if schema is None else argument_kinds(schema, keys[2:])


def _unknown(condition: Expression, schemas: _Schemas) -> Iterator[_Misfit]:
    for path in paths_of(condition.node):
        without = sorted(tool for tool, each in schemas.items() if _kinds_at(each, path.keys) is None)
        if not without:
            continue
        name, argument = _dotted(path.keys[2:]), path.keys[1] == "args"
        has = "has" if len(without) == 1 else "have"
        what = f"argument {name}" if argument else f"r.ctx.{name}"
        message = f"{_some(without)} {has} no {what}, so the condition cannot be answered there"
        fix = "check the name, or name the tools that have it"
        if "" in schemas:
            message = f"the server sets no {_dotted(path.keys)}"
            fix = f"there are {', '.join(names_near(schemas['']['ctx'], path.keys[2:]))}"
        yield _Misfit(
            code="unknown-argument" if argument else "unknown-context",
            message=message,
            fix=fix,
            offset=path.column - 1,
            # A row over many tools may be about some of them only; then it is for its author to judge.
            level="error" if len(without) == len(schemas) else "warning",
        )


def _unequal(condition: Expression, schemas: _Schemas) -> Iterator[_Misfit]:
    """Values that an attribute is asked for and never has, by the word of every tool."""
    for path, literal in compared_values(condition.node):
        root = str(path.keys[1])
        listed = [
            argument_values(each[root], path.keys[2:]) if root in each else None for each in schemas.values()
        ]
        known = {value: None for values in listed for value in values or ()}
        kinds = {kind_of(value) for value in known}
        if None in listed or literal.value in known or kind_of(literal.value) not in kinds:
            continue  # another kind is told as such
        yield _Misfit(
            code="unknown-value",
            message=f"{_dotted(path.keys)} is never {literal.value!r}",
            fix=f"there are {', '.join(map(str, known))}",
            offset=literal.column - 1,
            # What a source lists may change with its next version, and the rule be right again.
            level="error" if root == "ctx" else "warning",
        )


def _clashing(clash: Clash, tool: str) -> _Misfit:
    is_, used = (" or ".join(sorted(kinds - {"null"})) for kinds in (clash.found, clash.wanted))
    roots = {path.keys[1] for path in paths_of(clash.node)}
    argument = "ctx" not in roots
    name = _dotted(clash.node.keys) if isinstance(clash.node, syntax.Path) else syntax.render(clash.node)
    if "args" in roots:
        name = f"{name.removeprefix('r.args.')} of {tool}"
    return _Misfit(
        code="argument-type" if argument else "context-type",
        message=f"{name} is a {is_}, and is used here as a {used}",
        fix=f"compare it with a {is_}",
        offset=clash.node.column - 1,
        level="error",
    )


def _some(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _context_findings(line: Line, condition: _Condition, surroundings: Surroundings) -> Iterator[Problem]:
    absent = surroundings.absent_context.get(line.values[4], ())
    for path in condition.paths:
        if path.keys[1] == "ctx" and _is_known(path.keys[2:], absent):
            yield line.problem(
                "unknown-context",
                f"{_dotted(path.keys)} is not there when it is about {line.values[4]}",
                "write the condition without it",
                value=5,
                offset=path.column - 1,
            )
    yield from (misfit.at(line) for misfit in condition.misfits)


def _is_known(path: Keys, known: Collection[str]) -> bool:
    """Whether an attribute, something around it or something inside it is known."""
    for name in known:
        parts = tuple(name.split("."))
        shorter = min(len(parts), len(path))
        if parts[:shorter] == path[:shorter]:
            return True
    return False
