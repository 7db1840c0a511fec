"""What the answer of people binds: exactly what they were shown, but for the agent's own words.

Asking them is `approvals.py`; that it still is what they were shown, `audit_decisions.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson


def binding_of(shown: Mapping[str, Any]) -> str:
    """SHA-256 over what was shown, but for the agent's own words."""
    bound = {name: value for name, value in shown.items() if name != "claim"}
    return hashlib.sha256(orjson.dumps(bound, option=orjson.OPT_SORT_KEYS)).hexdigest()
