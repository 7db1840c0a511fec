"""Casbin's own published cases: the inputs that its test suites and its editor's gallery document, as data.

`published/models.json` has the 67 models of pycasbin's and Go Casbin's examples and of the gallery: 12 are of
our family, 55 are refused, each with the message that is listed there. `published/cases.json` has 26 policies
with 188 requests for the 12; `published/strings.json` the 12 vectors of the one matching function that is
offered, and how many there are of the 11 that are not.

A published request names other things than a tool call does, so names are translated: a subject is a user,
or a role where `g` has members for it; an object is a tool or a group of tools; actions are three of ours;
attributes of the subject are arguments. What is answered is the product's own answer, by its index and by
pycasbin, under the model that ships; what is expected is what the published model itself answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import casbin
import pytest
from casbin.persist.adapters.string_adapter import StringAdapter

from remit_rbac import PolicyError, load_text
from remit_rbac.model import parse_model
from remit_rbac.stock import StockPolicy


def published(name: str) -> Any:
    return json.loads((Path(__file__).parent / "published" / f"{name}.json").read_text())


MODELS, CASES, STRINGS = published("models"), published("cases"), published("strings")
REFUSED = {name: model for name, model in MODELS.items() if "refused" in model}
SECTIONS = {
    "r": "request_definition",
    "p": "policy_definition",
    "g": "role_definition",
    "e": "policy_effect",
    "m": "matchers",
    "c": "constraint_definition",
}
ACTIONS = {"read": "execute", "write": "undo", "delete": "approve"}
#: So that every policy allows something.
SOMETHING = "p, user:nobody, all, none.none, advise, 1 == 1, allow"


def as_file(define: dict[str, str]) -> str:
    return "\n".join(
        f"[{section}]\n" + "\n".join(f"{key} = {value}" for key, value in define.items() if key[0] == letter)
        for letter, section in SECTIONS.items()
        if any(key[0] == letter for key in define)
    )


def fields_of(case: Any, letter: str) -> list[str]:
    return [name.strip() for name in MODELS[case["model"]]["define"][letter].split(",")]


def test_as_many_are_replayed_as_are_said() -> None:
    answers = sum(len(case["answers"]) for case in CASES.values())
    print(f"{len(CASES)} policies, {answers} requests, {len(REFUSED)} of {len(MODELS)} models refused")
    assert (len(MODELS), len(REFUSED), len(CASES), answers) == (67, 55, 26, 188)
    assert {case["model"] for case in CASES.values()} == set(MODELS) - set(REFUSED)
    assert (len(STRINGS["matchers"]["keyMatch"]), len(STRINGS["not offered"])) == (12, 11)
    for number in ("67 models", "12 are", "55 are", "26 policies", "188 requests", "12 vectors"):
        assert number in str(__doc__).replace("\n", " ")


class Translation:
    """One published policy in our columns."""

    def __init__(self, case: Any) -> None:
        self.request, self.columns = fields_of(case, "r"), fields_of(case, "p")
        rows = [[value.strip() for value in row.split(",")] for row in case["policy"]]
        self.roles = {row[2] for row in rows if row[0] == "g"}
        self.groups = {row[2] for row in rows if row[0] == "g2"}
        self.rows = [self.row(*row) for row in rows]

    def subject(self, name: str) -> str:
        return f"role:{name}" if name in self.roles else f"user:{name}"

    def object(self, name: str) -> str:
        plain = name.strip("/").replace(":", "-")
        return f"grp:{plain}" if name in self.groups else f"src.{plain}"

    def row(self, ptype: str, *values: str) -> str:
        if ptype == "g":
            member, role, *domain = values
            return f"g, {self.subject(member)}, {self.subject(role)}, {domain[0] if domain else 'all'}"
        if ptype == "g2":
            return f"g2, {self.object(values[0])}, {self.object(values[1])}"
        has = dict(zip(self.columns, values, strict=False))
        subject = self.subject(has["sub"]) if "sub" in has else "*"
        condition = has.get("sub_rule", "1 == 1").replace("r.sub.", "r.args.")
        thing, act = self.object(has.get("obj", "any")), ACTIONS[has["act"]]
        return (
            f"p, {subject}, {has.get('dom', 'all')}, {thing}, {act}, {condition}, {has.get('eft', 'allow')}"
        )

    def asked(self, values: list[Any]) -> tuple[str, str, str, str, dict[str, Any], dict[str, Any]]:
        has = dict(zip(self.request, values, strict=True))
        who = has.get("sub", "anyone")
        args: dict[str, Any] = who if isinstance(who, dict) else {}
        subject = "user:anyone" if args else f"user:{who}"
        thing = self.object(has.get("obj", "any"))
        return subject, has.get("dom", "all"), thing, ACTIONS[has["act"]], args, {}


@pytest.mark.parametrize("name", CASES)
def test_a_published_policy_is_answered_as_published(name: str) -> None:
    case = CASES[name]
    ours = Translation(case)
    policy = load_text("\n".join([*ours.rows, SOMETHING]))
    stock = StockPolicy(policy)
    model = casbin.Enforcer.new_model(text=as_file(MODELS[case["model"]]["define"]))
    original = casbin.Enforcer(model, StringAdapter("\n".join(case["policy"])))
    for *request, expected in case["answers"]:
        as_objects = [SimpleNamespace(**value) if isinstance(value, dict) else value for value in request]
        assert original.enforce(*as_objects) is expected, request
        assert policy.allowed(*ours.asked(request)).allowed is expected, request
        assert stock.allowed(*ours.asked(request)).allowed is expected, request


@pytest.mark.parametrize("name", REFUSED)
def test_a_published_model_of_another_family_is_refused_with_the_message_that_is_listed(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "model.conf"
    path.write_text(as_file(REFUSED[name]["define"]))
    with pytest.raises(PolicyError) as refusal:
        load_text(SOMETHING, model=path)
    problems = refusal.value.problems
    assert REFUSED[name]["refused"] in [problem.message for problem in problems]
    assert {problem.code for problem in problems} == {"bad-model"}
    assert all(problem.line >= 1 and problem.fix for problem in problems)


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(REFUSED)))
def test_the_matcher_of_a_published_model_of_our_family_is_understood(name: str) -> None:
    assert parse_model(as_file(MODELS[name]["define"]), "model.conf").tables["p"].conjuncts


@pytest.mark.parametrize(("key", "pattern", "matches"), STRINGS["matchers"]["keyMatch"])
def test_keymatch_answers_as_published(key: str, pattern: str, matches: bool) -> None:
    policy = load_text(f"p, user:ann, all, a.b, execute, keyMatch(r.args.key, '{pattern}'), allow")
    for engine in (policy, StockPolicy(policy)):
        assert engine.allowed("user:ann", "all", "a.b", "execute", {"key": key}, {}).allowed is matches


def test_what_follows_the_star_of_keymatch_is_refused() -> None:
    with pytest.raises(PolicyError, match="Casbin ignores what follows the first"):
        load_text("p, user:ann, all, a.b, execute, keyMatch(r.args.key, '/foo*/bar'), allow")


@pytest.mark.parametrize("function", STRINGS["not offered"])
def test_a_matching_function_that_is_not_offered_is_refused(function: str) -> None:
    with pytest.raises(PolicyError, match=f"unknown function `{function}`"):
        load_text(f"p, user:ann, all, a.b, execute, {function}(r.args.key, '/foo'), allow")
