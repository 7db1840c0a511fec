"""What one principal may see of the catalog: the same policy that decides calls filters the lists.

The answer is kept per principal until the catalog or the policy is replaced. What is not visible is
answered exactly like what does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mcp.shared.uri_template import InvalidUriTemplate, UriTemplate

from remit.catalog import OPERATION_NAMES, Catalog, Prompt, Resource, exported, prefix_of
from remit.identity import Principal
from remit.model import Tool
from remit.pipeline import Services
from remit_adapters.base import Json, Operation

_PRINCIPALS_MAX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The part of a catalog that one principal may see, in wire shape."""

    tools: tuple[Json, ...]
    resources: tuple[Json, ...]
    templates: tuple[Json, ...]
    prompts: tuple[Json, ...]


@dataclass(slots=True)
class Views:
    _catalog: Catalog | None = None
    _policy_version: str = ""
    _views: dict[tuple[str, str, str], View] = field(default_factory=dict[tuple[str, str, str], View])
    _templates: dict[str, UriTemplate | None] = field(default_factory=dict[str, UriTemplate | None])

    def of(self, principal: Principal, on: Services) -> View:
        if self._catalog is not on.catalog or self._policy_version != on.policy.version:
            self._catalog, self._policy_version = on.catalog, on.policy.version
            self._views.clear()
        key = (principal.tenant, principal.agent, principal.user)
        view = self._views.get(key)
        if view is None:
            if len(self._views) >= _PRINCIPALS_MAX:
                self._views.clear()
            view = self._views[key] = _view(principal, on)
        return view

    def tool(self, name: str, principal: Principal, on: Services) -> Tool | None:
        tool = on.catalog.tools.get(name)
        if tool is None or tool.operation is not Operation.TOOL or not may_see(principal, tool.name, on):
            return None
        return tool

    def resource(self, uri: str, principal: Principal, on: Services) -> Tool | None:
        """The read operation of the one source that has `uri`; None when none or several have it."""
        sources = {resource.source for resource in on.catalog.resources if resource.uri == uri}
        sources = sources or {it.source for it in on.catalog.templates if self._fits(it, uri)}
        if not sources and len(on.adapters) == 1:
            sources = set(on.adapters)  # one source, nothing to mistake: it knows best what it has
        return self.operation(sources.pop(), Operation.RESOURCE, principal, on) if len(sources) == 1 else None

    def prompt(self, name: str, principal: Principal, on: Services) -> tuple[Prompt, Tool] | None:
        prompt = on.catalog.prompts.get(name)
        if prompt is None:
            return None
        tool = self.operation(prompt.source, Operation.PROMPT, principal, on)
        return (prompt, tool) if tool else None

    def operation(self, source: str, operation: Operation, principal: Principal, on: Services) -> Tool | None:
        name = operation_name(source, operation, on)
        return on.catalog.tools.get(name) if may_see(principal, name, on) else None

    def _fits(self, template: Resource, uri: str) -> bool:
        if template.uri not in self._templates:
            try:
                self._templates[template.uri] = UriTemplate.parse(template.uri)
            except InvalidUriTemplate:
                self._templates[template.uri] = None
        parsed = self._templates[template.uri]
        return parsed is not None and parsed.match(uri) is not None


def operation_name(source: str, operation: Operation, on: Services) -> str:
    return exported(prefix_of(on.config, source), OPERATION_NAMES[operation])


def may_see(principal: Principal, name: str, on: Services) -> bool:
    return on.policy.visible(principal.tenant, principal.agent, principal.user, name)


def _view(principal: Principal, on: Services) -> View:
    def readable(source: str, operation: Operation) -> bool:
        return may_see(principal, operation_name(source, operation, on), on)

    def of_sources(resources: tuple[Resource, ...]) -> tuple[Json, ...]:
        return tuple(it.definition for it in resources if readable(it.source, Operation.RESOURCE))

    prompts: list[Any] = [
        prompt.definition
        for prompt in on.catalog.prompts.values()
        if readable(prompt.source, Operation.PROMPT)
    ]
    return View(
        tools=tuple(tool.definition for tool in on.catalog.listed() if may_see(principal, tool.name, on)),
        resources=of_sources(on.catalog.resources),
        templates=of_sources(on.catalog.templates),
        prompts=tuple(prompts),
    )
