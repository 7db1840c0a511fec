"""Where the policy comes from: layers in files, versions in the database, and what each of them may say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import anyio
import pytest
from casbin.persist.adapters import FileAdapter
from casbin.persist.adapters.asyncio import AsyncFileAdapter
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.builders import a_config, a_database, rows

from remit.audit import verify_events
from remit.audit_decisions import verify_policies
from remit.config import Config
from remit.errors import RemitError, UnknownRecord, WrongState
from remit.journal import open_journal
from remit.policies import PolicyText, files_text, load_policy, load_version
from remit.records import open_records
from remit.versions import Version
from remit_rbac import GUARDRAILS, Layer, Policy, PolicyError, Question, Rung, load_layers

BASE = """\
g, agent:bot, role:clerk, acme
g, user:ann, role:clerk, acme
g3, agent:bot, user:ann, acme
p, role:clerk, acme, shop.buy, execute, r.args.price <= 100, allow
p, *, *, shop.send, execute, 1 == 1, deny
"""
WIDER = BASE.replace("100", "1000")


def a_place(folder: Path, text: str = BASE, **tenants: str) -> Config:
    (folder / "policy.csv").write_text(text)
    for name, own in tenants.items():
        (folder / f"{name}.csv").write_text(own)
    policy = {
        "files": [folder / "policy.csv"],
        "tenants": {name: [folder / f"{name}.csv"] for name in tenants},
    }
    return a_config(folder, policy=policy)


def rung(policy: Policy, tool: str, tenant: str = "acme", **args: int) -> Rung:
    question = Question(tenant=tenant, agent="agent:bot", user="user:ann", tool=tool, args=args, ctx={})
    return policy.decide(question).rung


def a_version(text: PolicyText) -> Version:
    return text.build().version


def test_the_guardrails_are_in_every_policy_and_cannot_be_undone_from_any_layer(tmp_path: Path) -> None:
    row = "p, agent:bot, acme, shop.buy, approve, 1 == 1, allow\n"
    policy = load_policy(a_place(tmp_path, BASE + row, acme=row.replace("agent:bot", "agent:*")))
    answer = policy.allowed("agent:bot", "acme", "shop.buy", "approve", {}, {"in_chain": 0})
    assert not answer.allowed
    assert [str(each) for each in answer.rows] == [
        "built-in guardrails:4: p, agent:*, *, *, approve, 1 == 1, deny"
    ]


def test_a_tenant_adds_to_its_own_and_a_deny_below_holds(tmp_path: Path) -> None:
    own = "p, role:clerk, acme, shop.*, execute, 1 == 1, allow\n"
    policy = load_policy(a_place(tmp_path, acme=own))
    assert rung(policy, "shop.buy", price=5000) is Rung.EXECUTE
    assert rung(policy, "shop.send") is Rung.DENY


def test_a_tenants_file_is_refused_with_its_place_where_it_reaches_further(tmp_path: Path) -> None:
    trespass = "# mine\ng, agent:bot, role:clerk, globex\np, *, *, shop.send, execute, 1 == 1, allow\n"
    with pytest.raises(PolicyError) as refusal:
        load_policy(a_place(tmp_path, acme=trespass))
    told = [(problem.file, problem.line, problem.column) for problem in refusal.value.problems]
    assert told == [(str(tmp_path / "acme.csv"), 2, 27), (str(tmp_path / "acme.csv"), 3, 7)]
    assert all("base policy" in problem.fix for problem in refusal.value.problems)


def test_a_rule_that_reads_what_this_configuration_does_not_set_is_refused(tmp_path: Path) -> None:
    rule = "p, role:clerk, acme, shop.look, execute, r.ctx.moon == 'full', allow\n"
    with pytest.raises(PolicyError, match=r"policy\.csv:6:\d+: error: .*unknown-context"):
        load_policy(a_place(tmp_path, BASE + rule))


@pytest.mark.parametrize(
    ("action", "attribute"),
    [
        ("approve", "run.calls"),
        ("approve", "claim.confidence"),
        ("undo", "in_chain"),
        ("execute", "in_chain"),
    ],
)
def test_a_rule_that_reads_what_its_action_does_not_have_is_refused(
    tmp_path: Path, action: str, attribute: str
) -> None:
    row = f"p, role:clerk, acme, shop.buy, {action}, r.ctx.{attribute} == 1, allow\n"
    with pytest.raises(PolicyError, match=rf"{attribute} is not there when it is about {action}"):
        load_policy(a_place(tmp_path, BASE + row))
    anybody = row.replace(f" {action},", " *,").replace("allow", "deny")
    assert load_policy(a_place(tmp_path, BASE + anybody))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    config = a_place(tmp_path)
    (tmp_path / "policy.csv").unlink()
    with pytest.raises(RemitError, match=r"policy\.csv cannot be read: No such file"):
        load_policy(config)


def kept_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch, rows: str) -> Config:
    """A configuration whose policy is what a pycasbin adapter gives."""
    (folder / "rows.csv").write_text(rows)
    module = ModuleType("rows_of_others")
    module.adapter = lambda: FileAdapter(str(folder / "rows.csv"))  # pyright: ignore[reportAttributeAccessIssue]
    module.broken = lambda: 1 / 0  # pyright: ignore[reportAttributeAccessIssue]
    module.waiting = lambda: AsyncFileAdapter(str(folder / "rows.csv"))  # pyright: ignore[reportAttributeAccessIssue]
    module.waiting_in_vain = lambda: AsyncFileAdapter("")  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "rows_of_others", module)
    return a_config(folder, policy={"adapters": ["rows_of_others:adapter"]})


def test_rows_that_other_programs_keep_are_read_through_their_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = kept_elsewhere(tmp_path, monkeypatch, BASE)
    policy = load_policy(config)
    assert policy.version == load_policy(a_place(tmp_path, BASE)).version
    assert policy.rules["p"][-1].row.file == "rows_of_others:adapter"
    assert PolicyText.from_json(files_text(config).as_json()).build().policy.version == policy.version
    kept_elsewhere(tmp_path, monkeypatch, BASE + "p, role:clerk, acme, shop.buy, execute, 1 == 1, Deny\n")
    with pytest.raises(PolicyError, match=r"rows_of_others:adapter:\d+:\d+: .*bad-effect"):
        load_policy(config)
    for name, why in (
        ("rows_of_others:broken", "ZeroDivisionError"),
        ("rows_of_others:waiting_in_vain", "RuntimeError: invalid file path"),
        ("no_such_module:x", "no_such_module"),
    ):
        with pytest.raises(RemitError, match=why):
            load_policy(a_config(tmp_path, policy={"adapters": [name]}))


def test_rows_keep_the_order_of_an_adapter_that_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backwards = "\n".join(reversed(BASE.splitlines()))
    kept_elsewhere(tmp_path, monkeypatch, backwards)
    policy = load_policy(a_config(tmp_path, policy={"adapters": ["rows_of_others:waiting"]}))
    assert rung(policy, "shop.send") is Rung.DENY
    assert [(str(rule.row)) for rule in policy.rules["p"][-2:]] == [
        f"rows_of_others:waiting:{line}: {text}" for line, text in enumerate(backwards.splitlines()[:2], 1)
    ]


@pytest.mark.parametrize("kept", ["adapter", "waiting"])
def test_a_place_without_rows_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    kept_elsewhere(tmp_path, monkeypatch, "")
    (tmp_path / "policy.csv").write_text(BASE)
    beside = {"files": [tmp_path / "policy.csv"], "adapters": [f"rows_of_others:{kept}"]}
    policy = load_policy(a_config(tmp_path, policy=beside))
    told = [(problem.code, problem.file) for problem in policy.warnings]
    assert ("no-rows", f"rows_of_others:{kept}") in told


def test_the_distribution_that_overwrites_pycasbin_is_not_put_up_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = a_place(tmp_path)
    assert load_policy(config)
    found = tmp_path / "site" / "casbin-1.43.0.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: casbin\nVersion: 1.43.0\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(RemitError, match=r"casbin 1\.43\.0 .* beside pycasbin.*pip uninstall casbin"):
        load_policy(config)


def test_a_model_that_is_not_text_is_refused_with_its_line(tmp_path: Path) -> None:
    config = a_place(tmp_path)
    (tmp_path / "model.conf").write_bytes(b"# a\n[request_definition]\nr = \xff\n")
    policy = config.policy.model_copy(update={"model": tmp_path / "model.conf"})
    with pytest.raises(PolicyError, match=r"model\.conf:3:1: error: this line is not UTF-8"):
        load_policy(config.model_copy(update={"policy": policy}))


names = st.sampled_from(["agent:bot", "user:ann", "role:clerk", "role:boss", "agent:*", "user:*", "*"])
tools = st.sampled_from(["shop.buy", "shop.send", "shop.*", "*"])
actions = st.sampled_from(["execute", "recommend", "advise", "approve", "*"])
conditions = st.sampled_from(["1 == 1", "r.args.price <= 100", "r.args.price > 50"])
grants = st.builds(
    "p, {}, {}, {}, {}, {}, {}".format,
    names,
    st.sampled_from(["acme", "globex", "*"]),
    tools,
    actions,
    conditions,
    st.sampled_from(["allow", "deny"]),
)
roles = st.builds(
    "g, {}, {}, {}".format,
    st.sampled_from(["agent:bot", "user:ann", "role:clerk"]),
    st.sampled_from(["role:boss", "role:clerk"]),
    st.sampled_from(["acme", "globex"]),
).filter(lambda row: "role:clerk, role:clerk" not in row)
ACTS = ("execute", "recommend", "advise", "approve")


@settings(max_examples=150)
@given(
    base=st.lists(grants | roles, max_size=6),
    own=st.lists(grants | roles, max_size=6),
    price=st.integers(0, 200),
)
def test_a_tenants_layer_takes_no_deny_away_and_changes_nothing_elsewhere(
    base: list[str], own: list[str], price: int
) -> None:
    below = [Layer(file="base.csv", content="\n".join([BASE, *base]).encode())]
    layer = Layer(file="acme.csv", content="\n".join(own).encode(), tenant="acme")
    foreign = any("globex" in row.split(", ") or row.split(", ")[2] == "*" for row in own if row[0] == "p")
    foreign = foreign or any(row.endswith("globex") for row in own)
    if foreign:
        with pytest.raises(PolicyError) as refusal:
            load_layers([*below, layer])
        assert {problem.code for problem in refusal.value.problems} >= {"foreign-tenant"}
        return
    alone, together = load_layers(below), load_layers([*below, layer])
    args, ctx = {"price": price}, {"in_chain": 0}
    for subject in ("agent:bot", "user:ann"):
        for tool in ("shop.buy", "shop.send"):
            for act in ACTS:
                elsewhere = (subject, "globex", tool, act, args, ctx)
                assert together.allowed(*elsewhere) == alone.allowed(*elsewhere)
                before = alone.allowed(subject, "acme", tool, act, args, ctx)
                denied = any(row.text.endswith("deny") for row in before.rows)
                assert not (denied and together.allowed(subject, "acme", tool, act, args, ctx).allowed)


def test_the_text_of_a_policy_survives_being_stored(tmp_path: Path) -> None:
    text = files_text(a_place(tmp_path, BASE + "# Grüße\r\n", acme="g, user:zoë, role:clerk, acme\n"))
    again = PolicyText.from_json(text.as_json())
    assert again == text
    assert again.build().policy.version == text.build().policy.version
    assert again.guardrails == (GUARDRAILS,)


async def test_a_version_is_stored_activated_and_gone_back_to_by_name(tmp_path: Path) -> None:
    config = a_place(tmp_path)
    first = a_version(files_text(config))
    second = a_version(files_text(a_place(tmp_path, WIDER)))
    a_database(tmp_path)
    journal = await open_journal(config.store.path, role="cli")
    try:
        assert await journal.push_policy(first, by="user:ann", note="one")
        assert not await journal.push_policy(first, by="user:bea", note="again")
        assert await journal.push_policy(second, by="user:ann", note="two")
        yes = {"by": "user:bea", "note": "", "second_person": True}
        with pytest.raises(WrongState, match="another person"):
            await journal.activate_policy(first, **{**yes, "by": "user:ann"})
        with pytest.raises(UnknownRecord):
            await journal.activate_policy(Version(id="0" * 64, text="", digests=()), **yes)
        mine = {"by": "user:ann", "note": "too wide", "second_person": True}
        with pytest.raises(WrongState, match="another person"):
            await journal.roll_back_policy(first, **mine)
        with pytest.raises(UnknownRecord):
            await journal.roll_back_policy(Version(id="0" * 64, text="", digests=()), **mine)
        assert await journal.activate_policy(first, **yes)
        assert not await journal.activate_policy(first, **yes)
        assert await journal.activate_policy(second, **yes)
        assert await journal.roll_back_policy(first, **mine)
    finally:
        await journal.close()
    stored = a_config(tmp_path, policy={"source": "database"})
    assert rung(load_policy(stored), "shop.buy", price=500) is Rung.DENY
    assert rung(load_version(stored, second.id[:8]).policy, "shop.buy", price=500) is Rung.EXECUTE
    with pytest.raises(UnknownRecord):
        load_version(stored, "ffff0000")
    with open_records(config.store.path) as found:
        assert [(each.kind, each.activated_by) for each in found.activations()] == [
            ("activate", "user:bea"),
            ("activate", "user:bea"),
            ("rollback", "user:ann"),
        ]
        assert [*verify_events(found), *verify_policies(found)] == []


async def test_nobody_activates_alone_what_a_server_found_in_its_files(tmp_path: Path) -> None:
    config = a_place(tmp_path)
    version = a_version(files_text(config))
    a_database(tmp_path)
    journal = await open_journal(config.store.path, role="cli")
    try:
        await journal.decides_by(version, from_files=False)
        with pytest.raises(WrongState, match="nobody has pushed"):
            await journal.activate_policy(version, by="user:bea", note="", second_person=True)
        assert await journal.push_policy(version, by="user:ann", note="mine now")
        with pytest.raises(WrongState, match="another person"):
            await journal.activate_policy(version, by="user:ann", note="", second_person=True)
        assert await journal.activate_policy(version, by="user:bea", note="", second_person=True)
    finally:
        await journal.close()
    with open_records(config.store.path) as found:
        assert [*verify_events(found), *verify_policies(found)] == []


def test_without_an_active_version_the_way_to_one_is_told(tmp_path: Path) -> None:
    a_database(tmp_path)
    with pytest.raises(RemitError, match="remit policy push"):
        load_policy(a_config(tmp_path, policy={"source": "database"}))


def test_stored_guardrails_do_not_replace_those_that_ship(tmp_path: Path) -> None:
    text = files_text(a_place(tmp_path))
    weak = json.loads(text.as_json())
    weak["guardrails"] = []
    version = a_version(PolicyText.from_json(json.dumps(weak)))
    a_database(tmp_path)

    async def store() -> None:
        journal = await open_journal(tmp_path / "remit.db", role="cli")
        await journal.push_policy(version, by="user:ann", note="")
        await journal.activate_policy(version, by="user:ann", note="", second_person=False)
        await journal.close()

    anyio.run(store)
    policy = load_policy(a_config(tmp_path, policy={"source": "database"}))
    assert policy.version != version.id
    assert policy.version == text.build().policy.version
    assert len(rows(tmp_path / "remit.db", "SELECT * FROM policy_versions")) == 1
