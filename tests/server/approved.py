"""Texts that somebody has read and approved: what a command says must be what stands there.

`approved(name, text)` compares with `tests/server/approved/NAME.txt`. When a text has changed for the better,
read it, and approve it by running the tests once with `REMIT_APPROVE=1` in the environment.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "approved"
#: What differs from run to run, by form.
_PASSING = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"), "<id>"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?Z"), "<time>"),
    (re.compile(r"version [0-9a-f]{12}\b"), "version <digest>"),
)


def approved(name: str, text: str) -> None:
    for form, shown in _PASSING:
        text = form.sub(shown, text)
    path = FOLDER / f"{name}.txt"
    if os.environ.get("REMIT_APPROVE"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.exists(), (
        f"nobody has approved {path} yet; read this, and run again with REMIT_APPROVE=1\n{text}"
    )
    assert text == path.read_text()
