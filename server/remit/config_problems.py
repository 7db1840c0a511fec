"""What is wrong with a configuration, in sentences for the person who edits it.

The validator knows the shape (`config.py`), the reader knows the lines (`strict_yaml.py`); here their
findings become problems that show what stands in the file and say what to write. No sentence ever holds
a secret: what looks like one is masked, and the values of some settings are not shown at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from remit import strict_yaml
from remit.config import Config
from remit.errors import RemitError
from remit.strict_yaml import Document, Mark, Path

Marks: TypeAlias = Mapping[Path, Mark]

# Published token formats. Only forms that cannot be an ordinary word: a false alarm refuses a good file.
_SECRETS = (
    ("a private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    ("an AWS access key", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ("a GitHub token", r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})"),
    ("a GitLab token", r"\bglpat-[A-Za-z0-9_-]{20,}"),
    ("a Google API key", r"\bAIza[0-9A-Za-z_-]{35}"),
    ("a Slack token", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    ("a Stripe key", r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    ("a Remit agent key", r"\brk_[A-Za-z0-9-]{4,}_[A-Za-z0-9_-]{16,}"),
    ("an API key", r"\bsk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}"),
    ("a JSON Web Token", r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),
    ("a password in a URL", r"://[^\s/:@'\"]+:[^\s/@'\"]+@"),
)
_SECRET = re.compile("|".join(f"(?P<s{number}>{form})" for number, (_, form) in enumerate(_SECRETS)))
#: Settings whose values are never repeated, whatever they look like.
_PRIVATE = frozenset({"bearer", "headers", "env"})

#: What the patterns of `config.py` ask for, in words.
_WORD = "1 to 128 letters, digits and the signs _ . @ -"
FORMS = {
    r"^[a-z][a-z0-9_-]{0,31}$": "begin with a-z, then up to 31 of a-z, 0-9, _ and -",
    r"^([a-z][a-z0-9_-]{0,31})?$": 'begin with a-z, then up to 31 of a-z, 0-9, _ and -; or write ""',
    r"^[a-z][a-z0-9_]{0,31}$": "begin with a-z, then up to 31 of a-z, 0-9 and _",
    r"^[A-Za-z_][A-Za-z0-9_]{0,62}$": "begin with a letter or _, then up to 62 of A-Z, a-z, 0-9 and _",
    r"^[A-Za-z0-9_.@-]{1,128}$": f"use {_WORD}",
    r"^agent:[A-Za-z0-9_.@-]{1,128}$": f"write agent: and then {_WORD}",
    r"^user:[A-Za-z0-9_.@-]{1,128}$": f"write user: and then {_WORD}",
    r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$": "write module:function, such as acme.rules:load",
    r"^(\[[0-9a-f:]+\]|[A-Za-z0-9.-]+):\d{1,5}$": "write an address and a port, for example 127.0.0.1:8420",
}
#: What a missing setting may look like.
EXAMPLES = {
    "version": "version: 1",
    "policy": "policy: {files: [policy.csv]}",
    "sources": "sources: {time: {kind: mcp, command: [mcp-server-time]}}",
    "kind": "kind: mcp",
    "tenant": "tenant: acme",
    "agent": "agent: agent:helpdesk",
    "user": "user: user:maria",
    "issuer": "issuer: https://login.example.com",
    "jwks": "jwks: https://login.example.com/jwks.json",
    "audience": "audience: https://remit.example.com/mcp",
    "certificate": "certificate: tls/server.pem",
    "key": "key: tls/server.key",
    "if": "if: args.amount > 1000",
    "effect": "effect: irreversible",
    "call": "call: billing.get_refund",
    "match": "match: item.idempotency_key == key",
    "expect": "expect: result.status == 'cancelled'",
    "estimate": "estimate: args.amount",
    "scope": "scope: agent",
    "unit": "unit: calls",
    "window": "window: minute",
    "limit": "limit: 60",
    "as": "as: {tenant: acme, agent: agent:operations, user: user:maria}",
    "steps": "steps: [{id: take_back, rollback: run, of: inputs.run}]",
    "id": "id: take_back",
    "tool": "tool: billing.*",
    "share": "share: 50",
    "url": "url: http://tsa.example.com/tsr",
    "roots": "roots: tsa-roots.pem",
    "folder": "folder: /mnt/worm/stamps",
}
_NOUNS = {
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping",
    "mapping_type": "a mapping",
    "dict_type": "a mapping",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing to mend. `message` says what is wrong and what to write; it holds no secret."""

    #: The file as it was named, or the variable or reference that is at fault.
    file: str
    #: From 1; None when no line is to blame.
    line: int | None = None
    column: int | None = None
    #: For example `tools.billing.refund.effect` or `budgets[0].unit`; empty when it is the file itself.
    field: str = ""
    message: str

    @classmethod
    def at(cls, file: str, marks: Marks, path: Path, message: str) -> Problem:
        """A problem with what stands at `path`, or should stand there."""
        mark = strict_yaml.nearest(marks, path)
        message = _SECRET.sub("[a secret]", message)
        return cls(file=file, line=mark.line, column=mark.column, field=_dotted(path), message=message)

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"
        return ": ".join(part for part in (where, self.field, self.message) if part)


class ConfigError(RemitError):
    """The configuration cannot be used. Show all of `problems` to the operator and end."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def as_dicts(self) -> list[dict[str, Any]]:
        """The problems for `--json`: file, line, column, field, message."""
        return [asdict(problem) for problem in self.problems]


def literal_secrets(file: str, text: str, document: Document) -> Iterator[Problem]:
    """Secrets written out, wherever they stand: a comment is read by as many people as a setting."""
    fields = {mark.line: field for field, mark in document.marks.items()}
    for found in _SECRET.finditer(text):
        mark = strict_yaml.place(text, found.start())
        kind = _SECRETS[int(str(found.lastgroup)[1:])][0]
        yield Problem(
            file=file,
            line=mark.line,
            column=mark.column,
            field=_dotted(fields.get(mark.line, ())),
            message=f"this looks like {kind}; replace it, for it has been in a file, and refer to the new one"
            " as env:NAME or file:/path",
        )


def flaws(file: str, document: Document) -> Iterator[Problem]:
    for flaw in document.flaws:
        yield Problem(
            file=file,
            line=flaw.mark.line,
            column=flaw.mark.column,
            field=_dotted(flaw.path),
            message=_SECRET.sub("[a secret]", flaw.message),
        )


def shape(
    file: str, document: Document, error: ValidationError, model: type[BaseModel] = Config
) -> Iterator[Problem]:
    """The validator's errors, one for each place in the file, in words for somebody who edits it."""
    flawed = [flaw.path for flaw in document.flaws if flaw.path]
    places: dict[tuple[Path, bool], list[ErrorDetails]] = {}
    for each in error.errors(include_url=False):
        place = _place(each, document.value), each["loc"][-1:] == ("[key]",)
        places.setdefault(place, []).append(each)
    for (path, _), errors in places.items():
        if any(path[: len(flaw)] == flaw for flaw in flawed):
            continue
        # Where several types may stand, each complains. Those that got past the type know best.
        further = any(len(other) > len(path) and other[: len(path)] == path for other, _ in places)
        precise = [each for each in errors if each["type"] not in _NOUNS]
        if precise or not further:
            yield Problem.at(file, document.marks, path, sentence(path, precise or errors, model))


def _place(error: ErrorDetails, value: Any) -> Path:
    """The validator's location without what is not in the file, such as the name of a union's branch."""
    path: list[str | int] = []
    for step in error["loc"]:
        if isinstance(value, dict) and step in value:
            value = cast(dict[str | int, Any], value)[step]
        elif isinstance(value, list) and isinstance(step, int):
            value = cast(list[Any], value)[step]
        else:
            continue
        path.append(step)
    if error["type"] == "missing":
        path.append(error["loc"][-1])
    return tuple(path)


def sentence(path: Path, errors: Sequence[ErrorDetails], model: type[BaseModel] = Config) -> str:
    error = errors[0]
    given = error["input"]
    context = error.get("ctx", {})
    value = "the value" if _PRIVATE.intersection(path) else _shown(given)
    match error["type"]:
        case kind if kind in _NOUNS:
            nouns = list(dict.fromkeys(_NOUNS[each["type"]] for each in errors))
            wanted = " or ".join(filter(None, (", ".join(nouns[:-1]), nouns[-1])))
            return f"{_kind(given, value)}{' or' if given is None else ';'} write {wanted}"
        case "missing":
            example = _example(path, model)
            return f"is missing; write it, for example {example}" if example else "is missing; write it"
        case "extra_forbidden":
            return _unknown(str(path[-1]), _settings(path[:-1], model))
        case "literal_error" | "enum":
            choices = re.findall(r"'([^']*)'|(\d+)", context["expected"])
            words = ["".join(choice) for choice in choices]
            wanted = f"one of {', '.join(words)}" if len(words) > 1 else words[0]
            return f"{value} is not {_named(path)}; write {wanted}"
        case "string_pattern_mismatch":
            form = context["pattern"]
            return f"{value} is refused; {FORMS.get(form, f'it must match {form}')}"
        case "greater_than_equal":
            return f"{value} is too small; write at least {context['ge']}"
        case "less_than_equal":
            return f"{value} is too large; write at most {context['le']}"
        case "too_short":
            return "is empty; write at least one entry"
        case "value_error" if isinstance(given, dict | list):
            return str(context["error"])
        case "value_error":
            return f"{value} is refused: {context['error']}"
        case _:
            return f"{value} is refused: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _kind(given: object, value: str) -> str:
    match given:
        case None:
            return "is empty; remove it"
        case dict():
            return "is a mapping"
        case list():
            return "is a list"
        case bool():
            return f"{value} is a truth value"
        case int():
            return f"{value} is a number"
        case float():
            return f"{value} is a number with a fraction"
        case _:
            return f"{value} is text"


def _named(path: Path) -> str:
    """`an effect` for a setting of that name, `an algorithm` for an entry of `algorithms`."""
    name = str(path[-1])
    if isinstance(path[-1], int) or not name.isidentifier():  # an item of a list, or what the operator named
        name = str(path[-2]).removesuffix("s")
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


def _unknown(name: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    if close := get_close_matches(name, known, n=1):
        return f"is not a setting; did you mean {close[0]}?"
    if not known:
        return "is not a setting; remove it"
    return f"is not a setting here; known are {', '.join(known)}"


def _settings(path: Path, root: type[BaseModel]) -> list[str]:
    """The settings that may stand at `path`."""
    return list(
        dict.fromkeys(
            field.alias or name
            for model in _models_at(path, root)
            for name, field in model.model_fields.items()
        )
    )


def _example(path: Path, root: type[BaseModel]) -> str | None:
    """What a missing setting may look like."""
    if root is Config:
        return EXAMPLES.get(str(path[-1]))
    fields = [model.model_fields.get(str(path[-1])) for model in _models_at(path[:-1], root)]
    return next((f"{path[-1]}: {field.examples[0]}" for field in fields if field and field.examples), None)


def _models_at(path: Path, root: type[BaseModel]) -> list[type[BaseModel]]:
    models = [root]
    for step in path:
        if fields := [model.model_fields[str(step)] for model in models if step in model.model_fields]:
            models = [model for field in fields for model in _models(field.annotation)]
    return models


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _dotted(path: Path) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{_short(step)}" for step in path)
    return "".join(steps).removeprefix(".")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(_short(value)) if isinstance(value, str) else str(value)


def _short(text: str) -> str:
    text = _SECRET.sub("[a secret]", text)
    return text if len(text) <= 60 else f"{text[:57]}..."
