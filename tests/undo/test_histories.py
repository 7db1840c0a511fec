"""Random histories keep the promises of undo, and a fault that is put in is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.undo.histories import play
from tests.undo.mutants import MUTANTS, Mutant

import remit

HERE = Path(__file__).parent
SOURCE = Path(remit.__file__).parent


@pytest.mark.parametrize("seed", range(1, 9))
def test_whatever_happens_undo_keeps_its_promises(tmp_path: Path, seed: int) -> None:
    play(tmp_path, seed=seed, steps=60)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.new[:40]!r}")
def test_a_fault_is_seeded_where_it_was_meant(mutant: Mutant) -> None:
    text = (SOURCE / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.new[:40]!r}")
def test_a_seeded_fault_is_noticed(mutant: Mutant, tmp_path: Path) -> None:
    copy = tmp_path / "remit"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / mutant.file
    path.write_text(path.read_text().replace(mutant.old, mutant.new))
    ran = subprocess.run(
        [sys.executable, "-m", "tests.undo.run", "--steps", "6000", "--seed", "1"],
        cwd=HERE.parent.parent,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        check=False,
        timeout=580,
    )
    assert ran.returncode == 1, f"no history noticed {mutant}"
