"""The tables of the documentation against the code: nothing is missing, nothing is invented.

Settings and defaults, functions, context attributes, refusal codes, tables, events: each is compared with
what the product itself has.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from tests.docs.pages import ROOT, read

from remit import tables
from remit.config import Config
from remit.context_schema import ATTRIBUTES, RUN
from remit.states import STATES
from remit_rbac.conditions import FUNCTIONS
from remit_rbac.decisions import Code
from remit_rbac.forms import ACTIONS

_ROW = re.compile(r"^\| `([^`]+)` \| ([^|]*) \|", re.MULTILINE)


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next of its level."""
    text = read(page)
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^\1 |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no heading {heading!r}"
    return found[2]


def first_column(text: str) -> list[str]:
    """Every `name` in the first column of the tables in a text; several may share a row."""
    return [
        name
        for row in re.findall(r"^\| (`[^|]+`) +\|", text, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", row)
    ]


def rows(text: str) -> list[tuple[str, list[str]]]:
    """The first `name` of each row of the tables in a text, and the names in its second column."""
    found = re.findall(r"^\| `([^`|]+)` \| ([^|]*) \|", text, re.MULTILINE)
    return [(name, re.findall(r"`([^`]+)`", second)) for name, second in found]


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each setting below a model as a dotted name, and its default as somebody would write it."""
    for name, field in model.model_fields.items():
        path, inner = f"{prefix}{field.alias or name}", list(models(field.annotation))
        if inner and get_origin(field.annotation) is tuple:
            path += "[]"
        elif inner and _is_mapping(field):
            path += f".<{_INNER.get(name, 'name')}>"
        if not inner or _default(field) == "none":
            yield path, _default(field)
        for each in inner:
            yield from settings(each, f"{path}.")


#: What the entries of a setting inside another are named by.
_INNER = {"price": "unit", "facts": "fact"}


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models(part)


def _is_mapping(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Mapping or "Mapping" in str(field.annotation)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if "duration" in str(field.metadata) and isinstance(value, int):
        return f"`{_span(value)}`"
    match value:
        case None:
            return "none"
        case bool():
            return f"`{str(value).lower()}`"
        case tuple():
            return f"`[{', '.join(map(str, value))}]`"
        case dict():
            return "`{}`"
        case _:
            return f"`{value}`" if str(value) else '`""`'


def _span(seconds: int) -> str:
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def test_every_setting_is_listed_with_its_default() -> None:
    listed = {path: default.strip() for path, default in _ROW.findall(read("configs/README.md"))}
    assert listed == dict(settings(Config))


def test_every_function_of_the_language_is_listed() -> None:
    assert sorted(
        re.findall(r"^\| `(\w+)\(", section("docs/policy.md", "Functions"), re.MULTILINE)
    ) == sorted(FUNCTIONS)


def test_every_action_is_listed() -> None:
    assert sorted(first_column(section("docs/policy.md", "Actions"))) == sorted(ACTIONS)


def test_every_context_attribute_is_listed() -> None:
    listed = {name.removeprefix("r.ctx.") for name in first_column(section("docs/policy.md", "Context"))}
    declared = {"<name>", "run.<name>", "facts.<fact>", "parsed.<argument>", "derived.<value>"}
    assert listed == {*ATTRIBUTES, *(f"run.{name}" for name in RUN), *declared}


def refusal_codes() -> set[str]:
    """The codes that the product gives to verdicts, read from its source."""
    found: set[str] = set()
    for path in [*(ROOT / "server/remit").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]:
        if "cli" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="_no"), args=[ast.Constant(value=str(code)), *_]):
                    found.add(code)
                case (
                    ast.keyword(arg="code", value=value)
                    | ast.Assign(targets=[ast.Name(id="code")], value=value)
                ):
                    found |= {
                        each.value
                        for each in ast.walk(value)
                        if isinstance(each, ast.Constant) and isinstance(each.value, str) and each.value
                    }
                case _:
                    pass
    return found


def test_every_code_that_an_agent_can_meet_is_listed() -> None:
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", read("docs/agents.md")))
    assert refusal_codes() - named == set()


def test_the_policy_codes_are_listed() -> None:
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", read("docs/agents.md")))
    assert set(get_args(Code)) - named == set()


def test_every_table_and_its_columns_are_listed() -> None:
    listed = section("docs/audit.md", "Tables")
    missing = [
        f"{table.name}.{column.name}"
        for table in tables.metadata.sorted_tables
        for column in table.columns
        if f"`{column.name}`" not in _about(listed, table.name)
    ]
    assert missing == []


def _about(text: str, table: str) -> str:
    found = re.search(rf"^### {table}\n(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def test_every_state_of_a_call_is_listed() -> None:
    assert first_column(section("docs/audit.md", "States")) == list(STATES)


def test_every_kind_of_event_is_listed() -> None:
    # `context.py` names what rules may read, in the same form.
    modules = [file for file in (ROOT / "server/remit").glob("*.py") if file.name != "context.py"]
    source = "".join(file.read_text("utf-8") for file in modules)
    named = (
        r'"((?:call|run|undo|approval|stream|key|switch|log|shadow|policy|playbook|audit|store)\.[a-z_]+)"'
    )
    kinds = set(re.findall(named, source))
    kinds |= {
        "call.succeeded",
        "call.failed",
        "approval.approve",
        "approval.reject",
        "switch.on",
        "switch.off",
    }
    assert set(first_column(section("docs/audit.md", "Events"))) == kinds
