"""What decides: `Policy`, by its index, or `StockPolicy`, by asking an unmodified pycasbin."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from remit_rbac.decisions import Answer, Decision, Question


class Engine(Protocol):
    """A policy as a gateway asks it; each method means what it means in `Policy`. Any thread may call it."""

    @property
    def version(self) -> str: ...

    def decide(self, q: Question) -> Decision: ...

    def allowed(
        self, subject: str, tenant: str, tool: str, act: str, args: Mapping[str, Any], ctx: Mapping[str, Any]
    ) -> Answer: ...

    def approvers(
        self,
        tenant: str,
        tool: str,
        args: Mapping[str, Any],
        ctx: Mapping[str, Any],
        *,
        exclude: Collection[str] = (),
    ) -> tuple[str, ...]: ...

    def delegated(self, tenant: str, agent: str, user: str) -> bool: ...

    def visible(self, tenant: str, agent: str, user: str, tool: str) -> bool: ...

    def could_allow_otherwise(self, q: Question, varying: Collection[str]) -> bool: ...

    def reads(self, attribute: str) -> bool: ...
