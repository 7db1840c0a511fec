"""The stories of `configs/stories`, played on the systems that stand in for real ones.

In each an agent makes a call that is simply done, one that people are asked about and agree to at the command
line, and one that is refused. What `remit policy explain` then says must let somebody who does not program
say why: the texts that people have read are `tests/server/approved/story_*.txt`.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import pytest
from tests.server.acme import REPOSITORY, Terminal, serving
from tests.server.approved import approved
from tests.stories.agents import an_agent

from remit.calls import new_call
from remit.identity import Principal
from remit.model import Done, Outcome, Pending, Refused
from remit.pipeline import Services, govern

FOLDER = REPOSITORY / "configs" / "stories"
#: A Wednesday in office hours, in Europe and in America: some rules go by the clock.
AFTERNOON_NS = int(datetime.fromisoformat("2026-01-07T15:00:00+00:00").timestamp()) * 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    tenant: str
    agent: str
    user: str
    done: tuple[str, dict[str, Any]]
    asked: tuple[str, dict[str, Any]]
    #: Who agree to it, in this order.
    approvers: tuple[str, ...]
    refused: tuple[str, dict[str, Any]]
    code: str
    claim: dict[str, Any] | None = None


def an_access(user: str, system: str, level: str, hours: int) -> dict[str, Any]:
    return {"user_id": user, "system_id": system, "level": level, "hours": hours}


def terms(contract: str, *, price_minor: int, months: int) -> dict[str, Any]:
    return {"contract_id": contract, "price_minor": price_minor, "months": months, "payment_days": 45}


STORIES = {
    "refund": Played(
        tenant="shop",
        agent="agent:refunder",
        user="user:alice",
        done=("shop.refund", {"order_id": "ord-1", "amount_minor": 8000, "method": "card"}),
        asked=(
            "shop.refund",
            {"order_id": "ord-3", "amount_minor": 300_000, "method": "card", "iban": "DE02 1203 0000"},
        ),
        approvers=("user:sue", "user:fay"),
        refused=("shop.refund", {"order_id": "ord-4", "amount_minor": 1000, "method": "card"}),
        code="denied_by_rule",
    ),
    "it-access": Played(
        tenant="corp",
        agent="agent:helpdesk",
        user="user:ian",
        done=("iam.grant_access", an_access("ian", "wiki", "read", 8)),
        asked=("iam.grant_access", an_access("ian", "payments", "admin", 4)),
        approvers=("user:olga", "user:sam"),
        refused=("iam.grant_access", an_access("nina", "payments", "read", 4)),
        code="denied_by_rule",
    ),
    "supply-chain": Played(
        tenant="freight",
        agent="agent:router",
        user="user:dan",
        done=("scm.reroute", {"shipment_id": "shp-1", "route_id": "rail", "cost_minor": 90_000}),
        asked=("scm.reroute", {"shipment_id": "shp-1", "route_id": "air", "cost_minor": 3_000_000}),
        approvers=("user:mia", "user:noor"),
        refused=("scm.reroute", {"shipment_id": "shp-1", "route_id": "short", "cost_minor": 20_000}),
        code="denied_by_rule",
    ),
    "loan-prescreen": Played(
        tenant="bank-us",
        agent="agent:screener",
        user="user:leo",
        claim={"confidence": 0.93},
        done=("loans.prescreen", {"application_id": "app-1", "score": 71}),
        asked=("loans.prescreen", {"application_id": "app-2", "score": 88, "ssn": "078-05-1120"}),
        approvers=("user:lena",),
        refused=("loans.prescreen", {"application_id": "app-3", "score": 64}),
        code="denied_by_rule",
    ),
    "sales-discount": Played(
        tenant="sales",
        agent="agent:seller",
        user="user:rep",
        done=("crm.set_discount", {"quote_id": "quo-1", "percent": 10, "reason": "repeat order"}),
        asked=("crm.set_discount", {"quote_id": "quo-1", "percent": 12, "reason": "repeat order"}),
        approvers=("user:max",),
        refused=("crm.set_discount", {"quote_id": "quo-3", "percent": 5, "reason": "repeat order"}),
        code="denied_by_rule",
    ),
    "hr-offer": Played(
        tenant="hr",
        agent="agent:recruit",
        user="user:rita",
        done=("hr.draft_offer", {"candidate_id": "can-1", "salary": 70_000, "start": "2026-03-01"}),
        asked=(
            "hr.send_offer",
            {"candidate_id": "can-1", "salary": 70_000, "start": "2026-03-01", "tax_id": "26 954 371 827"},
        ),
        approvers=("user:hugo", "user:mara"),
        refused=("hr.send_offer", {"candidate_id": "can-3", "salary": 70_000, "start": "2026-03-01"}),
        code="denied_by_rule",
    ),
    "procurement": Played(
        tenant="buying",
        agent="agent:negotiator",
        user="user:ben",
        done=("erp.propose_terms", terms("con-1", price_minor=11_000_000, months=24)),
        asked=("erp.propose_terms", terms("con-1", price_minor=11_000_000, months=36)),
        approvers=("user:cara",),
        refused=("erp.propose_terms", terms("con-1", price_minor=11_000_000, months=120)),
        code="no_rule",
    ),
}


@pytest.fixture
def office_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes as ever, from a Wednesday afternoon on."""
    began = time.time_ns()
    clock = SimpleNamespace(time_ns=lambda: AFTERNOON_NS + time.time_ns() - began)
    monkeypatch.setattr("remit.ids.time", clock)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in FOLDER.glob("*/remit.yaml")))
async def test_a_story_is_played_and_explained(name: str, tmp_path: Path, office_hours: None) -> None:
    story = STORIES[name]
    shutil.copytree(FOLDER, tmp_path, ignore=shutil.ignore_patterns("*.db*"), dirs_exist_ok=True)
    remit = Terminal(tmp_path / name / "remit.yaml")
    with anyio.fail_after(60):
        async with serving(remit.config) as on:
            done = await called(on, story, *story.done)
            assert isinstance(done, Done), done
            asked = await called(on, story, *story.asked)
            assert isinstance(asked, Pending), asked
            for user in story.approvers:
                words = ("approvals", "approve", asked.approval_id, "--yes", "--as", user)
                voted = await anyio.to_thread.run_sync(remit, *words)
                assert voted.code == 0, voted
            agreed = await called(on, story, *story.asked)
            assert isinstance(agreed, Done), agreed
            refused = await called(on, story, *story.refused)
            assert isinstance(refused, Refused), refused
    assert refused.verdict.code == story.code
    assert not done.failed
    assert not agreed.failed
    for what, call in (("done", done), ("agreed", agreed), ("refused", refused)):
        told = await anyio.to_thread.run_sync(remit, "policy", "explain", call.call_id)
        assert (told.code, told.err) == (0, "")
        approved(f"story_{name}_{what}", told.out)


#: None of their rules goes by the clock, which is that of the machine in a process of its own.
AT_ANY_TIME = ("loan-prescreen", "procurement", "sales-discount", "supply-chain")


@pytest.mark.parametrize("name", AT_ANY_TIME)
async def test_a_story_is_played_by_a_client_over_http(name: str, tmp_path: Path) -> None:
    """Everything from outside: the command serves, makes the agent's key and takes the votes."""
    story = STORIES[name]
    shutil.copytree(FOLDER, tmp_path, ignore=shutil.ignore_patterns("*.db*"), dirs_exist_ok=True)
    remit = Terminal(tmp_path / name / "remit.yaml")
    who = {"tenant": story.tenant, "agent": story.agent, "user": story.user, "claim": story.claim}
    async with an_agent(remit, **who) as agent:
        assert story.asked[0] in {tool.name for tool in (await agent.client.list_tools()).tools}
        done = await agent.call(*story.done)
        assert done["code"] == "done"
        asked = await agent.call(*story.asked)
        assert asked["code"] == "pending_approval"
        for user in story.approvers:
            voted = await agent.ran("approvals", "approve", asked["approval_id"], "--yes", "--as", user)
            assert voted.code == 0, voted
        agreed = await agent.call(*story.asked)
        assert (agreed["code"], agreed["call_id"]) == ("done", asked["call_id"])
        refused = await agent.call(*story.refused)
        assert refused["code"] == story.code
        for what, call in (("done", done), ("agreed", agreed), ("refused", refused)):
            approved(f"story_{name}_{what}", (await agent.ran("policy", "explain", call["call_id"])).out)
        assert (await agent.ran("audit", "verify")).code == 0


async def called(on: Services, story: Played, tool: str, arguments: dict[str, Any]) -> Outcome:
    principal = Principal(tenant=story.tenant, agent=story.agent, user=story.user, auth="api_key")
    call = new_call(
        tool=on.catalog.tools[tool],
        arguments=arguments,
        principal=principal,
        run="a-run",
        secret=on.secret,
        at_us=on.clock(),
        claim=story.claim or {},
    )
    return await govern(call, on)
