"""A short campaign, and that the campaign itself would notice a miss."""

from __future__ import annotations

import json
import random
import sys
from contextlib import closing
from dataclasses import replace

import anyio
import pytest
from tests.tamper.run import (
    EDITS,
    Record,
    Report,
    a_record,
    campaign,
    findings,
    main,
    one_edit,
    opened,
    reseal,
)

from remit.merkle import EMPTY_ROOT


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return anyio.run(a_record, tmp_path_factory.mktemp("tamper"))


def test_what_nobody_touched_is_found_sound(record: Record) -> None:
    with closing(opened(record.database)) as db:
        assert list(findings(db, record)) == []


def test_several_processes_find_of_each_edit_what_one_finds_and_in_the_same_order(record: Record) -> None:
    assert campaign(record, edits=12, seed=3, jobs=2).missed == []


def test_every_one_of_200_edits_is_found_and_the_separate_verifier_agrees(record: Record) -> None:
    report = campaign(record, edits=200, seed=1)
    assert report.missed == []
    assert report.found.total() == 200
    assert {name.split()[0] for name in report.found} == {edit.__name__ for edit, _ in EDITS}


def test_the_log_that_a_thief_of_the_key_makes_is_sound_but_for_the_kept_checkpoint(record: Record) -> None:
    with closing(opened(record.database)) as db:
        reseal(db, record.signer)
        root = bytes.fromhex(db.execute("SELECT root FROM log_checkpoints").fetchone()["root"])
        kept = replace(record.checkpoint, root=root)
        assert list(findings(db, replace(record, checkpoint=kept))) == []


def test_an_edit_that_nothing_finds_is_reported_as_missed(record: Record) -> None:
    blind = replace(record, checkpoint=replace(record.checkpoint, size=0, root=EMPTY_ROOT))
    report = Report(edits=1, seed=1)
    rng = random.Random(1)
    while not any("resealed" in each and "not found" in each for each in report.missed):
        one_edit(blind, rng, report)


def test_a_campaign_tells_programs_what_it_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run", "--edits", "3", "--seed", "1", "--json"])
    assert main() == 0
    told = json.loads(capsys.readouterr().out)
    assert (sum(told["found"].values()), told["missed"], told["seed"]) == (3, [], 1)
