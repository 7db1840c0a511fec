"""A picture of one tenant's policy: who acts for whom, who has which role, and what that reaches.

Columns from left to right: agents, the users for whom they act, roles, groups of tools, tools. Conditions
are not drawn; each line has the rows that it stands for as its tooltip. Own drawing: it needs no program
beside a browser. The whole picture is computed at once; nothing is read but the policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

from remit_rbac import Policy

_ROW_PX, _BOX_PX, _GAP_PX, _EDGE_PX = 40, 26, 130, 24
_APART_MAX_PX = 110
_LETTER_PX = 7.0
_TOP_PX, _LEGEND_PX = 70, 60
_LABEL_MAX = 40
_SWEEPS = 8
_FONT = "ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
_COLUMNS = ("agents", "users", "roles", "groups of tools", "tools")
_FILLS = ("#dbeafe", "#e0e7ff", "#ede9fe", "#fef3c7", "#ecfdf5")
_STROKES = ("#2563eb", "#4f46e5", "#7c3aed", "#b45309", "#047857")
#: What a line says: its colour, its dashes, and its words in the legend.
_KINDS: Mapping[str, tuple[str, str, str]] = {
    "execute": ("#16a34a", "", "execute"),
    "recommend": ("#d97706", "", "once a person agrees"),
    "advise": ("#0284c7", "", "advice only"),
    "approve": ("#7c3aed", "6 3", "may approve"),
    "undo": ("#64748b", "6 3", "may undo"),
    "list": ("#94a3b8", "1 3", "list"),
    "deny": ("#dc2626", "2 3", "denied"),
    "for": ("#1d4ed8", "8 4", "acts for"),
    "member": ("#94a3b8", "", "has the role, is in the group"),
}
_LADDER = ("execute", "recommend", "advise")


@dataclass(slots=True)
class _Node:
    label: str
    column: int
    #: Distance from the left of its column's first level: roles that have roles stand further left.
    x: float = 0
    y: float = 0
    level: int = 0
    lines: list[_Line] = field(default_factory=list["_Line"])

    @property
    def width(self) -> float:
        return min(len(self.label), _LABEL_MAX) * _LETTER_PX + 22


@dataclass(frozen=True, slots=True)
class _Line:
    start: str
    end: str
    kind: str
    #: The rows that it stands for.
    rows: tuple[str, ...]


def draw(policy: Policy, tenant: str) -> str:
    """The picture as one SVG document, encoded as text."""
    lines = _lines(policy, tenant)
    nodes = _nodes(policy, tenant, lines)
    columns = _arranged(nodes)
    return _svg(f"Policy of {tenant}, version {policy.version[:12]}", nodes, columns, lines)


def _lines(policy: Policy, tenant: str) -> list[_Line]:
    found: dict[tuple[str, str, str], list[str]] = {}

    def add(start: str, end: str, kind: str, row: str) -> None:
        found.setdefault((start, end, kind), []).append(row)

    for name in ("g", "g3"):
        for member, group, domain in policy.graphs[name].links:
            if domain == tenant:
                add(
                    member, group, "for" if name == "g3" else "member", f"{name}, {member}, {group}, {domain}"
                )
    best: dict[tuple[str, str], str] = {}
    for rule in policy.rules["p"]:
        who, where, tool, act, _, effect = rule.values
        if where not in (tenant, "*"):
            continue
        acts = (*_LADDER, "approve", "undo") if act == "*" and effect == "allow" else (act,)
        for each in acts:
            if effect == "deny":
                add(who, tool, "deny", rule.row.text)
            elif each in _LADDER:
                known = best.get((who, tool), each)
                best[who, tool] = min(known, each, key=_LADDER.index)
                add(who, tool, "call", rule.row.text)
            else:
                add(who, tool, each, rule.row.text)
    reached = {end for (_, end, kind) in found if kind not in ("member", "for")}
    for tool, group in (link[:2] for link in policy.graphs["g2"].links):
        if group in reached:
            add(group, tool, "member", f"g2, {tool}, {group}")
    return [
        _Line(start, end, best[start, end] if kind == "call" else kind, tuple(dict.fromkeys(rows)))
        for (start, end, kind), rows in found.items()
    ]


def _nodes(policy: Policy, tenant: str, lines: Iterable[_Line]) -> dict[str, _Node]:
    nodes: dict[str, _Node] = {}
    for line in lines:
        for name in (line.start, line.end):
            nodes.setdefault(
                name, _Node(name, _column(name, is_tool=name == line.end and line.kind != "for"))
            )
            nodes[name].lines.append(line)
    graph = policy.graphs["g"]
    for name, node in nodes.items():
        if name.startswith("role:"):
            node.level = _depth(name, {other: graph.givers(other, tenant) for other in nodes})
    return nodes


def _column(name: str, *, is_tool: bool) -> int:
    kinds = {"agent:": 0, "user:": 1, "role:": 2, "grp:": 3}
    return next((column for start, column in kinds.items() if name.startswith(start)), 4 if is_tool else 2)


def _depth(name: str, givers: Mapping[str, Iterable[str]]) -> int:
    """How many roles stand before it in the longest chain of roles."""
    roles = [giver for giver in givers.get(name, ()) if giver.startswith("role:")]
    return max((1 + _depth(role, givers) for role in roles), default=0)


def _arranged(nodes: Mapping[str, _Node]) -> list[list[_Node]]:
    """The nodes by level from left to right, placed so that lines are short and cross little."""
    levels = sorted({(node.column, node.level) for node in nodes.values()})
    columns = [
        sorted(
            (node for node in nodes.values() if (node.column, node.level) == level),
            key=lambda node: node.label,
        )
        for level in levels
    ]
    for column in columns:
        _stack(column)
    for sweep in range(_SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            middles = {node.label: _middle(node, nodes) for node in column}
            column.sort(key=lambda node: middles[node.label])
            _stack(column)
    tallest = max((len(column) for column in columns), default=0)
    x = float(_EDGE_PX)
    for column in columns:
        # A short column is spread out, so that its lines part.
        apart = min(tallest * _ROW_PX / len(column), _APART_MAX_PX)
        shift = (tallest * _ROW_PX - len(column) * apart + apart - _ROW_PX) / 2
        for place, node in enumerate(column):
            node.x, node.y = x, _TOP_PX + shift + place * apart
        x += max(node.width for node in column) + _GAP_PX
    return columns


def _stack(column: Iterable[_Node]) -> None:
    for place, node in enumerate(column):
        node.y = _TOP_PX + place * _ROW_PX


def _middle(node: _Node, nodes: Mapping[str, _Node]) -> float:
    ends = [nodes[line.end if line.start == node.label else line.start].y for line in node.lines]
    return sum(ends) / len(ends) if ends else node.y


def _svg(title: str, nodes: Mapping[str, _Node], columns: list[list[_Node]], lines: Iterable[_Line]) -> str:
    lines = list(lines)
    kinds = [kind for kind in _KINDS if any(line.kind == kind for line in lines)]
    right = max((node.x + node.width for node in nodes.values()), default=300) + _EDGE_PX
    right = max(right, _legend_width(kinds), len(title) * 9 + 2 * _EDGE_PX)
    bottom = max((node.y for node in nodes.values()), default=_TOP_PX) + _ROW_PX
    height = bottom + _LEGEND_PX
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {right:.0f} {height:.0f}",
            "width": f"{right:.0f}",
            "height": f"{height:.0f}",
            "font-family": _FONT,
            "font-size": "12",
        },
    )
    _add(root, "rect", width="100%", height="100%", fill="#ffffff")
    _text(root, _EDGE_PX, 26, title, size="16", weight="600")
    for column in columns:
        if column[0].level == 0:
            _text(root, column[0].x, 52, _COLUMNS[column[0].column], fill="#64748b")
    for line in lines:
        _curve(root, nodes[line.start], nodes[line.end], line)
    for node in nodes.values():
        _box(root, node)
    _legend(root, kinds, bottom + _LEGEND_PX / 2)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _box(root: ET.Element, node: _Node) -> None:
    group = _add(root, "g")
    _add(group, "title").text = node.label
    _add(
        group,
        "rect",
        x=_px(node.x),
        y=_px(node.y),
        width=_px(node.width),
        height=str(_BOX_PX),
        rx="6",
        fill=_FILLS[node.column],
        stroke=_STROKES[node.column],
    )
    label = node.label if len(node.label) <= _LABEL_MAX else f"{node.label[: _LABEL_MAX - 1]}…"
    _text(group, node.x + 11, node.y + 17, label)


def _curve(root: ET.Element, start: _Node, end: _Node, line: _Line) -> None:
    colour, dashes, _ = _KINDS[line.kind]
    # Several lines between two boxes leave and arrive beside each other.
    between = [each for each in start.lines if each.end == line.end]
    offset = (between.index(line) - (len(between) - 1) / 2) * 6
    x1, y1 = start.x + start.width, start.y + _BOX_PX / 2 + offset
    x2, y2 = end.x, end.y + _BOX_PX / 2 + offset
    if x2 > x1:
        bend = (x2 - x1) / 2
        out, back = x1 + bend, x2 - bend
    else:  # to the left, or in the same column: round the right side
        x2 = end.x + end.width
        out = back = max(x1, x2) + _GAP_PX / 2
    path = f"M {_px(x1)} {_px(y1)} C {_px(out)} {_px(y1)} {_px(back)} {_px(y2)} {_px(x2)} {_px(y2)}"
    curve = _add(root, "path", d=path, fill="none", stroke=colour)
    curve.set("stroke-width", "1.2" if line.kind == "member" else "1.8")
    curve.set("stroke-opacity", "0.8")
    if dashes:
        curve.set("stroke-dasharray", dashes)
    _add(curve, "title").text = "\n".join(line.rows)


def _legend_width(kinds: Iterable[str]) -> float:
    return 2 * _EDGE_PX + sum(_entry_width(kind) for kind in kinds)


def _entry_width(kind: str) -> float:
    return 36 + len(_KINDS[kind][2]) * _LETTER_PX + 18


def _legend(root: ET.Element, kinds: Iterable[str], y: float) -> None:
    x = float(_EDGE_PX)
    for kind in kinds:
        colour, dashes, words = _KINDS[kind]
        stroke = _add(root, "path", d=f"M {_px(x)} {_px(y)} h 28", stroke=colour)
        stroke.set("stroke-width", "2")
        if dashes:
            stroke.set("stroke-dasharray", dashes)
        _text(root, x + 36, y + 4, words, fill="#334155")
        x += _entry_width(kind)


def _text(
    parent: ET.Element,
    x: float,
    y: float,
    text: str,
    *,
    fill: str = "#0f172a",
    size: str = "12",
    weight: str = "400",
) -> None:
    element = _add(parent, "text", x=_px(x), y=_px(y), fill=fill)
    element.set("font-size", size)
    element.set("font-weight", weight)
    element.text = text


def _add(parent: ET.Element, tag: str, **attributes: str) -> ET.Element:
    return ET.SubElement(parent, tag, attributes)


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
