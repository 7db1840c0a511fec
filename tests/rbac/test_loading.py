"""Loading policies: what is refused, where it points, and what makes two policies the same."""

from __future__ import annotations

import random
from pathlib import Path

import casbin
import pytest
from casbin.persist.adapters.asyncio import AsyncFileAdapter
from tests.rbac.build import a_policy, ask, refused

from remit_rbac import (
    CODES,
    Layer,
    Policy,
    PolicyError,
    Rung,
    load_files,
    load_layers,
    load_rows,
    load_text,
)
from remit_rbac.model import SHIPPED
from remit_rbac.sources import adapter_rows

ALLOW = "p, *, acme, pay.refund, execute, 1 == 1, allow"


@pytest.mark.parametrize(
    ("row", "code", "column"),
    [
        ("p, *, acme, pay.refund, execute, 1 == 1, Deny", "bad-effect", 42),
        ("p, *, acme, pay.refund, execute, 1 == 1, deny # never", "bad-effect", 42),
        ("p, *, acme, pay.refund, execute, 1 == 1, require_approval", "bad-effect", 42),
        ("P, *, acme, pay.refund, execute, 1 == 1, deny", "unknown-row-type", 1),
        ("p3, *, acme, pay.refund, execute, 1 == 1, deny", "unknown-row-type", 1),
        ("policy, *, acme, pay.refund, execute, 1 == 1, deny", "unknown-row-type", 1),
        ("g4, agent:a, role:b, acme", "unknown-row-type", 1),
        (", *, acme, pay.refund, execute, 1 == 1, deny", "unknown-row-type", 1),
        ("p, *, acme, pay.refund, execute, deny", "column-count", 34),
        ("p, *, acme, pay.refund, execute, 1 == 1, deny, x", "column-count", 48),
        ("g, agent:a, role:b", "column-count", 13),
        ("g2, pay.refund, grp:money, acme", "column-count", 28),
        ("p, , acme, pay.refund, execute, 1 == 1, deny", "empty-column", 4),
        ("p, *, , pay.refund, execute, 1 == 1, deny", "empty-column", 7),
        ("p, *, acme, pay.refund, execute, , deny", "empty-column", 34),
        ("p, bot, acme, pay.refund, execute, 1 == 1, deny", "bad-subject", 4),
        ("p, agent:, acme, pay.refund, execute, 1 == 1, deny", "bad-subject", 4),
        ("p, agent*, acme, pay.refund, execute, 1 == 1, deny", "bad-subject", 4),
        ("p, agent:*x, acme, pay.refund, execute, 1 == 1, deny", "bad-subject", 4),
        ("p, agent:a b, acme, pay.refund, execute, 1 == 1, deny", "bad-subject", 4),
        ("p, role:*, acme, pay.refund, execute, 1 == 1, deny", "bad-subject", 4),
        ("p, role:ops*, acme, pay.refund, execute, 1 == 1, deny", "bad-subject", 4),
        ("p, *, ac me, pay.refund, execute, 1 == 1, deny", "bad-tenant", 7),
        ("p, *, acme*, pay.refund, execute, 1 == 1, deny", "bad-tenant", 7),
        ("p, *, acme, refund, execute, 1 == 1, deny", "bad-tool", 13),
        ("p, *, acme, pay*, execute, 1 == 1, deny", "bad-tool", 13),
        ("p, *, acme, pay.*_readonly, execute, 1 == 1, deny", "bad-tool", 13),
        ("p, *, acme, pay:refund, execute, 1 == 1, deny", "bad-tool", 13),
        ("p, *, acme, .refund, execute, 1 == 1, deny", "bad-tool", 13),
        ("p, *, acme, pay.refund, excute, 1 == 1, deny", "bad-action", 25),
        ("p, *, acme, pay.refund, Execute, 1 == 1, deny", "bad-action", 25),
        ("p2, *, acme, pay.refund, recommend, 1 == 1, approvals=0", "bad-duty", 45),
        ("p2, *, acme, pay.refund, execute, 1 == 1, approvals=2", "bad-duty", 43),
        ("p2, *, acme, pay.refund, *, 1 == 1, approvals=2", "bad-duty", 37),
        ("p2, *, acme, pay.refund, undo, 1 == 1, confirm", "bad-duty", 40),
        ("p2, *, acme, pay.refund, approve, 1 == 1, approvals=2", "bad-action", 26),
        ("p2, *, acme, pay.refund, list, 1 == 1, approvals=2", "bad-action", 26),
        ("p2, *, acme, pay.refund, recommend, 1 == 1, approvals", "bad-duty", 45),
        ("p2, *, acme, pay.refund, recommend, 1 == 1, approvals=two", "bad-duty", 45),
        ("p2, *, acme, pay.refund, execute, 1 == 1, Redact=args.x", "bad-duty", 43),
        ("p2, *, acme, pay.refund, execute, 1 == 1, redcat=args.x", "bad-duty", 43),
        ("p2, *, acme, pay.refund, execute, 1 == 1, redact", "bad-duty", 43),
        ("p2, *, acme, pay.refund, execute, 1 == 1, redact=args", "bad-duty", 43),
        ("p2, *, acme, pay.refund, execute, 1 == 1, redact=card", "bad-duty", 43),
        ("p2, *, acme, pay.refund, execute, 1 == 1, redact=r.args.card", "bad-duty", 43),
        ("p2, *, acme, pay.refund, execute, 1 == 1, redact=args.lines[0].card", "bad-duty", 43),
        ("p2, *, acme, pay.refund, execute, 1 == 1, redact=args.a|b", "bad-duty", 43),
        ("p2, *, acme, pay.refund, execute, 1 == 1, redact=args.a..b", "bad-duty", 43),
        ("p2, *, acme, pay.refund, execute, 1 == 1, confirm=yes", "bad-duty", 43),
        ("p2, *, acme, pay.refund, execute, 1 == 1, quota=refunds:50/day", "bad-duty", 43),
        ("p2, *, acme, pay.refund, execute, 1 == 1, expire=args.hours", "bad-duty", 43),
        ("g, grp:money, role:b, acme", "bad-member", 4),
        ("g, agent:*, role:b, acme", "bad-member", 4),
        ("g, agent:a, b, acme", "bad-role", 13),
        ("g, agent:a, role:b, *", "bad-tenant", 21),
        ("g2, pay.*, grp:money", "bad-member", 5),
        ("g2, pay.refund, money", "bad-group", 17),
        ("g3, user:ann, user:bob, acme", "bad-delegation", 5),
        ("g3, agent:bot, agent:bot2, acme", "bad-delegation", 16),
        ("g3, agent:bot, user:ann, *", "bad-tenant", 26),
        ("p, agent:cafe\u0301, acme, pay.refund, execute, 1 == 1, deny", "not-nfc", 4),
        ("p, agent:" + "a" * 260 + ", acme, pay.refund, execute, 1 == 1, deny", "long-value", 4),
        ("p, *, acme, pay.refund, execute, r.args.a = 1, deny", "bad-condition", 43),
        ("p, *, acme, pay.refund, execute, r.args.a + 1, deny", "bad-condition", 34),
        ("p, *, acme, pay.refund, execute, 'x', deny", "bad-condition", 34),
        ("p, *, acme, pay.refund, execute, p.sub == 'x', deny", "bad-condition", 34),
        ("p, *, acme, pay.refund, execute, r.args == 'x', deny", "bad-condition", 34),
        ("p, *, acme, pay.refund, execute, r.other.x == 'x', deny", "bad-condition", 34),
        ("p, *, acme, pay.refund, execute, r.sub.name == 'x', deny", "bad-condition", 34),
        ('p, *, acme, pay.refund, execute, r.args.a == "x", deny', "double-quote", 46),
        ("p, *, acme, pay.refund, execute, r.args.a == ')', deny", "unpaired-bracket", 47),
        ("p, *, acme, pay.refund, execute, (r.args.a == 1, deny", "unpaired-bracket", 34),
        ("p, *, acme, pay.refund, execute, (r.args.a == 1], deny", "unpaired-bracket", 48),
        ("p, *, acme, pay.re\u200bfund, execute, 1 == 1, deny", "invisible-character", 19),
        ("p, *, acme, pay.refund, execute, 1 == 1,\x00 deny", "invisible-character", 41),
        ("\ufeffp, *, acme, pay.refund, execute, 1 == 1, deny", "invisible-character", 1),
    ],
)
def test_a_row_that_casbin_would_misread_is_refused_where_it_is_wrong(row: str, code: str, column: int):
    problems = refused(ALLOW, row)
    assert [(problem.code, problem.line, problem.column) for problem in problems] == [(code, 2, column)]
    assert problems[0].text == row
    assert problems[0].message
    assert all(problem.fix for problem in problems)


def test_of_a_very_long_line_the_place_is_shown():
    condition = " && ".join(f"r.args.a{n} == {n}" for n in range(60)) + " && r.args.b = 1"
    (problem,) = refused(ALLOW, f"p, *, acme, pay.refund, execute, {condition}, deny")
    _, excerpt, caret, _ = str(problem).split("\n")
    assert len(excerpt) < 410
    assert excerpt[caret.index("^") :].startswith("= 1, deny")


def test_a_policy_that_grants_nothing_is_told_of_its_own_file():
    own = Layer(file="mine.csv", content=b"p, *, acme, pay.refund, execute, 1 == 1, deny")
    for layers, file in (([own], "mine.csv"), ([], "policy")):
        with pytest.raises(PolicyError) as refusal:
            load_layers(layers)
        assert [problem.file for problem in refusal.value.problems] == [file]


def test_all_problems_are_named_at_once_and_the_report_can_be_read():
    with pytest.raises(PolicyError) as refusal:
        load_text(f"{ALLOW}\np, *, acme, pay.refund, execute, 1 == 1, Deny\nx, y\n", file="bad.csv")
    assert [problem.line for problem in refusal.value.problems] == [2, 3]
    report = str(refusal.value).split("\n")
    assert report[0] == "bad.csv:2:42: error: an effect is allow or deny [bad-effect]"
    assert report[1] == "    p, *, acme, pay.refund, execute, 1 == 1, Deny"
    assert report[2].index("^") == report[1].index("Deny")
    assert report[3].startswith("    fix: write it in lower case")


def test_every_code_of_a_problem_is_explained():
    assert all(text.endswith(".") and text[0].isupper() for text in CODES.values())


def test_bytes_that_are_not_text_are_refused(tmp_path: Path):
    path = tmp_path / "policy.csv"
    path.write_bytes(ALLOW.encode() + b"\np, agent:\xff, acme, pay.refund, execute, 1 == 1, deny\n")
    with pytest.raises(PolicyError) as refusal:
        load_files(None, [path])
    assert [problem.code for problem in refusal.value.problems] == ["not-utf8"]


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "g, agent:a, role:b, acme", ALLOW.replace("allow", "deny")]
)
def test_a_policy_that_grants_nothing_is_refused(text: str):
    with pytest.raises(PolicyError, match="grants-nothing"):
        load_text(text)


def test_comments_blank_lines_tabs_and_windows_line_ends_are_as_in_casbin(tmp_path: Path):
    text = f"# who\r\n\r\n   # what\r\n\t{ALLOW}\t\r\ng3, agent:bot, user:ann, acme"
    path = tmp_path / "policy.csv"
    path.write_bytes(text.encode())
    policy = load_files(None, [path])
    assert ask(policy).rung is Rung.EXECUTE
    stock = casbin.Enforcer(str(SHIPPED), str(path))
    assert stock.enforce("agent:bot", "acme", "pay.refund", "execute", {}, {})


def test_commas_inside_brackets_belong_to_the_condition_as_in_casbin(tmp_path: Path):
    path = tmp_path / "policy.csv"
    path.write_text("p, *, acme, pay.refund, execute, r.args.to in ('US', 'CA') && max(1, 2) == 2, allow\n")
    assert load_files(None, [path]).rules["p"][0].values == tuple(
        casbin.Enforcer(str(SHIPPED), str(path)).get_policy()[0]
    )


def test_a_membership_may_not_be_a_circle():
    problems = refused(ALLOW, "g, role:a, role:b, acme", "g, role:b, role:c, acme", "g, role:c, role:a, acme")
    assert [problem.code for problem in problems] == ["role-circle"]
    assert "role:a < role:b < role:c < role:a" in problems[0].message
    assert refused(ALLOW, "g, role:a, role:a, acme")[0].code == "role-circle"
    assert refused(ALLOW, "g2, grp:a, grp:b", "g2, grp:b, grp:a")[0].code == "role-circle"
    # The same rows in two tenants are no circle.
    a_policy(ALLOW, "g, role:a, role:b, acme", "g, role:b, role:a, bank")


def test_a_membership_may_be_as_deep_as_casbin_follows_and_no_deeper():
    chain = [f"g, role:r{n}, role:r{n + 1}, acme" for n in range(1, 9)]
    deny = "p, role:r9, acme, pay.refund, execute, 1 == 1, deny"
    policy = a_policy(ALLOW, deny, "g, agent:bot, role:r1, acme", *chain)
    assert ask(policy).agent_rung is Rung.DENY
    deeper = [*chain, "g, role:r0, role:r1, acme", "g, agent:bot, role:r0, acme"]
    random.Random(1).shuffle(deeper)
    assert [problem.code for problem in refused(ALLOW, deny, *deeper)] == ["role-depth"]


def test_the_version_depends_on_what_is_decided_and_on_nothing_else(tmp_path: Path):
    rows = [ALLOW, "g, agent:bot, role:a, acme", "p, role:a, acme, pay.*, advise, 1 == 1, allow"]
    version = a_policy(*rows).version
    assert len(version) == 64
    assert a_policy("# a note", *reversed(rows), rows[0]).version == version
    assert a_policy(*(row.replace(", ", ",  ") for row in rows)).version == version
    spaced = tmp_path / "model.conf"
    spaced.write_text(SHIPPED.read_text().replace(" && ", "  &&  ").replace("# sub:", "# who:"))
    assert a_policy(*rows, model=spaced).version == version
    assert a_policy(*rows, "g, agent:bot, role:b, acme").version != version
    assert a_policy(*(row.replace("advise", "execute") for row in rows)).version != version
    other = tmp_path / "other.conf"
    other.write_text(SHIPPED.read_text().replace('p.act == "*" || ', ""))
    assert a_policy(*rows, model=other).version != version


def test_files_are_merged_in_order_and_rows_know_their_file(tmp_path: Path):
    first, second = tmp_path / "policy.a.csv", tmp_path / "policy.b.csv"
    first.write_text(f"{ALLOW}\ng3, agent:bot, user:ann, acme\n")
    second.write_text("\np, *, *, *, execute, r.args.amount > 5, deny\n")
    policy = load_files(None, [first, second])
    denied = ask(policy, amount=6)
    assert [(row.file, row.line) for row in denied.rows] == [(str(second), 2)]
    assert [(row.file, row.line) for row in ask(policy, amount=5).rows] == [(str(first), 1)]


def test_rows_from_elsewhere_are_checked_like_those_of_a_file():
    good = [
        ["p", "*", "acme", "pay.refund", "execute", "1 == 1", "allow"],
        ["g3", "agent:bot", "user:ann", "acme"],
    ]
    policy = load_rows(good, source="table casbin_rule")
    assert [(row.file, row.line) for row in ask(policy).rows] == [("table casbin_rule", 1)]
    for values, code in [
        (["p", "*", "acme", "pay.refund", "execute", "1 == 1", "deny "], "untrimmed-value"),
        (["p", "*", "acme", "pay.refund", "execute", "r.args.a == 'x,y'", "deny"], "column-count"),
        (["p", "*", "acme", "pay.refund", "execute", "1 == 1", "deny", "x"], "column-count"),
        (["p", "*", "acme", "", "execute", "1 == 1", "deny"], "empty-column"),
        (["p9", "*", "acme", "pay.refund", "execute", "1 == 1", "deny"], "unknown-row-type"),
    ]:
        with pytest.raises(PolicyError) as refusal:
            load_rows([*good, values], source="table")
        assert [(problem.code, problem.line) for problem in refusal.value.problems] == [(code, 3)]


def test_what_is_fine_for_a_call_is_not_taken_for_an_undo_or_an_approval():
    rows = [
        "p2, *, acme, pay.refund, execute, 1 == 1, confirm",
        "p2, *, acme, pay.refund, undo, 1 == 1, confirm",
        "p, user:sue, acme, pay.refund, approve, 1 == 1, allow",
        "p2, *, acme, pay.refund, approve, 1 == 1, confirm",
    ]
    with pytest.raises(PolicyError) as refusal:
        load_text("\n".join([ALLOW, *rows]))
    found = [(problem.line, problem.code) for problem in refusal.value.problems]
    assert found == [(3, "bad-duty"), (5, "bad-action")]


@pytest.mark.parametrize(
    ("duty", "instead"), [("quota=n:5/day", "budget"), ("expire=1", "approvals.use_with")]
)
def test_a_duty_of_other_engines_is_refused_with_what_there_is_instead(duty: str, instead: str):
    with pytest.raises(PolicyError) as refusal:
        load_text(f"{ALLOW}\np2, *, acme, pay.refund, execute, 1 == 1, {duty}")
    assert instead in refusal.value.problems[0].fix


async def test_an_adapter_is_waited_for_also_within_an_event_loop(tmp_path: Path):
    path = tmp_path / "policy.csv"
    path.write_text(f"g3, agent:bot, user:ann, acme\n{ALLOW}\np, *, acme, pay.x, execute, 1 == 1, deny\n")
    rows = adapter_rows(AsyncFileAdapter(str(path)))
    assert [", ".join(row) for row in rows] == path.read_text().splitlines()
    with pytest.raises(RuntimeError, match="invalid file path"):
        adapter_rows(AsyncFileAdapter(str(tmp_path / "nothing.csv")))


@pytest.mark.parametrize("row", [["#p", "*", "acme", "pay.refund", "execute", "1 == 1", "deny"], [], [""]])
def test_a_stored_row_that_text_would_lose_is_refused(row: list[str]):
    with pytest.raises(PolicyError) as refusal:
        load_rows([ALLOW.split(", "), row], source="table")
    assert [(problem.code, problem.line) for problem in refusal.value.problems] == [("unknown-row-type", 2)]


def test_any_casbin_adapter_is_a_source_and_its_unknown_rows_are_not_lost(tmp_path: Path):
    path = tmp_path / "policy.csv"
    path.write_text(f"{ALLOW}\ng3, agent:bot, user:ann, acme\n")
    adapter = casbin.persist.adapters.file_adapter.FileAdapter(str(path))
    assert ask(load_rows(adapter_rows(adapter), source="adapter")).rung is Rung.EXECUTE
    path.write_text(f"{ALLOW}\nq, *, acme, pay.refund, execute, 1 == 1, deny\n")
    with pytest.raises(PolicyError, match="unknown-row-type"):
        load_rows(adapter_rows(adapter), source="adapter")


def layered(base: str, **tenants: str) -> Policy:
    return load_layers(
        [
            Layer(file="base.csv", content=base.encode()),
            *(
                Layer(file=f"{name}.csv", content=text.encode(), tenant=name)
                for name, text in tenants.items()
            ),
        ]
    )


BASE = (
    "p, role:clerk, acme, pay.*, execute, 1 == 1, allow\np, agent:*, *, pay.payout, execute, 1 == 1, deny\n"
)


def test_a_tenant_grants_within_what_the_layers_below_do_not_deny():
    policy = layered(
        BASE,
        acme=(
            "p, *, acme, pay.*, execute, 1 == 1, allow\ng, agent:bot, role:clerk, acme\n"
            "g, user:ann, role:clerk, acme\ng3, agent:bot, user:ann, acme\n"
        ),
    )
    assert ask(policy).rung is Rung.EXECUTE
    denied = ask(policy, tool="pay.payout")
    assert (denied.rung, denied.code, denied.limited_by) == (Rung.DENY, "denied_by_rule", "agent")
    assert [row.file for row in denied.rows if "deny" in row.text] == ["base.csv"]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("p, *, bank, pay.refund, execute, 1 == 1, allow", "foreign-tenant"),
        ("p, *, *, pay.refund, execute, 1 == 1, allow", "foreign-tenant"),
        ("p2, *, bank, pay.refund, execute, 1 == 1, confirm", "foreign-tenant"),
        ("g, agent:bot, role:clerk, bank", "foreign-tenant"),
        ("g3, agent:bot, user:ann, bank", "foreign-tenant"),
        ("g2, pay.refund, grp:money", "shared-group"),
    ],
)
def test_a_tenants_file_speaks_about_that_tenant_only(row: str, code: str):
    with pytest.raises(PolicyError) as refusal:
        layered(BASE, acme=f"g, agent:bot, role:clerk, acme\n{row}\n")
    assert [(problem.code, problem.line) for problem in refusal.value.problems] == [(code, 2)]
    assert refusal.value.problems[0].file == "acme.csv"


def test_the_shipped_guardrails_keep_agents_and_those_concerned_from_approving():
    policy = layered(BASE, acme="p, *, acme, pay.*, approve, 1 == 1, allow\ng, user:ann, role:clerk, acme\n")
    request = ("acme", "pay.refund", "approve", {}, {"in_chain": 0})
    assert not policy.allowed("agent:bot", *request).allowed
    assert policy.allowed("user:ann", *request).allowed
    assert policy.approvers("acme", "pay.refund", {}, {}) == ("user:ann",)
    assert policy.approvers("acme", "pay.refund", {}, {}, exclude=["user:ann"]) == ()
    # When nobody says whether the approver is concerned, the row that asks cannot be answered, and denies.
    assert not policy.allowed("user:ann", "acme", "pay.refund", "approve", {}, {}).allowed


def test_a_row_carries_the_comment_right_above_it() -> None:
    policy = load_text(
        """\
# Who is who.

g, user:ann, role:x, acme
g, agent:bot, role:x, acme
g3, agent:bot, user:ann, acme
# About this part.
#
# Reading is free,
# whatever is read.
p, role:x, acme, a.get, execute, 1 == 1, allow
p, role:x, acme, a.put, execute, 1 == 1, allow
"""
    )
    assert [rule.row.note for rule in policy.rules["p"]] == ["Reading is free, whatever is read.", ""]
