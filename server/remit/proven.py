"""Ways back that were tried and held: what turns the claim of a declaration into something proven.

A proof is about one digest: the declaration, and the definitions of every tool that it needs. When any of
them changes there is another digest, and no proof of it. How one is won is `proving.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from remit.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """That the way back of one tool was walked whole, on a source that is there for trying."""

    digest: str
    tool: str
    source: str
    by: str
    at_us: int


def note(
    ledger: Ledger,
    *,
    digest: str,
    tool: str,
    source: str,
    by: str,
    tenant: str,
    call_id: str,
    differs: Sequence[str],
) -> None:
    """Keep the newest trial of this digest; with `differs`, what was proven before is proven no more."""
    state = "failed" if differs else "proven"
    ledger.execute(
        'INSERT INTO undo_proofs (digest, tool, source, state, differs, "by", at_us, call_id)'
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET tool = excluded.tool,"
        " source = excluded.source, state = excluded.state, differs = excluded.differs,"
        ' "by" = excluded."by", at_us = excluded.at_us, call_id = excluded.call_id',
        (digest, tool, source, state, orjson.dumps(differs).decode(), by, ledger.now_us, call_id),
    )
    ledger.event(
        "undo.unproven" if differs else "undo.proven",
        tenant=tenant,
        call_id=None,  # it is no part of what became of that call
        tried=call_id,
        digest=digest,
        tool=tool,
        source=source,
        by=by,
        differs=list(differs),
    )
    ledger.reload_proofs()
