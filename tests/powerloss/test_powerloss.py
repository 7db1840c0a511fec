"""Nothing acknowledged is lost when the power fails; and what is lost, where it may be, is noticed."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import anyio
import pytest
from tests.powerloss.disk import Disk, cuts
from tests.powerloss.recording import library, recording
from tests.powerloss.run import Report, campaign, one_cut, recovered

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or library() is None,
    reason="this Python's SQLite lets nobody put a file system of his own before it",
)


def test_no_acknowledged_call_is_lost_and_every_record_is_sound() -> None:
    report = campaign(number=10, seed=1)
    assert (report.cuts, report.lost, report.flaws) == (10, [], [])
    assert report.acknowledged > 0


def test_a_disk_that_syncs_nothing_is_noticed() -> None:
    assert campaign(number=3, seed=1, lies=True).lost


async def test_a_record_that_was_cut_off_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    (home := tmp_path / "record").mkdir()
    with recording(home) as to:
        await recovered(home / "remit.db")
    disk, report, rng, played = Disk(), Report(seed=1), random.Random(1), 0
    for place in cuts(to.tape, 8, rng):
        for entry in to.tape[played:place]:
            disk.play(entry)
        played = place
        await anyio.to_thread.run_sync(one_cut, disk, tmp_path / "cut", rng, report)
    assert (report.cuts, report.flaws) == (8, [])


@pytest.mark.slow
def test_no_acknowledged_call_is_lost_in_500_cuts() -> None:
    report = campaign(number=500, seed=2)
    assert (report.cuts, report.lost, report.flaws) == (500, [], [])


@pytest.mark.slow
def test_relaxed_durability_loses_outcomes_and_never_an_intent() -> None:
    report = campaign(number=200, seed=3, relaxed=True)
    assert report.flaws == []
    assert report.lost
    assert all("was succeeded, and is in_doubt" in each for each in report.lost)
