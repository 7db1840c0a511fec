"""Do the tests notice? Each seeded fault must make the suite fail. Slow; one process for each fault."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.rbac.mutants import MUTANTS, Mutant

import remit_rbac

HERE = Path(__file__).parent
SOURCE = Path(remit_rbac.__file__).parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.new[:40]!r}")
def test_a_fault_is_seeded_where_it_was_meant(mutant: Mutant):
    text = (SOURCE / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.new[:40]!r}")
def test_a_seeded_fault_is_noticed(mutant: Mutant, tmp_path: Path):
    copy = tmp_path / "remit_rbac"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / mutant.file
    path.write_text(path.read_text().replace(mutant.old, mutant.new))
    assert not noticed_nothing(tmp_path), f"no test noticed {mutant}"


def noticed_nothing(packages: Path) -> bool:
    """Whether both the tests and a short comparison with stock Casbin pass on these packages."""
    environment = {**os.environ, "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    names = ["decisions", "expressions", "loading", "model", "pitfalls", "published", "lint", "explain"]
    commands = [
        [
            *("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"),
            *(str(HERE / f"test_{name}.py") for name in names),
        ],
        ["-m", "tests.rbac.fuzz", "--comparisons", "3000", "--seed", "1"],
    ]
    return all(
        subprocess.run(
            [sys.executable, *command],
            cwd=HERE.parent.parent,
            env=environment,
            capture_output=True,
            check=False,
            timeout=240,
        ).returncode
        == 0
        for command in commands
    )
