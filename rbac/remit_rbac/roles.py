"""Who belongs to what: the role graphs of one policy, with inheritance, per tenant.

Built once from the grouping rows and never changed. A graph without a domain column keeps its links
under the domain `""`. Cycles and chains deeper than Casbin follows are found here and refused by the
loader, so membership is what Casbin would answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

#: Casbin's role manager stops after this many levels, so deeper chains would silently lose roles.
DEPTH_MAX = 9


@dataclass(frozen=True, slots=True)
class Link:
    member: str
    group: str
    domain: str


class RoleGraph:
    """One of `g`, `g2`, `g3`. Immutable after construction, except for memos that any thread may write."""

    def __init__(self, links: Iterable[Link]) -> None:
        self._groups: dict[str, dict[str, list[str]]] = {}
        self._members: dict[str, dict[str, list[str]]] = {}
        for link in links:
            self._groups.setdefault(link.domain, {}).setdefault(link.member, []).append(link.group)
            self._members.setdefault(link.domain, {}).setdefault(link.group, []).append(link.member)

    @property
    def links(self) -> Iterator[tuple[str, ...]]:
        """The rows that the graph was made of: member, group and, where there is one, domain."""
        for domain, groups in self._groups.items():
            for member, found in groups.items():
                for group in found:
                    yield (member, group, domain) if domain else (member, group)

    @property
    def domains(self) -> Sequence[str]:
        return list(self._groups)

    def names(self, domain: str) -> set[str]:
        """All that is a member or a group of something in the domain."""
        return {*self._groups.get(domain, ()), *self._members.get(domain, ())}

    def closure(self, name: str, domain: str) -> frozenset[str]:
        """The name itself and every group that it belongs to, directly or through others."""
        return _reachable(name, self._groups.get(domain, {}))

    def members(self, name: str, domain: str) -> frozenset[str]:
        """The name itself and everything that belongs to it, directly or through others."""
        return _reachable(name, self._members.get(domain, {}))

    def direct(self, name: str, domain: str) -> Sequence[str]:
        """The groups that rows name for it."""
        return self._groups.get(domain, {}).get(name, ())

    def givers(self, name: str, domain: str) -> Sequence[str]:
        """The members that rows name for it."""
        return self._members.get(domain, {}).get(name, ())

    def chain_beyond(self, depth_max: int = DEPTH_MAX) -> tuple[str, list[str]] | None:
        """The first cycle or too deep chain as (domain, names), or None when there is none."""
        for domain, groups in self._groups.items():
            depths: dict[str, int] = {}
            for name in groups:
                chain = _too_deep(name, groups, depths, depth_max)
                if chain:
                    return domain, chain
        return None


def _reachable(name: str, links: Mapping[str, Sequence[str]]) -> frozenset[str]:
    found = {name}
    pending = [name]
    while pending:
        for following in links.get(pending.pop(), ()):
            if following not in found:
                found.add(following)
                pending.append(following)
    return frozenset(found)


def _too_deep(
    start: str, links: Mapping[str, Sequence[str]], depths: dict[str, int], depth_max: int
) -> list[str] | None:
    """Walk down from `start`, remembering in `depths` how far each finished name reaches."""
    stack: list[tuple[str, int]] = [(start, 0)]
    path: list[str] = []
    while stack:
        name, position = stack.pop()
        if position == 0:
            if name in path:
                return [*path[path.index(name) :], name]
            if name in depths:
                continue
            path.append(name)
        following = links.get(name, ())
        if position < len(following):
            stack.append((name, position + 1))
            stack.append((following[position], 0))
            continue
        depths[name] = max((depths[group] + 1 for group in following), default=0)
        path.pop()
        if depths[name] > depth_max:
            return _longest(name, links, depths)
    return None


def _longest(name: str, links: Mapping[str, Sequence[str]], depths: Mapping[str, int]) -> list[str]:
    chain = [name]
    while following := links.get(chain[-1], ()):
        chain.append(max(following, key=lambda group: depths[group]))
    return chain
