"""What the sources offer now, and what of it is exported to whom: asked once, recorded nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import anyio

from remit.app import adapter
from remit.budgets import CALLS
from remit.catalog import Catalog, build, entry_for, rules_for
from remit.cli.output import listing, span, when
from remit.config import Config, PriceRule
from remit.config_file import Loaded, resolve
from remit.errors import RemitError
from remit.proven import Proof
from remit.records import open_records
from remit_adapters.base import AdapterError, Offer
from remit_rbac import Policy

_VIEWERS_MAX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """The catalog of the sources that answered, and why the others did not."""

    catalog: Catalog
    down: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    tenant: str
    agent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedTool:
    """One line of the table that `check` and `tools list` print."""

    name: str
    source: str
    effect: str
    #: What a call's arguments make of it instead, in order: condition and class.
    when: Mapping[str, str]
    #: The operator said so; otherwise it counts as irreversible.
    declared: bool
    #: Unit -> expression, beside the one call that every call costs.
    price: Mapping[str, str]
    #: The tool that takes it back.
    undo: str | None
    undo_within_s: int | None
    #: When its way back was last tried and held, as it is declared and defined now; None: it is claimed.
    undo_proven_us: int | None
    #: SHA-256 of the declaration and the definitions that were proven.
    undo_proof: str | None
    #: Agents to whom it is listed, for at least one of their users.
    visible_to: tuple[Viewer, ...]
    #: SHA-256 of the source's own definition.
    digest: str


async def ask(loaded: Loaded, sources: Iterable[str] | None = None) -> Offered:
    """Connect to the sources (None: to all), take what they offer, and leave."""
    offers: dict[str, Offer] = {}
    down: dict[str, str] = {}

    async def one(name: str) -> None:
        async with anyio.create_task_group() as tasks:
            settings = loaded.config.sources[name]
            try:
                for reference in filter(None, (settings.bearer, *settings.headers.values())):
                    resolve(reference, loaded.folder)  # an operator may know which one is missing
                source = adapter(name, settings, loaded)
                await source.start(tasks, lambda event: None)
                offers[name] = await source.offer()
                await source.stop()
            except AdapterError as error:
                down[name] = error.message
            except RemitError as error:
                down[name] = str(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for name in loaded.config.sources if sources is None else sources:
            tasks.start_soon(one, name)
    # In the order of the file: where two names clash, the same one wins as in a server.
    found = {name: offers[name] for name in loaded.config.sources if name in offers}
    return Offered(catalog=build(loaded.config, found), down=down)


def table(catalog: Catalog, config: Config, policy: Policy | None) -> list[ExportedTool]:
    """Every tool of the catalog, by name; without a policy it is visible to nobody."""
    proofs = _proofs(config)
    return [
        ExportedTool(
            name=tool.name,
            source=tool.source,
            effect=tool.effect.value,
            when={it.when.text: it.tool.effect.value for it in tool.refinements},
            declared=entry_for(config, tool.name, "effect") is not None,
            price=_prices(config, tool.name),
            undo=tool.undo.tool if tool.undo else None,
            undo_within_s=tool.undo.within_s if tool.undo else None,
            undo_proven_us=proof.at_us if (proof := proofs.get(catalog.plans.get(tool.name, ""))) else None,
            undo_proof=proof.digest if proof else None,
            visible_to=_viewers(policy, tool.name) if policy else (),
            digest=tool.digest,
        )
        for tool in catalog.listed()
    ]


def _proofs(config: Config) -> Mapping[str, Proof]:
    """What is proven. A record that is not there, or cannot be read, proves nothing."""
    with suppress(RemitError), open_records(config.store.location) as found:
        return found.proofs()
    return {}


def _prices(config: Config, name: str) -> Mapping[str, str]:
    price = rules_for(config, name).price
    return {
        unit: str(rule.estimate if isinstance(rule, PriceRule) else rule)
        for unit, rule in price.items()
        if unit != CALLS
    }


def _viewers(policy: Policy, name: str) -> tuple[Viewer, ...]:
    found: list[Viewer] = []
    for tenant in policy.tenants:
        subjects = policy.subjects(tenant)
        found += [
            Viewer(tenant=tenant, agent=agent)
            for agent in subjects.agents
            if any(policy.visible(tenant, agent, user, name) for user in subjects.users)
        ]
    return tuple(found)


def shown(tools: Sequence[ExportedTool], *, as_json: bool) -> None:
    """Print the tools as a table, or as JSON."""
    several = len({viewer.tenant for tool in tools for viewer in tool.visible_to}) > 1

    def viewers(tool: ExportedTool) -> str:
        names = [f"{it.tenant}/{it.agent}" if several else it.agent for it in tool.visible_to]
        if len(names) > _VIEWERS_MAX:
            names[_VIEWERS_MAX:] = [f"and {len(names) - _VIEWERS_MAX} more"]
        return ", ".join(names)

    def undo(tool: ExportedTool) -> str:
        if not tool.undo or not tool.undo_within_s:
            return ""
        proven = f", proven {when(tool.undo_proven_us)[:10]}" if tool.undo_proven_us else ""
        return f"{tool.undo}, {span(tool.undo_within_s)}{proven}"

    listing(
        tools,
        {
            "tool": lambda tool: tool.name,
            "source": lambda tool: tool.source,
            "effect": lambda tool: (
                "/".join(dict.fromkeys((tool.effect, *tool.when.values())))
                if tool.declared
                else f"{tool.effect} (undeclared)"
            ),
            "price": lambda tool: ", ".join(f"{unit} {text}" for unit, text in tool.price.items()),
            "undo": undo,
            "visible to": lambda tool: viewers(tool) or "nobody",
            "definition": lambda tool: tool.digest[:12],
        },
        as_json=as_json,
        none="No tool is exported.",
    )
