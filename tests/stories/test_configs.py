"""Every example in `configs` is sound: it fits its sources, nothing in it is odd, and its policy is tested.

A folder with a `remit.yaml` is found by itself; it must have policy tests that reach every row.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import casbin
import pytest
from tests.server.acme import REPOSITORY, Terminal

from remit_rbac.lines import read_lines
from remit_rbac.model import SHIPPED

CONFIGS = REPOSITORY / "configs"
FOLDERS = sorted(str(path.parent.relative_to(CONFIGS)) for path in CONFIGS.rglob("remit.yaml"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_example_fits_its_sources_and_its_policy_does_what_its_tests_say(
    folder: str, tmp_path: Path
) -> None:
    shutil.copytree(CONFIGS, tmp_path, ignore=shutil.ignore_patterns("*.db*"), dirs_exist_ok=True)
    remit = Terminal(tmp_path / folder / "remit.yaml")
    found = remit.json("check")
    assert (found["problems"], found["warnings"]) == ([], [])
    assert found["tools"]
    tests = str(remit.folder / "policy_tests.yaml")
    tested = remit("policy", "test", tests, "--min-coverage", "100")
    assert (tested.code, tested.err) == (0, ""), tested.out


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.csv")), ids=lambda path: path.parent.name)
def test_an_unmodified_casbin_loads_the_same_rows(file: Path) -> None:
    model = file.with_name("model.conf")
    stock = casbin.Enforcer(str(model if model.exists() else SHIPPED), str(file))
    rows = [
        (ptype, *values)
        for section in ("p", "g")
        for ptype, table in stock.model.model[section].items()
        for values in table.policy
    ]
    lines, problems = read_lines(file.read_bytes(), file.name)
    assert (sorted(rows), problems) == (sorted(line.values for line in lines), [])


@pytest.mark.parametrize("model", sorted(CONFIGS.rglob("model.conf")), ids=lambda path: path.parent.name)
def test_an_example_with_a_model_of_its_own_only_adds_to_the_one_that_ships(model: Path) -> None:
    shipped = SHIPPED.read_text("utf-8")
    added = model.read_text("utf-8").removeprefix(shipped)
    assert added != model.read_text("utf-8")
    assert [line for line in added.splitlines() if line.startswith("[")] == ["[constraint_definition]"]


@pytest.mark.parametrize(
    ("story", "row", "broken"),
    [
        ("it-access", "g, user:olga, role:requester, corp", "role:requester"),
        ("hr-offer", "g, user:rita, role:hr_partner, hr", "sod"),
        ("procurement", "g, user:ben, role:signatory, buying", "sodMax"),
    ],
)
def test_nobody_is_given_two_roles_that_exclude_each_other(
    story: str, row: str, broken: str, tmp_path: Path
) -> None:
    shutil.copytree(CONFIGS / "stories" / story, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "policy.csv").open("a") as policy:
        policy.write(f"\n{row}\n")
    checked = Terminal(tmp_path / "remit.yaml")("policy", "check")
    assert checked.code == 1
    assert "[constraint]" in checked.err + checked.out
    assert broken in checked.err + checked.out


@pytest.mark.parametrize("story", sorted(path.parent.name for path in CONFIGS.glob("stories/*/README.md")))
def test_what_a_story_says_to_try_can_be_tried(story: str) -> None:
    page = CONFIGS / "stories" / story / "README.md"
    (command,) = re.findall(r"^remit (policy can .*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    tried = Terminal(page.with_name("remit.yaml"))(*shlex.split(command.replace("\\\n", " ")))
    assert (tried.err, tried.code in (0, 1, 2)) == ("", True), tried
