"""Casbin's own published cases: its documentation's models and the answers that its test suites expect.

The facts (models, policies, requests, answers) are those of the Casbin project's model tests and of the
gallery of its online editor; the wording here is ours. Their subjects and actions are not those of tool
policies, so the parts below `Policy` are asked: the model reader, the role graphs, the index and the
condition language. What is not of our family must be refused, with a line, and never half understood.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from remit_rbac import EvaluationError, PolicyError
from remit_rbac.conditions import key_match
from remit_rbac.forms import compile_condition
from remit_rbac.index import Index, Row, Rule
from remit_rbac.model import Model, parse_model
from remit_rbac.roles import Link, RoleGraph

ALLOW = "some(where (p.eft == allow))"
ALLOW_NO_DENY = "some(where (p.eft == allow)) && !some(where (p.eft == deny))"


def a_model(
    matcher: str, *, r: str = "sub, obj, act", p: str = "sub, obj, act", e: str = ALLOW, g: str = ""
) -> str:
    roles = f"[role_definition]\n{g}\n" if g else ""
    return (
        f"[request_definition]\nr = {r}\n[policy_definition]\np = {p}\n{roles}"
        f"[policy_effect]\ne = {e}\n[matchers]\nm = {matcher}\n"
    )


@dataclass
class Engine:
    """The least that answers a request from the parts."""

    model: Model
    index: Index

    def allows(self, *request: Any) -> bool:
        record = dict(zip(self.model.request, request, strict=True))
        columns = self.model.tables["p"].columns
        effects = [
            rule.values[columns.index("eft")] if "eft" in columns else "allow"
            for rule in self.index.find(record)
            if _holds(rule, record)
        ]
        return "allow" in effects and "deny" not in effects


def _holds(rule: Rule, record: dict[str, Any]) -> bool:
    try:
        return rule.condition is None or rule.condition.evaluate(record) is True
    except EvaluationError:
        return False


def an_engine(model_text: str, policy: str) -> Engine:
    model = parse_model(model_text, "model.conf")
    table = model.tables["p"]
    rules: list[Rule] = []
    links: dict[str, list[Link]] = {name: [] for name in model.graphs}
    for number, line in enumerate(filter(None, (line.strip() for line in policy.split("\n")))):
        ptype, *values = (value.strip() for value in line.split(","))
        if ptype in links:
            links[ptype].append(Link(values[0], values[1], values[2] if len(values) > 2 else ""))
            continue
        text = values[table.columns.index(table.condition)] if table.condition else "1 == 1"
        # Published rules read attributes of r.sub; ours read those of r.args.
        condition = compile_condition(re.sub(r"\br\.sub\.", "r.args.", text))
        row = Row(file="policy.csv", line=number, text=line)
        rules.append(Rule(row=row, values=tuple(values), condition=condition, number=number))
    graphs = {name: RoleGraph(found) for name, found in links.items()}
    return Engine(model, Index(table, rules, graphs))


EQUAL = "r.sub == p.sub && r.obj == p.obj && r.act == p.act"
BASIC_POLICY = "p, alice, data1, read\np, bob, data2, write"
ROLES_POLICY = (
    f"{BASIC_POLICY}\np, data2_admin, data2, read\np, data2_admin, data2, write\ng, alice, data2_admin"
)
DOMAIN_POLICY = """
p, admin, domain1, data1, read
p, admin, domain1, data1, write
p, admin, domain2, data2, read
p, admin, domain2, data2, write
g, alice, admin, domain1
g, bob, admin, domain2
"""
RESOURCE_POLICY = """
p, alice, data1, read
p, bob, data2, write
p, data_group_admin, data_group, write
g, alice, data_group_admin
g2, data1, data_group
g2, data2, data_group
"""
DENY_POLICY = """
p, alice, data1, read, allow
p, bob, data2, write, allow
p, data2_admin, data2, read, allow
p, data2_admin, data2, write, allow
p, alice, data2, write, deny
g, alice, data2_admin
"""
HIERARCHY_POLICY = """
p, alice, data1, read
p, bob, data2, write
p, data1_admin, data1, read
p, data1_admin, data1, write
p, data2_admin, data2, read
p, data2_admin, data2, write
g, alice, admin
g, admin, data1_admin
g, admin, data2_admin
"""
DOMAINS = a_model(
    "g(r.sub, p.sub, r.dom) && r.dom == p.dom && r.obj == p.obj && r.act == p.act",
    r="sub, dom, obj, act",
    p="sub, dom, obj, act",
    g="g = _, _, _",
)
ROLES = a_model("g(r.sub, p.sub) && r.obj == p.obj && r.act == p.act", g="g = _, _")
#: In the order data1 read, data1 write, data2 read, data2 write.
OBJECTS = [("data1", "read"), ("data1", "write"), ("data2", "read"), ("data2", "write")]


@pytest.mark.parametrize(
    ("model", "policy", "alice", "bob"),
    [
        (a_model(EQUAL), BASIC_POLICY, "1000", "0001"),
        (a_model(EQUAL.replace(" ", "")), BASIC_POLICY, "1000", "0001"),
        (a_model(EQUAL + " # a comment"), BASIC_POLICY, "1000", "0001"),
        (a_model(EQUAL.replace("&& ", "&& \\\n  ")), BASIC_POLICY, "1000", "0001"),
        (a_model(EQUAL), "", "0000", "0000"),
        (ROLES, ROLES_POLICY, "1011", "0001"),
        (ROLES, HIERARCHY_POLICY, "1111", "0001"),
        (
            a_model("g(r.sub, p.sub) && g2(r.obj, p.obj) && r.act == p.act", g="g = _, _\ng2 = _, _"),
            RESOURCE_POLICY,
            "1101",
            "0001",
        ),
        (
            a_model(
                "g(r.sub, p.sub) && r.obj == p.obj && r.act == p.act",
                p="sub, obj, act, eft",
                e=ALLOW_NO_DENY,
                g="g = _, _",
            ),
            DENY_POLICY,
            "1010",
            "0001",
        ),
    ],
)
def test_users_may_what_casbins_tests_expect(model: str, policy: str, alice: str, bob: str):
    engine = an_engine(model, policy)
    for user, answers in (("alice", alice), ("bob", bob)):
        assert "".join(str(int(engine.allows(user, *pair))) for pair in OBJECTS) == answers


def test_a_policy_without_users_or_without_resources_is_answered():
    without_users = an_engine(
        a_model("r.obj == p.obj && r.act == p.act", r="obj, act", p="obj, act"),
        "p, data1, read\np, data2, write",
    )
    assert [without_users.allows(*pair) for pair in OBJECTS] == [True, False, False, True]
    without_resources = an_engine(
        a_model("r.sub == p.sub && r.act == p.act", r="sub, act", p="sub, act"),
        "p, alice, read\np, bob, write",
    )
    pairs = [("alice", "read"), ("alice", "write"), ("bob", "read"), ("bob", "write")]
    assert [without_resources.allows(*pair) for pair in pairs] == [True, False, False, True]


@pytest.mark.parametrize(
    ("user", "domain", "answers"),
    [
        ("alice", "domain1", "1100"),
        ("alice", "domain2", "0000"),
        ("bob", "domain2", "0011"),
        ("bob", "domain1", "0000"),
    ],
)
def test_roles_in_domains_are_those_casbins_tests_expect(user: str, domain: str, answers: str):
    engine = an_engine(DOMAINS, DOMAIN_POLICY)
    assert "".join(str(int(engine.allows(user, domain, *pair))) for pair in OBJECTS) == answers


@pytest.mark.parametrize(("age", "answers"), [(16, "0001"), (20, "1001"), (65, "1000")])
def test_attribute_rules_answer_as_casbins_tests_expect(age: int, answers: str):
    engine = an_engine(
        a_model(
            "eval(p.sub_rule) && r.obj == p.obj && r.act == p.act", r="args, obj, act", p="sub_rule, obj, act"
        ),
        "p, r.sub.Age > 18, /data1, read\np, r.sub.Age < 60, /data2, write",
    )
    pairs = [("/data1", "read"), ("/data1", "write"), ("/data2", "read"), ("/data2", "write")]
    assert "".join(str(int(engine.allows({"Age": age}, *pair))) for pair in pairs) == answers


def test_the_galleries_attribute_rule_is_answered():
    engine = an_engine(
        a_model(
            "eval(p.sub_rule) && r.obj == p.obj && r.act == p.act", r="args, obj, act", p="sub_rule, obj, act"
        ),
        "p, r.sub.Age > 18 && r.sub.Age < 60, /data1, read",
    )
    assert engine.allows({"Age": 30}, "/data1", "read")
    assert not engine.allows({"Age": 60}, "/data1", "read")
    assert not engine.allows({"Age": 18}, "/data1", "read")


def test_the_galleries_deny_override_is_answered():
    engine = an_engine(
        a_model(EQUAL, p="sub, obj, act, eft", e=ALLOW_NO_DENY),
        "p, alice, data1, read, allow\np, alice, data1, read, deny",
    )
    assert not engine.allows("alice", "data1", "read")


@pytest.mark.parametrize(
    ("key", "pattern", "matches"),
    [
        ("/foo", "/foo", True),
        ("/foo", "/foo*", True),
        ("/foo", "/foo/*", False),
        ("/foo/bar", "/foo", False),
        ("/foo/bar", "/foo*", True),
        ("/foo/bar", "/foo/*", True),
        ("/foobar", "/foo", False),
        ("/foobar", "/foo*", True),
        ("/foobar", "/foo/*", False),
    ],
)
def test_keymatch_answers_as_casbins_tests_expect(key: str, pattern: str, matches: bool):
    assert key_match(key, pattern) is matches
    engine = an_engine(a_model("keyMatch(r.obj, p.obj)", r="obj", p="obj"), f"p, {pattern}")
    assert engine.allows(key) is matches


def test_what_follows_the_star_is_ignored_as_in_casbin():
    engine = an_engine(
        a_model("r.sub == p.sub && keyMatch(r.obj, p.obj)", r="sub, obj", p="sub, obj"),
        "p, alice, /foo*\np, bob, /foo*/bar\np, cathy, /foo*x",
    )
    for user in ("alice", "bob", "cathy"):
        assert engine.allows(user, "/foo")
        assert engine.allows(user, "/foo/baz")
        assert not engine.allows(user, "/fo")


#: The paths of Casbin's RESTful example, its actions compared for equality.
KEYMATCH_POLICY = """
p, alice, /alice_data/*, GET
p, alice, /alice_data/resource1, POST
p, bob, /alice_data/resource2, GET
p, bob, /bob_data/*, POST
p, cathy, /cathy_data, GET
p, cathy, /cathy_data, POST
"""


@pytest.mark.parametrize(
    ("user", "answers"),
    [("alice", "11100000"), ("bob", "00100101")],
)
def test_paths_are_matched_as_casbins_tests_expect(user: str, answers: str):
    engine = an_engine(a_model("r.sub == p.sub && keyMatch(r.obj, p.obj) && r.act == p.act"), KEYMATCH_POLICY)
    found = [
        engine.allows(user, f"/{owner}_data/resource{number}", method)
        for owner in ("alice", "bob")
        for number in (1, 2)
        for method in ("GET", "POST")
    ]
    assert "".join(str(int(allowed)) for allowed in found) == answers
    assert engine.allows("cathy", "/cathy_data", "GET")
    assert not engine.allows("cathy", "/cathy_data", "DELETE")


ROLE_LINKS = ["u1 g1", "u2 g1", "u3 g2", "u4 g2", "u4 g3", "g1 g3"]


@pytest.mark.parametrize(
    ("user", "groups"), [("u1", "g1 g3"), ("u2", "g1 g3"), ("u3", "g2"), ("u4", "g2 g3"), ("g1", "g1 g3")]
)
def test_roles_are_inherited_as_casbins_tests_expect(user: str, groups: str):
    graph = RoleGraph(Link(*link.split(), "") for link in ROLE_LINKS)
    assert graph.closure(user, "") == {user, *groups.split()}


def test_roles_in_domains_do_not_mix_as_casbins_tests_expect():
    links = [
        "u1 g1 domain1",
        "u2 g1 domain1",
        "u3 admin domain2",
        "u4 admin domain2",
        "u4 admin domain1",
        "g1 admin domain1",
    ]
    graph = RoleGraph(Link(*link.split()) for link in links)
    assert graph.closure("u1", "domain1") == {"u1", "g1", "admin"}
    assert graph.closure("u1", "domain2") == {"u1"}
    assert graph.closure("u3", "domain1") == {"u3"}
    assert graph.closure("u4", "domain1") == graph.closure("u4", "domain2") == {"u4", "admin"}


REST = "r.sub == p.sub && {}(r.obj, p.obj) && regexMatch(r.act, p.act)"


@pytest.mark.parametrize(
    "model",
    [
        a_model(EQUAL + ' || r.sub == "root"'),
        a_model("r.sub == r.obj.Owner", r="sub, obj", p="sub, obj"),
        a_model("g(r.sub, p.sub) && regexMatch(r.act, p.act)", g="g = _, _"),
        a_model(REST.format("keyMatch")),
        a_model(REST.format("keyMatch2")),
        a_model(REST.format("keyMatch3")),
        a_model(REST.format("keyMatch4")),
        a_model(REST.format("keyMatch5")),
        a_model("r.sub == p.sub && globMatch(r.obj, p.obj) && r.act == p.act"),
        a_model("ipMatch(r.sub, p.sub) && r.obj == p.obj && r.act == p.act"),
        a_model("r.sub == p.sub && keyMatchCustom(r.obj, p.obj) && r.act == p.act"),
        a_model("r.obj == p.obj && r.act == p.act || r.obj in ('data2', 'data3')"),
        a_model("g(r.sub, p.sub) && r.obj == p.obj", g="g = _, _, (_, _)"),
    ],
)
def test_published_models_of_another_family_are_refused_with_a_line(model: str):
    with pytest.raises(PolicyError) as refusal:
        parse_model(model, "model.conf")
    assert all(problem.line > 1 and problem.code == "bad-model" for problem in refusal.value.problems)
