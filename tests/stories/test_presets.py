"""The presets do what their names say, seen by an agent: each kind of effect, as far as it goes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.server.acme import REPOSITORY, Terminal
from tests.stories.agents import an_agent

CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "read": ("acme.get_order", {"order_id": "ord-1001"}),
    "reversible": ("acme.refund", {"order_id": "ord-1001", "amount_minor": 500, "reason": "damaged"}),
    "compensable": (
        "acme.open_ticket",
        {"customer_id": "cus-101", "subject": "The kettle leaks.", "body": "It leaks since Monday."},
    ),
    "irreversible": (
        "acme.send_mail",
        {"to": "ann@example.com", "subject": "Your kettle", "body": "It is on its way."},
    ),
}
PRESETS = {
    "read-only": {
        "read": "done",
        "reversible": "advise_only",
        "compensable": "advise_only",
        "irreversible": "advise_only",
    },
    "propose-only": {
        "read": "done",
        "reversible": "pending_approval",
        "compensable": "pending_approval",
        "irreversible": "pending_approval",
    },
    "standard": {
        "read": "done",
        "reversible": "done",
        "compensable": "pending_approval",
        "irreversible": "pending_approval",
    },
    "lockdown": {
        "read": "done",
        "reversible": "pending_approval",
        "compensable": "pending_approval",
        "irreversible": "denied_by_rule",
    },
}


@pytest.mark.parametrize(
    "preset", sorted(path.parent.name for path in REPOSITORY.glob("configs/presets/*/remit.yaml"))
)
async def test_a_preset_does_what_its_name_says(preset: str, tmp_path: Path) -> None:
    shutil.copytree(
        REPOSITORY / "configs", tmp_path, ignore=shutil.ignore_patterns("*.db*"), dirs_exist_ok=True
    )
    terminal = Terminal(tmp_path / "presets" / preset / "remit.yaml")
    async with an_agent(terminal, tenant="acme", agent="agent:assistant", user="user:alice") as agent:
        told = {effect: await agent.call(*call) for effect, call in CALLS.items()}
    assert {effect: each["code"] for effect, each in told.items()} == PRESETS[preset]
