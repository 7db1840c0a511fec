"""Faults to seed into the policy engine, each of which some test must notice.

Each is one replacement in one file: the text must stand there exactly once, so that a fault cannot
silently stop being seeded when the code changes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    file: str
    old: str
    new: str


MUTANTS = [
    # Who wins, and what doubt means.
    Mutant("plans.py", "& (holding | doubtful))", "& holding)"),
    Mutant("plans.py", "rule.condition is None or bits[id(rule)] & holding", "True"),
    Mutant("plans.py", "allowed=bool(allowed_by) and not denied_by", "allowed=bool(allowed_by)"),
    Mutant("plans.py", "if always_denied or not self.allows:", "if not self.allows:"),
    Mutant("plans.py", "if not self.denies and all(", "if all("),
    Mutant("plans.py", "(1 << rule_bit, rule", "(1 << rule_bit // 2, rule"),
    Mutant("plans.py", "if doubtful:\n            return", "if holding:\n            return"),
    Mutant(
        "plans.py", "                applying |= 1 << bit\n                errors", "                errors"
    ),
    Mutant("plans.py", 'record["act"] = action\n        verdict', "verdict"),
    Mutant("plans.py", "return Standing(Rung.DENY, verdicts)", "return Standing(Rung.ADVISE, verdicts)"),
    # The narrower of two, and who may ask.
    Mutant(
        "decisions.py",
        "rung = min(agent.rung, user.rung)\n    return",
        "rung = max(agent.rung, user.rung)\n    return",
    ),
    Mutant("decisions.py", '(Rung.APPROVE, "recommend")', '(Rung.APPROVE, "approve")'),
    Mutant("policy.py", 'record["sub"] = q.user', 'record["sub"] = q.agent'),
    Mutant("policy.py", "if not self.delegated(tenant, agent, user):", "if False:"),
    Mutant("policy.py", '"user:*" in targets or', '"user:*" not in targets or'),
    Mutant("policy.py", 'direct("agent:*", tenant)', 'direct("agent:*", "")'),
    Mutant("policy.py", 'and "*" not in name', 'and "**" not in name'),
    Mutant("policy.py", "inside if user in exclude else outside", "outside"),
    Mutant(
        "policy.py", "outcome = (*agent.verdicts, *user.verdicts, due)", "outcome = (*agent.verdicts, due)"
    ),
    Mutant(
        "policy.py",
        "outcome = (*agent.verdicts, *user.verdicts, due)",
        "outcome = (*agent.verdicts, *user.verdicts)",
    ),
    Mutant("policy.py", "key = (subject, tenant, tool, action)", "key = (subject, tenant, tool, action[0])"),
    # Finding rows.
    Mutant("index.py", "if length <= len(key):", "if length < len(key):"),
    Mutant("index.py", "return (request[field],)", "return (request[field], '*')"),
    Mutant("index.py", "self._lengths.add(len(start))", "self._lengths = {len(start)}"),
    Mutant("index.py", 'request[domain] if domain else ""', '""'),
    Mutant("index.py", 'set[str]() if "*" in key else {key}', "set[str]()"),
    Mutant("index.py", "rules.sort(key=lambda rule: rule.number)", "rules.reverse()"),
    Mutant("roles.py", "if following not in found:", "if following not in found and len(found) < 3:"),
    Mutant("roles.py", "DEPTH_MAX = 9", "DEPTH_MAX = 10"),
    Mutant("roles.py", "if name in path:", "if name in path[1:]:"),
    # What conditions mean.
    Mutant("conditions.py", "_NUMBERS = (int, float)", "_NUMBERS = (int, float, bool)"),
    Mutant("conditions.py", "if not isfinite(value):", "if False:"),
    Mutant("conditions.py", '"<=": _ordering(operator.le)', '"<=": _ordering(operator.lt)'),
    Mutant("conditions.py", 'decisive = node.operator == "or"', 'decisive = node.operator == "and"'),
    Mutant("conditions.py", "if value is not (not decisive):", "if False:"),
    Mutant(
        "conditions.py",
        "if not compare(value, following):\n                return False",
        "if not compare(value, following):\n                return True",
    ),
    Mutant("conditions.py", "            value = following\n", ""),
    Mutant("conditions.py", 'return "number", lambda scope: -_number(run(scope))', 'return "number", run'),
    Mutant("conditions.py", "        return left is right\n    raise", "        return True\n    raise"),
    Mutant("conditions.py", "    if clash is not None:\n        raise clash\n", ""),
    Mutant("conditions.py", "if value.bit_length() > INTEGER_BITS_MAX:", "if False:"),
    Mutant(
        "syntax.py",
        'Listing((first, *self._items(")")), opening.column)',
        "Listing((first,), opening.column)",
    ),
    Mutant(
        "syntax.py",
        "left = Arithmetic(operator, left, self._product(), left.column)",
        "left = Arithmetic(operator, self._product(), left, left.column)",
    ),
    Mutant("syntax.py", 'if following.text in _TIGHTER_THAN_NOT and following.kind != "text":', "if False:"),
    # What files may say.
    Mutant("lines.py", '_PLAIN = re.compile(r"[ !#-\'*-Z^-~]*")', '_PLAIN = re.compile(r".*")'),
    Mutant("forms.py", '"allow|deny"', '"(?i:allow|deny)"'),
    Mutant(
        "loading.py",
        "if line.ptype in self._rules or line.ptype in self._links:",
        "if line.ptype not in (*self._rules, *self._links):\n                continue\n            if True:",
    ),
    Mutant("loading.py", "for row in sorted(rows):", "for row in rows:"),
]
