"""The benchmarks run: what they print is only worth reading while they measure calls that succeed."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import stages


# A front that never serves has streams that nobody closes.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_the_stages_of_a_call_are_measured_on_calls_that_succeed(tmp_path: Path) -> None:
    rows = [
        await stages.front_and_pipeline(tmp_path, calls=5),
        *[await stages.journal(tmp_path, calls=8, together=together) for together in (1, 4)],
    ]
    assert [(row.stage, row.calls) for row in rows] == [
        ("front and pipeline", 5),
        ("journal", 8),
        ("journal", 8),
    ]
