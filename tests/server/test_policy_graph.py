"""`remit policy graph`: everything is in the picture, and nothing in it can do harm."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from tests.server.acme import Terminal, a_place

from remit.graph import draw
from remit_rbac import load_text

SVG = "{http://www.w3.org/2000/svg}"
ROWS = """\
g3, agent:bot, user:ann, acme
g, agent:bot, role:clerk, acme
g, user:ann, role:clerk, acme
g, role:clerk, role:reader, acme
g2, shop.buy, grp:money
p, role:clerk, acme, grp:money, recommend, 1 == 1, allow
p, role:reader, acme, shop.look, execute, r.args.q < 'x', allow
p, user:*, other, shop.look, execute, 1 == 1, allow
p, agent:*, *, shop.*, undo, 1 == 1, deny
"""


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 - our own


def drawn(rows: str = ROWS, tenant: str = "acme") -> ET.Element:
    return parsed(draw(load_text(rows), tenant))


def texts(picture: ET.Element) -> list[str]:
    return [element.text or "" for element in picture.iter(f"{SVG}text")]


def colours(picture: ET.Element) -> dict[str, str]:
    """The colour of each line, by the rows that it stands for."""
    found: dict[str, str] = {}
    for path in picture.iter(f"{SVG}path"):
        title = path.find(f"{SVG}title")
        if title is not None:
            found[title.text or ""] = path.attrib["stroke"]
    return found


def test_everybody_and_everything_of_the_tenant_is_in_the_picture_once() -> None:
    said = texts(drawn())
    for name in ("agent:bot", "user:ann", "role:clerk", "role:reader", "grp:money", "shop.buy", "shop.look"):
        assert said.count(name) == 1
    assert "user:*" not in said, "that row is about another tenant"
    assert "shop.*" in said


def test_lines_tell_how_far_and_which_rows_they_stand_for() -> None:
    found = colours(drawn())
    kinds = {
        "p, role:clerk, acme, grp:money, recommend, 1 == 1, allow": "#d97706",
        "p, role:reader, acme, shop.look, execute, r.args.q < 'x', allow": "#16a34a",
        "p, agent:*, *, shop.*, undo, 1 == 1, deny": "#dc2626",
        "g3, agent:bot, user:ann, acme": "#1d4ed8",
    }
    assert kinds.items() <= found.items()
    legend = texts(drawn())[-6:]
    assert "once a person agrees" in legend
    assert "may approve" not in legend, "what is not drawn needs no legend"


def test_boxes_do_not_lie_on_each_other() -> None:
    boxes = [
        tuple(float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        for box in drawn().iter(f"{SVG}rect")
        if "rx" in box.attrib
    ]
    for number, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, other_width, other_height in boxes[number + 1 :]:
            apart = x + width <= other_x or other_x + other_width <= x
            assert apart or y + height <= other_y or other_y + other_height <= y


def test_a_text_of_the_policy_stays_text() -> None:
    rows = ROWS + "p, user:ann, acme, shop.x, execute, r.args.q == '<script>alert(1)</script>&', allow\n"
    text = draw(load_text(rows), "acme")
    assert "<script>" not in text
    assert any("<script>" in rows for rows in colours(parsed(text)))


@pytest.fixture
def acme(tmp_path: Path) -> Terminal:
    return Terminal(a_place(tmp_path))


def test_the_picture_goes_to_a_file_or_to_stdout(acme: Terminal) -> None:
    file = acme.folder / "policy.svg"
    assert acme("policy", "graph", "-o", str(file)).out == f"Drawn in {file}.\n"
    assert file.read_text() == acme("policy", "graph").out
    assert acme.json("policy", "graph")["svg"] == file.read_text()


def test_a_tenant_that_is_not_there_is_told(acme: Terminal) -> None:
    told = acme("policy", "graph", "--tenant", "nobody")
    assert (told.code, told.err) == (1, "remit: the policy names no tenant nobody: there are acme\n")
