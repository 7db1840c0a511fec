"""A process that dies between any two steps leaves a record that is true, and nothing happens twice."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.crash import mutants, points
from tests.crash.points import Death


@pytest.fixture
def place() -> Generator[Path]:
    """A folder in memory where there is one: what a killed process wrote is there, synced or not."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def deaths(folder: Path) -> list[Death]:
    """Every point at which the story can be cut, as an uncut telling finds them."""
    folder.mkdir()
    seen = points.play(folder)
    assert points.disagreements(folder, at_rest=False) == []
    assert {effect["name"] for effect in points.effects(folder / "till")} == {
        "buy",
        "set",
        "send",
        "give_back",
    }
    return [Death(moment=moment, number=n + 1) for moment, count in seen.items() for n in range(count)]


def test_a_process_that_dies_at_any_point_leaves_the_truth(place: Path) -> None:
    everywhere = deaths(place / "whole")
    assert len(everywhere) > 35
    for number, death in enumerate(everywhere):
        folder = place / str(number)
        folder.mkdir()
        assert points.flaws_after(folder, death) == [], str(death)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", mutants.MUTANTS)
def test_a_fault_that_was_put_in_is_found(place: Path, mutant: str) -> None:
    everywhere = deaths(place / "whole")
    if mutant == "commits_in_halves":
        everywhere += [Death(moment="between halves", number=n) for n in range(2, 12)]
    for number, death in enumerate(everywhere):
        folder = place / str(number)
        folder.mkdir()
        if points.flaws_after(folder, death, mutant):
            return
    pytest.fail(f"no death made {mutant} show")
