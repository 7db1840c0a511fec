"""What is wrong with a policy, in words for the person who wrote it.

A `Problem` is a value: the loader collects all of them before it gives up, so that one run names every
mistake. `PolicyError` carries them out; nothing was loaded when it is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: Every code a problem can have, and what it means. Stable: tests and editors may rely on them.
CODES = {
    # The file cannot be read as Casbin reads it.
    "not-utf8": "The line is not UTF-8 text.",
    "invisible-character": "The line holds a control character or one that cannot be seen.",
    "double-quote": "Casbin keeps double quotes as part of a value; texts take single quotes.",
    "unpaired-bracket": "Casbin pairs brackets, also inside quotes, to find the columns.",
    # A row is not of the expected form.
    "unknown-row-type": "The model defines no such row; Casbin would ignore it and leave access as it was.",
    "column-count": "The row has too many or too few columns; Casbin would fail every decision.",
    "empty-column": "The column is empty; Casbin would match the empty name.",
    "bad-subject": "Not agent:<id>, user:<id>, role:<name>, agent:*, user:* or *.",
    "bad-tenant": "Not the id of a tenant (or *, where a row may hold in every tenant).",
    "bad-tool": "Not <source>.<tool>, <source>.*, <source>.<start>*, grp:<name> or *.",
    "bad-action": "Not one of the actions; Casbin would never match the row.",
    "bad-effect": "Neither allow nor deny; Casbin would ignore the row.",
    "bad-duty": "Not a duty that there is, or not with a value that it can have.",
    "bad-member": "Not something that can be a member here.",
    "bad-role": "Not role:<name>.",
    "bad-group": "Not grp:<name>.",
    "bad-delegation": "Not an agent, or not somebody an agent can act for.",
    "long-value": "As long as the 255 characters that Casbin's database adapters keep, or longer.",
    "not-nfc": "The name is not in Unicode normal form C, so it may look equal and never match.",
    "untrimmed-value": "The stored value has spaces around it, which change its meaning when it is reloaded.",
    "bad-condition": "The condition is not an expression of the language, or can never be answered.",
    # The rows do not make a policy.
    "grants-nothing": "No row allows anything.",
    "role-circle": "A role is, through others, a member of itself.",
    "role-depth": "Casbin follows nine levels of membership and no more.",
    "constraint": "Somebody's roles break a constraint of the model.",
    "foreign-tenant": "The file of one tenant speaks about another, or about all.",
    "shared-group": "Tool groups are shared by all tenants, so a tenant's file cannot change them.",
    "too-few-approvers": "Fewer people may approve than the duty asks for, whatever call it is about.",
    "unknown-argument": "The tool has no such argument.",
    "argument-type": "The tool's argument has another type.",
    "unknown-context": "The server sets no such attribute of r.ctx.",
    "context-type": "The attribute of r.ctx has another type.",
    "unknown-value": "The attribute is never this value: its schema lists others.",
    "bad-model": "The model file is not understood.",
    # The policy works, but probably not as meant.
    "duplicate-row": "The row stands twice.",
    "shadowed": "A row that always denies covers the row, so it never allows anything.",
    "redundant": "A row that always allows covers the row, so it adds nothing.",
    "never-applies": "The condition is false for every call that it can be answered for.",
    "role-empty": "Nobody has the role. Where a constraint names it, nobody is kept apart.",
    "role-unused": "No rule names the role.",
    "group-empty": "No tool belongs to the group.",
    "agent-without-user": "The agent acts for nobody in the tenant, so it can do nothing there.",
    "no-approver": "The row leads to a person's decision, and nobody may approve.",
    "no-rows": "The file, table or adapter has no row.",
    "unknown-tool": "No source offers the tool.",
    "no-lower-bound": "The number has an upper bound only, so negative ones pass.",
    "stock-rewrites-text": "Stock Casbin rewrites this text inside quotes; here it is taken as written.",
    "mixed-script": "The name has letters outside ASCII, which can look like others.",
}


#: Characters of a line that are shown.
_SHOWN_MAX = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One finding in one line of a policy or model file. Lines and columns count from 1."""

    #: One of `CODES`.
    code: str
    file: str
    line: int
    column: int
    #: The line as written.
    text: str
    message: str
    #: What to write instead; empty when only the author can know.
    fix: str = ""
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        first = f"{self.file}:{self.line}:{self.column}: {self.level}: {self.message} [{self.code}]"
        shown = [first]
        if self.text:
            # Of a very long line, what stands around the place.
            start = max(0, self.column - _SHOWN_MAX // 2) if len(self.text) > _SHOWN_MAX else 0
            excerpt = self.text[start : start + _SHOWN_MAX]
            shown += [f"    {excerpt}", f"    {' ' * (self.column - 1 - start)}^"]
        return "\n".join([*shown, f"    fix: {self.fix}"] if self.fix else shown)


class PolicyError(Exception):
    """The policy was refused as a whole. Keep the last good one and show the report to its author."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
