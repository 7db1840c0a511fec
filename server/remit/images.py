"""What a call replaces and what it leaves behind, as the source's own reads show it, kept to be compared.

A touch that went through the gateway is known from the record; a change that did not is noticed here: what a
call left must still be there when it is taken back. Nothing here reads a source; the pipeline does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from remit.model import Image, Remedy, Undoing, Verdict
from remit_adapters.base import Json
from remit_rbac import EvaluationError, Rung


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A state at one moment."""

    kept: Any
    #: What the source calls this version of it; None where it has no name.
    etag: Any = None

    @property
    def body(self) -> bytes:
        return orjson.dumps(self.kept, option=orjson.OPT_SORT_KEYS)

    def after(self, before: Seen | None) -> bytes:
        """As what a call left where `before` was."""
        replaced = before.etag if before else None
        return orjson.dumps({"kept": self.kept, "etag": self.etag, "replaced": replaced})


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """A later call on the same thing that was taken back: what it left, and what taking it back left."""

    made: tuple[int, str]
    left: Json | None
    undone: tuple[int, str]
    restored: Json | None


def version_by_now(left: Json, later: Sequence[Undone]) -> Any:
    """What the source calls the state that a call left, after others were made on it and taken back.

    None when somebody else has written in between: then no version stands for that state any more.
    """
    moments = [(it.made, "made", it) for it in later] + [(it.undone, "undone", it) for it in later]
    pile: list[tuple[Undone | None, Any]] = [(None, left["etag"])]
    for _, kind, it in sorted(moments, key=lambda moment: moment[0]):
        if kind == "made" and it.left and it.left["replaced"] == pile[-1][1]:
            pile.append((it, it.left["etag"]))
        elif kind == "undone" and it.restored and pile[-1][0] is it:
            pile.pop()
            pile[-1] = pile[-1][0], it.restored["etag"]
        else:
            return None
    return pile[-1][1]


def seen(image: Image, answer: Any) -> Seen | None:
    """What of an answer is kept; None when that is not in it."""
    try:
        return Seen(
            kept=image.select(answer) if image.select else answer,
            etag=image.etag(result=answer) if image.etag else None,
        )
    except EvaluationError:
        return None


def conflict(undoing: Undoing, now: Seen | None, verdict: Verdict) -> Verdict | None:
    """The refusal when what the call left is not there any more, or nobody can tell."""
    left = undoing.after
    code, remedy = "undo_conflict", Remedy.STOP
    if left is None:
        reason = "What that call left behind was never seen, so nobody can tell what an undo would replace."
    elif now is None:
        code, remedy = "undo_unseen", Remedy.WAIT
        reason = "What that call changed cannot be read now, and may be another's by now. Try again later."
    elif (now.body, now.etag) != (Seen(kept=left["kept"]).body, left["etag"]):
        reason = "Something has changed the same thing since, and not through here: ask a person."
    else:
        return None
    return replace(verdict, rung=Rung.DENY, code=code, reason=reason, remedy=remedy)
