"""What a rule attaches to a call is done, or the call is refused: nothing stands in a policy for show."""

from pathlib import Path

from tests.server.builders import POLICY, a_remit


async def test_a_duty_that_nobody_carries_out_refuses_the_call(tmp_path: Path) -> None:
    policy = POLICY + "p2, agent:*, acme, shop.look, *, 1 == 1, cap=100\n"
    async with a_remit(tmp_path, policy=policy) as remit:
        refused = await remit.refused("shop.look", {"thing": "lamp"})
        assert refused.verdict.code == "unknown_duty"
        assert remit.source.sent == []
