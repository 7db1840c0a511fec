"""What is published about what rules can read: true of every call, and what policies are held against."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import jsonschema_rs
import pytest
from tests.server.acme import REPOSITORY, Terminal, a_place
from tests.server.builders import Clock, ScriptedSource, a_config, a_remit, tools
from tests.server.test_facts import PEN, ROLES, rule

from remit import catalog
from remit.config import CONTEXT_NAMES
from remit.context_schema import context_schema, misfits_of, request_schema
from remit.policies import load_policy
from remit_adapters.base import Operation
from remit_rbac import PolicyError, load_text

SEEN = tools(
    buy={
        "facts": {"item": {"call": "shop.look", "args": {"thing": "args.thing"}}},
        "derive": {"letters": "length(args.thing)", "never": "sum(args.thing)"},
        "price": {"usd": "args.price"},
        "labels": ["money"],
        "establishes": {"thing": "args.thing"},
    },
    send={"parse": {"text": "json"}},
)


def test_the_published_file_is_what_the_code_says() -> None:
    published = json.loads((REPOSITORY / "configs/policy_context.schema.json").read_text())
    assert published == request_schema(None)
    names = published["properties"]["ctx"]["properties"]
    assert set(names) == CONTEXT_NAMES


async def test_what_rules_saw_of_any_call_is_as_published(tmp_path: Path) -> None:
    policy = ROLES + rule("r.ctx.facts.item.stock > 0") + rule("1 == 1", "send") + rule("1 == 1", "look")
    policy += rule("r.ctx.run.calls > 99", effect="deny")
    async with a_remit(tmp_path, policy=policy, tools=SEEN, context={"env": "prod", "level": 3}) as remit:
        remit.source.on["look"] = {"stock": 3}
        await remit.done("shop.buy", PEN, claim={"confidence": 0.9})
        await remit.done("shop.buy", PEN)
        await remit.done("shop.send", {"text": '{"to": "ann"}'})
        remit.source.on["look"] = {"stock": 0}
        await remit.refused("shop.buy", PEN)
        seen = remit.rows(
            "SELECT calls.id, calls.tool FROM payloads JOIN calls ON calls.id = call_id"
            " WHERE payloads.kind = 'context'"
        )
        assert len(seen) >= 4
        for row in seen:
            tool = remit.on.catalog.tools[row["tool"]]
            for schema in (
                context_schema(remit.on.config, tool, remit.on.catalog),
                context_schema(remit.on.config),
                context_schema(None),
            ):
                errors = jsonschema_rs.validator_for(schema).iter_errors(remit.carried(row["id"], "context"))
                assert [error.message for error in errors] == []


@pytest.mark.parametrize(
    ("at", "hour", "weekday"),
    [
        ("2026-03-29T00:59:59+00:00", 1, 7),
        ("2026-03-29T01:00:00+00:00", 3, 7),
        ("2026-10-25T00:30:00+00:00", 2, 7),
        ("2026-10-25T01:30:00+00:00", 2, 7),
        ("2026-10-25T22:59:59+00:00", 23, 7),
        ("2026-10-25T23:00:00+00:00", 0, 1),
    ],
)
async def test_hour_and_weekday_are_those_of_the_zone_also_when_its_clocks_change(
    tmp_path: Path, at: str, hour: int, weekday: int
) -> None:
    clock = Clock(int(datetime.fromisoformat(at).timestamp()) * 1_000_000)
    policy = ROLES + rule(f"r.ctx.hour == {hour} && r.ctx.weekday == {weekday}")
    async with a_remit(tmp_path, policy=policy, clock=clock, zone="Europe/Berlin") as remit:
        await remit.done("shop.buy", PEN)


def test_one_tool_is_told_with_its_arguments_facts_and_prices(tmp_path: Path) -> None:
    remit = Terminal(a_place(tmp_path))
    told = remit("policy", "context", "acme.refund").out
    assert "r.args.amount_minor" in told
    assert "r.ctx.price.calls" in told
    schema = remit.json("policy", "context", "acme.refund")
    jsonschema_rs.validator_for(schema)
    assert schema["properties"]["args"]["properties"]["amount_minor"]["type"] == "integer"
    assert schema["properties"]["tool"] == {"const": "acme.refund"}
    assert "no tool acme.nothing" in remit("policy", "context", "acme.nothing").err
    assert "r.ctx.run.conflicts" in remit("policy", "context").out


UNANSWERABLE = [
    ("r.ctx.hour == 'nine'", "r.ctx.hour is a number, and is used here as a text"),
    ("r.ctx.facts.item.stock > 0", "has no r.ctx.facts.item"),
    ("r.ctx.price.eur > 5", "has no r.ctx.price.eur"),
    ("r.ctx.derived.letters > 5", "has no r.ctx.derived.letters"),
    ("r.ctx.env > 5", "r.ctx.env is a text"),
    ("r.ctx.labels == 'money'", "r.ctx.labels is a list"),
    ("r.ctx.hour == r.ctx.effect", "r.ctx.hour is a number, and is used here as a text"),
    ("r.ctx.hour == r.args.thing", "r.ctx.hour is a number, and is used here as a text"),
]


@pytest.mark.parametrize(("condition", "message"), UNANSWERABLE)
def test_a_rule_that_reads_what_its_tool_does_not_have_is_an_error(
    tmp_path: Path, condition: str, message: str
) -> None:
    config = a_config(tmp_path, tools=SEEN, context={"env": "prod"})
    offered = catalog.build(config, {"shop": ScriptedSource().offered})
    sound = ROLES + rule("r.ctx.facts.item.stock > 0 && r.ctx.derived.letters > 0 && r.ctx.price.usd > 0")
    assert [it for it in misfits_of(load_text(sound), config, offered) if it.level == "error"] == []
    (problem,) = misfits_of(load_text(sound + rule(condition, tool="look")), config, offered)
    assert (problem.level, problem.file, problem.line) == ("error", "policy.csv", 7)
    assert problem.text[problem.column - 1 :].startswith(condition)
    assert message in problem.message
    assert problem.fix


def test_a_rule_over_a_whole_source_is_judged_by_what_the_source_offers(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    offered = catalog.build(config, {"shop": ScriptedSource().offered})
    assert any(tool.operation is not Operation.TOOL for tool in offered.tools.values())
    sound = rule("r.args.thing == 'pen'", tool="*") + rule("r.args.uri == 'x'", tool="*")
    assert {it.level for it in misfits_of(load_text(ROLES + sound), config, offered)} <= {"warning"}
    wrong = ROLES + rule("r.args.thingg == 'pen'", tool="*")
    errors = [it for it in misfits_of(load_text(wrong), config, offered) if it.level == "error"]
    assert [(error.code, error.line) for error in errors] == [("unknown-argument", wrong.count("\n"))]


@pytest.mark.parametrize("condition", ["r.ctx.effect == 'irreversable'", "r.ctx.claim.confidence == 'high'"])
def test_what_the_server_sets_is_known_without_any_tool(tmp_path: Path, condition: str) -> None:
    (tmp_path / "policy.csv").write_text(ROLES + rule(condition))
    with pytest.raises(PolicyError) as refusal:
        load_policy(a_config(tmp_path))
    (problem,) = (each for each in refusal.value.problems if each.level == "error")
    assert problem.code in ("unknown-value", "context-type")
    assert problem.fix


@pytest.mark.parametrize("name", sorted(CONTEXT_NAMES))
def test_what_remit_sets_itself_is_no_name_for_a_setting(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="which Remit sets itself"):
        a_config(tmp_path, context={name: "mine"})
