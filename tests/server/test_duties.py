"""What a rule attaches to a call is done, or the call is refused: nothing stands in a policy for show."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.server.builders import POLICY, a_remit

from remit_rbac import Policy, load_text


def owing(duty: str) -> Policy:
    """A policy that was not read from text, which is refused with such a duty."""
    sound = load_text(POLICY + "p2, agent:*, acme, shop.look, *, 1 == 1, confirm\n")
    (rule,) = sound.rules["p2"]
    rules = {**sound.rules, "p2": [replace(rule, values=(*rule.values[:5], duty))]}
    return Policy(model=sound.model, rules=rules, graphs=sound.graphs, version=sound.version)


@pytest.mark.parametrize("duty", ["cap=100", "redact=r.args.thing", "redact=args.things[0].card", "redact"])
async def test_a_duty_that_nobody_carries_out_refuses_the_call(tmp_path: Path, duty: str) -> None:
    async with a_remit(tmp_path) as remit:
        remit.on.policy = owing(duty)
        refused = await remit.refused("shop.look", {"thing": "lamp"})
        assert refused.verdict.code == "unknown_duty"
        assert remit.source.sent == []
