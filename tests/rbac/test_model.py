"""Model files: the shipped one, others of its family, and what is refused."""

from __future__ import annotations

from pathlib import Path

import casbin
import pytest

from remit_rbac import PolicyError, load_files
from remit_rbac.model import SHIPPED, Conjunct, Constant, Equal, Member, Prefix, read_model

POLICY = "p, agent:bot, acme, pay.refund, execute, 1 == 1, allow\ng3, agent:bot, user:ann, acme\n"


def refusal(folder: Path, old: str, new: str) -> str:
    """Change the shipped model and say why it is refused."""
    text = SHIPPED.read_text()
    assert old in text
    model, policy = folder / "model.conf", folder / "policy.csv"
    model.write_text(text.replace(old, new))
    policy.write_text(POLICY)
    with pytest.raises(PolicyError) as error:
        load_files(model, [policy])
    assert all(problem.code == "bad-model" for problem in error.value.problems)
    return str(error.value)


def test_the_shipped_model_loads_in_stock_casbin_and_is_understood():
    model = read_model(None)
    assert model.request == ("sub", "dom", "tool", "act", "args", "ctx")
    assert dict(model.graphs) == {"g": 3, "g2": 2, "g3": 3}
    assert model.tables["p"].condition == model.tables["p2"].condition == "cond"
    assert model.tables["p"].conjuncts == (
        Conjunct(column="dom", lookups=(Constant("*"), Equal("dom"))),
        Conjunct(column="act", lookups=(Constant("*"), Equal("act"))),
        Conjunct(column="tool", lookups=(Prefix("tool"), Member("g2", "tool", None))),
        Conjunct(column="sub", lookups=(Prefix("sub"), Member("g", "sub", "dom"))),
    )
    stock = casbin.Enforcer.new_model(path=str(SHIPPED))
    assert list(stock["p"]) == ["p", "p2"]
    assert list(stock["g"]) == ["g", "g2", "g3"]


def test_lines_may_be_continued_and_commented_as_casbin_does(tmp_path: Path):
    text = (
        SHIPPED.read_text()
        .replace("(p.dom ==", "\\\n  (p.dom ==", 1)
        .replace("[matchers]", "; a note\n[matchers]")
        .replace("eval(p.cond)", "eval(p.cond) # the rest")
    )
    path = tmp_path / "model.conf"
    path.write_text(text)
    assert read_model(path).canonical == read_model(None).canonical
    assert list(casbin.Enforcer.new_model(path=str(path))["m"]) == ["m", "m2"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("&& !some(where (p.eft == deny))", "", "a deny must win"),
        ("e = some(where (p.eft == allow)) && ", "e = ", "a deny must win"),
        (" && eval(p.cond)", "", "ignores the conditions"),
        (" && eval(p.cond)", " || eval(p.cond)", "not understood"),
        ('(p.dom == "*" || r.dom == p.dom) && (p.act == "*"', '(p.act == "*"', "nothing compares p.dom"),
        ("eval(p.cond)", "eval(p.sub) && eval(p.cond)", "stands once"),
        ("eval(p.cond)", "eval(r.args) && eval(p.cond)", "takes a column"),
        ("eval(p.cond)", 'r.ctx.env == "prod" && eval(p.cond)', "not understood"),
        ("eval(p.cond)", "r.sub == r.dom && eval(p.cond)", "not understood"),
        ("eval(p.cond)", 'p.eft == "allow" && eval(p.cond)', "something else than it is about"),
        ('p.dom == "*"', 'p.dom == "acme"', "something else than it is about"),
        ("keyMatch(r.sub, p.sub)", "keyMatch(r.tool, p.sub)", "something else than it is about"),
        ("g(r.sub, p.sub, r.dom)", "g3(r.sub, p.sub, r.dom)", "something else than it is about"),
        ("g(r.sub, p.sub, r.dom)", "g(r.sub, p.sub, r.act)", "something else than it is about"),
        ('p.dom == "*" ||', 'p.sub == "user:root" ||', "one column"),
        (
            "keyMatch(r.tool, p.tool)",
            "regexMatch(r.tool, p.tool)",
            "use keyMatch: it matches beginnings only",
        ),
        ("keyMatch(r.tool, p.tool)", "keyMatch2(r.tool, p.tool)", "use keyMatch"),
        ("g(r.sub, p.sub, r.dom)", "g(r.sub, p.sub)", "not understood"),
        ("g(r.sub, p.sub, r.dom)", 'g(r.sub, p.sub, "acme")', "not understood"),
        ("g(r.sub, p.sub, r.dom)", "g4(r.sub, p.sub, r.dom)", "unknown function `g4`"),
        ("(p.dom ==", "!(p.dom ==", "not understood"),
        ("r.dom == p.dom", "r.dom != p.dom", "not understood"),
        ("m = (p.dom", "m = ((p.dom", "is not closed"),
        ("r = sub, dom, tool, act, args, ctx", "r = sub, dom, tool, act, args", "other fields"),
        ("p = sub, dom, tool, act, cond, eft", "p = sub, tool, act, cond, eft, dom", "these columns"),
        ("p2 = sub, dom, tool, act, cond, duty", "p2 = sub, dom, tool, act, cond, eft", "these columns"),
        ("g3 = _, _, _", "g3 = _, _", "three columns"),
        ("g = _, _, _", "g = _, _, _, _", "a role definition is"),
        ("g = _, _, _", "g = _, _, (_, _)", "a role definition is"),
        ("g3 = _, _, _", "", "does not define g3"),
        ("g2 = _, _\n", "", "unknown function `g2`"),
        ("[matchers]", "[matcher]", "unknown section"),
        ("[matchers]", "", "does not belong into"),
        ("r = sub", "r2 = sub", "does not define r"),
        ("r = sub", "r = sub\nr = sub", "defined twice"),
        ("r = sub", "r2 = sub\nr = sub", "nothing uses r2"),
        ("p2 = sub, dom, tool, act, cond, duty", "", "there is no p2 for this matcher"),
        ("[role_definition]", "p3 = sub\n[role_definition]", "nothing uses p3"),
        ("r = sub, dom", "r sub, dom", "expected `name = definition`"),
        ("args, ctx", "args, ctx # note", "comments go on their own line"),
        ('p.dom == "*"', 'p.dom == "#"', "not closed"),
        ("r = sub", "r = \\\n\nx = sub", "ends in"),
    ],
)
def test_a_model_that_is_not_understood_is_refused_and_never_approximated(
    tmp_path: Path, old: str, new: str, reason: str
):
    report = refusal(tmp_path, old, new)
    assert reason in report
    assert f"{tmp_path}/model.conf:" in report


def test_the_report_points_at_the_part_that_is_not_understood(tmp_path: Path):
    report = refusal(tmp_path, "keyMatch(r.sub, p.sub)", "keyMatch(p.sub, r.sub)")
    line = next(line for line in report.split("\n") if line.strip().startswith("m = "))
    caret = report.split("\n")[report.split("\n").index(line) + 1]
    assert line[caret.index("^") :].startswith("keyMatch(p.sub, r.sub)")


def test_a_model_without_duties_and_tool_groups_is_of_the_family(tmp_path: Path):
    text = SHIPPED.read_text()
    text = "\n".join(line for line in text.split("\n") if not line.startswith(("p2 =", "m2 =", "g2 =")))
    model, policy = tmp_path / "model.conf", tmp_path / "policy.csv"
    model.write_text(text.replace(" || g2(r.tool, p.tool)", ""))
    policy.write_text(POLICY)
    assert load_files(model, [policy]).model.graphs == {"g": 3, "g3": 3}
