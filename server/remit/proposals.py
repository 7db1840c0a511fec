"""What unclassed tools may do, and how they may come back: proposals, for a person to review.

Made from what a source says about itself (MCP hints, recovery metadata, names, schemas), all of which may be
wrong or a lie. So nothing here is ever asked while calls run: there, what the operator has not classed is
irreversible. A proposal is the most pessimistic class that the evidence leaves, and says which evidence.

Sources: ToolAnnotations (MCP 2026-07-28); SEP-3172, `annotations.recovery`, with the bindings of an OpenAPI
3 Link; `annotations.x-compensation-pair`; the HTTP method behind a tool, `_meta.http.method` or
`annotations.httpMethod` (safe methods: RFC 9110 §9.2.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from remit.catalog import Catalog, entry_for, exported, prefix_of
from remit.config import Config, Effect
from remit.escaping import escaped
from remit.model import Tool
from remit_rbac import ExpressionError, compile_expression
from remit_rbac.schemas import argument_kinds
from remit_rbac.syntax import Path, render

Schema = Mapping[str, Any]

_READS = frozenset(
    ("get", "head", "list", "search", "find", "read", "fetch", "show", "describe", "count", "view", "lookup")
)
_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))
_CHANGES = frozenset(("update", "set", "put", "patch", "edit", "rename", "write", "modify", "replace"))
_POSTS = frozenset(("post", "execute", "run", "exec", "apply", "submit", "process", "send"))
#: What an answer must call a value for it to be taken as the name of the thing that the call made.
_NAMES_IT = re.compile(r"(^|[_a-z])(id|Id|ID|uuid|key|number|name|path|uri|url|slug|ref|reference|token)$")
#: A verb and what takes it back. A deleted thing comes back through `restore`, never through `create`.
_INVERSES: Mapping[str, tuple[str, ...]] = {
    verb: tuple(inverses.split())
    for verb, _, inverses in (
        line.partition(": ")
        for line in """\
create: delete remove destroy cancel close
add: remove delete
insert: delete remove
post: delete
upload: delete
open: close
close: reopen
reopen: close
delete: restore undelete
remove: restore
archive: unarchive restore
unarchive: archive
book: cancel
reserve: release cancel
schedule: unschedule cancel
start: stop
stop: start
pause: resume unpause
suspend: resume unsuspend
grant: revoke
revoke: grant
enable: disable
disable: enable
activate: deactivate
deactivate: activate
lock: unlock
unlock: lock
attach: detach
detach: attach
assign: unassign
subscribe: unsubscribe
connect: disconnect
publish: unpublish
share: unshare
join: leave
block: unblock
unblock: block
link: unlink
pin: unpin
star: unstar
follow: unfollow
mute: unmute
""".splitlines()
    )
}
#: What takes the tool back that is named after it: `cancel_refund`.
_UNDOES = frozenset(("cancel", "undo", "revert"))
_VERBS = _READS.union(_CHANGES, _POSTS, _UNDOES, _INVERSES, *_INVERSES.values())
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_RUNTIME = re.compile(r"\$(request|response)\.body#((?:/[^/]+)+)")
#: Text that YAML reads as itself without quotes.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z0-9_.-]+)?")
_CONSTANTS = frozenset(("null", "true", "false"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """The entry of `tools` that could be written for one tool, and why that."""

    tool: str
    source: str
    effect: Effect
    reasons: tuple[str, ...]
    #: As in the file: `{call, args}`.
    before: Mapping[str, Any] | None = None
    undo: Mapping[str, Any] | None = None
    #: There is an entry of exactly this name, so these lines belong to it.
    has_entry: bool = False

    @property
    def rules(self) -> dict[str, Any]:
        """The settings, as they stand in the file."""
        found = {"effect": self.effect.value, "before": self.before, "undo": self.undo}
        return {name: value for name, value in found.items() if value is not None}


def propose(config: Config, catalog: Catalog, source: str | None = None) -> list[Proposal]:
    """A proposal for each tool, of one source or of all, whose effect the configuration does not say."""
    open_tools = [tool for tool in catalog.listed() if entry_for(config, tool.name, "effect") is None]
    looked_at = {tool.name: _Look(config, catalog, tool) for tool in open_tools}
    reads = {name for name, look in looked_at.items() if look.only_reads()}
    reads |= {tool.name for tool in catalog.listed() if tool.effect is Effect.READ}
    return [
        look.proposal(reads) for look in looked_at.values() if source is None or look.tool.source == source
    ]


@dataclass(slots=True)
class _Look:
    """One tool, seen with all that its source says about it."""

    config: Config
    catalog: Catalog
    tool: Tool
    reasons: list[str] = field(default_factory=list[str])

    def proposal(self, reads: set[str]) -> Proposal:
        self.reasons.clear()
        effect, before, undo = Effect.IRREVERSIBLE, None, None
        if self.only_reads():
            effect = Effect.READ
        elif found := self._declared() or self._paired():
            effect, undo = found
        elif restored := self._restored(reads):
            effect, (before, undo) = Effect.RESTORABLE, restored
        else:
            self._says("nothing here is sure to take it back")
        return Proposal(
            tool=self.tool.name,
            source=self.tool.source,
            effect=effect,
            reasons=tuple(self.reasons),
            before=before,
            undo=undo,
            has_entry=self.tool.name in self.config.tools,
        )

    # What the source says.

    @property
    def _hints(self) -> Mapping[str, Any]:
        hints = self.tool.definition.get("annotations")
        return cast("Mapping[str, Any]", hints) if isinstance(hints, Mapping) else {}

    def _safe_method(self) -> bool | None:
        """Whether the HTTP method behind it is a safe one; None when its source tells of none."""
        meta: Any = self.tool.definition.get("_meta")
        http: Any = cast("Mapping[str, Any]", meta).get("http") if isinstance(meta, Mapping) else None
        told: Any = (
            cast("Mapping[str, Any]", http).get("method")
            if isinstance(http, Mapping)
            else self._hints.get("httpMethod")
        )
        return None if told is None else str(told).upper() in _SAFE_METHODS

    def only_reads(self) -> bool:
        """Whether everything that is said about it says that it changes nothing."""
        verb = _verb_and_noun(self.tool.own_name)[0]
        hint, safe = self._hints.get("readOnlyHint"), self._safe_method()
        if safe is False:
            return self._says("its source makes it by an HTTP method that may change something")
        if hint is True and self._hints.get("destructiveHint") is True:
            return self._says("its hints contradict each other: readOnlyHint and destructiveHint")
        if hint is True and verb in _VERBS - _READS:
            return self._says(f"readOnlyHint says that it only reads, and its name says {verb}")
        if hint is True:
            self._says("its source says that it only reads (readOnlyHint)")
            return True
        silent = hint is None and self._hints.get("destructiveHint") is not True
        if safe and silent and verb not in _VERBS - _READS:
            self._says("its source makes it by an HTTP method that only reads")
            return True
        if verb in _READS and silent:
            self._says(f"its name says {verb}, and nothing speaks against it")
            return True
        return False

    def _declared(self) -> tuple[Effect, Mapping[str, Any]] | None:
        """The way back that the source itself declares. Compensation is all that it claims."""
        recovery: Any = self._hints.get("recovery")
        if recovery is not None:
            try:
                operation = recovery["compensatingOperation"]
                named, parameters = str(operation["operationId"]), dict(operation["parameters"])
                known = recovery["strategy"] == "compensation"
            except (KeyError, TypeError, ValueError):
                known, named, parameters = False, "", {}
            inverse = self._sibling(named)
            if not known or inverse is None:
                self._says("its source declares a recovery that cannot be used")
            else:
                arguments = {name: _from_runtime(text) for name, text in parameters.items()}
                takes = _input(inverse)
                if (
                    arguments
                    and None not in arguments.values()
                    and _required(takes) <= arguments.keys()
                    and all(argument_kinds(takes, (name,)) is not None for name in arguments)
                ):
                    self._says(f"its source declares that {inverse.name} compensates it (SEP-3172)")
                    return _compensated(inverse, arguments)
                self._says(f"its source declares {inverse.name}, whose arguments cannot all be bound")
        partner = self._hints.get("x-compensation-pair")
        if isinstance(partner, str) and (inverse := self._sibling(partner)):
            arguments, lacking = self._bound(inverse)
            if not lacking:
                self._says(f"its source names {inverse.name} as its compensation (x-compensation-pair)")
                return _compensated(inverse, arguments)
            self._says(f"its source names {inverse.name}, and {', '.join(lacking)} cannot be had")
        return None

    def _siblings(self) -> Iterator[Tool]:
        """The other tools of its source."""
        return (
            tool
            for tool in self.catalog.listed()
            if tool.source == self.tool.source and tool.name != self.tool.name
        )

    def _sibling(self, own_name: str) -> Tool | None:
        return self.catalog.tools.get(exported(prefix_of(self.config, self.tool.source), own_name))

    # What the names and schemas say.

    def _paired(self) -> tuple[Effect, Mapping[str, Any]] | None:
        """A tool beside it whose name says the opposite, and whose arguments are known by then."""
        verb, noun = _verb_and_noun(self.tool.own_name)
        whole = _stem(_words(self.tool.own_name))
        for inverse in self._siblings():
            other, of_what = _verb_and_noun(inverse.own_name)
            opposite = of_what == noun and other in _INVERSES.get(verb, ())
            if not opposite and not (other in _UNDOES and of_what == whole):
                continue
            arguments, lacking = self._bound(inverse)
            if lacking:
                self._says(f"its opposite seems to be {inverse.name}, which needs more: {', '.join(lacking)}")
                continue
            self._says(f"its opposite seems to be {inverse.name}, which takes what is known by then")
            if all(text.startswith("args") for text in arguments.values()):
                self._says("where the call changed nothing, that would take away what was there before")
            return _compensated(inverse, arguments)
        return None

    def _restored(self, reads: set[str]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        """The read that shows what it replaces, when that can be written back whole."""
        verb, noun = _verb_and_noun(self.tool.own_name)
        takes, needed = _properties(_input(self.tool)), _required(_input(self.tool))
        for getter in self._siblings() if verb in _CHANGES else ():
            if getter.name not in reads or _verb_and_noun(getter.own_name)[1] != noun:
                continue
            shown = _output(getter)
            keys = {name: _path("args", name) for name in _required(_input(getter))}
            rest = {name: _path("before", name) for name in takes if name not in keys}
            whole = all(_same(self.tool, name, shown, name) for name in rest)
            if keys and rest and keys.keys() <= needed and whole:
                self._says(f"every value that it sets is shown by {getter.name}, so the old ones can be kept")
                self._says("somebody else may write between that read and the call")
                args = {name: keys.get(name) or rest[name] for name in takes}
                return {"call": getter.name, "args": keys}, {"call": self.tool.name, "args": args}
        return None

    def _bound(self, inverse: Tool) -> tuple[Mapping[str, str], list[str]]:
        """Every argument that `inverse` needs, from the call or its answer; and those that are lacking."""
        nouns = {noun for tool in (self.tool, inverse) if (noun := _verb_and_noun(tool.own_name)[1])}
        bound: dict[str, str] = {}
        lacking: list[str] = []
        for name in sorted(_required(_input(inverse))):
            # `order_id` and a plain `id` are the same thing where the tool's name says what of.
            twins = [name, *("id" for noun in nouns if _words(name) == [*noun.split("_"), "id"])]
            twins += [f"{noun}_id" for noun in nouns if name == "id"]
            found = (
                _path(root, twin)
                for twin in twins
                for root, schema in (("args", _input(self.tool)), ("result", _output(self.tool)))
                if _same(inverse, name, schema, twin) and (root == "args" or _NAMES_IT.search(twin))
            )
            if path := next(found, None):
                bound[name] = path
            else:
                lacking.append(name)
        # One that is told nothing cannot know what to take back.
        return bound, lacking if bound or lacking else ["to be told which"]

    def _says(self, reason: str) -> bool:
        """Note a reason; False, for those that say no."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return False


def as_yaml(proposals: list[Proposal], *, below: bool) -> Iterator[str]:
    """The lines to paste into `remit.yaml`; with `below`, without the `tools:` that is there already."""
    if not below:
        yield "tools:"
    for proposal in proposals:
        if proposal.has_entry:
            yield f"  # {proposal.tool} has an entry already: add this to it."
        yield from (f"  # {escaped(reason[:1].upper() + reason[1:])}." for reason in proposal.reasons)
        yield f"  {proposal.tool}:"
        yield from _lines(proposal.rules, 4)


def _lines(values: Mapping[str, Any], indent: int) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield f"{' ' * indent}{_scalar(name)}:"
            yield from _lines(cast("Mapping[str, Any]", value), indent + 2)
        else:
            yield f"{' ' * indent}{_scalar(name)}: {_scalar(str(value))}"


def _scalar(text: str) -> str:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _CONSTANTS
    return text if plain else orjson.dumps(text).decode()


def _compensated(inverse: Tool, arguments: Mapping[str, Any]) -> tuple[Effect, Mapping[str, Any]]:
    residue = "Nobody has said yet what stays behind."
    return Effect.COMPENSABLE, {"call": inverse.name, "args": arguments, "residue": residue}


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(name)]


def _stem(words: Sequence[str]) -> str:
    return "_".join(word.removesuffix("s") for word in words)


def _verb_and_noun(own_name: str) -> tuple[str, str]:
    """`create_order`, `orders.create` and `createOrder` are the verb create and the noun order."""
    words = _words(own_name) or [""]
    at = len(words) - 1 if words[0] not in _VERBS and words[-1] in _VERBS else 0
    return words[at], _stem(words[:at] + words[at + 1 :])


def _from_runtime(text: object) -> str | None:
    """An OpenAPI runtime expression as one of ours; None when it names nothing that is known here."""
    match = _RUNTIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    keys = [part.replace("~1", "/").replace("~0", "~") for part in match[2].split("/")[1:]]
    return _path("args" if match[1] == "request" else "result", *keys)


def _path(root: str, *keys: str) -> str | None:
    """The expression for one value; None when the expression language has no way to name it."""
    text = render(Path(keys=(root, *keys), column=1))
    try:
        compile_expression(text, roots=(root,))
    except ExpressionError:
        return None
    return text


def _same(tool: Tool, argument: str, schema: Schema, name: str) -> bool:
    """Whether `schema` is sure to hold, as `name`, what `tool` takes as `argument`."""
    takes, holds = argument_kinds(_input(tool), (argument,)), argument_kinds(schema, (name,))
    return name in _required(schema) and takes is not None and holds is not None and holds <= takes


def _input(tool: Tool) -> Schema:
    return _schema(tool, "inputSchema")


def _output(tool: Tool) -> Schema:
    return _schema(tool, "outputSchema")


def _schema(tool: Tool, key: str) -> Schema:
    schema = tool.definition.get(key)
    return cast("Schema", schema) if isinstance(schema, Mapping) else {}


def _properties(schema: Schema) -> Schema:
    found = schema.get("properties")
    return cast("Schema", found) if isinstance(found, Mapping) else {}


def _required(schema: Schema) -> set[str]:
    found = schema.get("required")
    names = cast("list[object]", found) if isinstance(found, list) else []
    return {name for name in names if isinstance(name, str)}
