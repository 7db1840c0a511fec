"""The benchmarks run: what they print is only worth reading while they measure calls that succeed."""

from __future__ import annotations

from pathlib import Path

from benchmarks import growth, ledger, policy, stages, startup, undo
from benchmarks.targets import plain_writer


async def test_the_stages_of_a_call_are_measured_on_calls_that_succeed(tmp_path: Path) -> None:
    rows = [
        *[await stages.front_and_pipeline(tmp_path, calls=5, trial=trial) for trial in (False, True)],
        *[await stages.journal(tmp_path, calls=8, together=together) for together in (1, 4)],
    ]
    assert [(row.stage, row.calls) for row in rows] == [
        ("front and pipeline", 5),
        ("the same, with a policy on trial", 5),
        ("journal", 8),
        ("journal", 8),
    ]


async def test_the_ledger_is_measured_by_how_many_calls_wait_together(tmp_path: Path) -> None:
    rows = await ledger.measured(tmp_path, lambda name: tmp_path / name, rounds=1, seconds=0.5)
    assert [row.concurrency for row in rows] == [1, 16, 128]
    assert all(row.calls_per_s > 0 and row.naive_calls_per_s > 0 for row in rows)
    assert 2.0 <= rows[0].fsyncs < 3  # nothing to share a commit with
    assert rows[2].fsyncs < 1
    assert await plain_writer.cpu_us(tmp_path / "plain.db", concurrency=4, seconds=0.1) > 0


def test_a_record_grown_in_bulk_verifies_and_answers_every_question(tmp_path: Path) -> None:
    report = growth.measured(tmp_path / "growth.db", tmp_path / "patterns", calls=200)
    assert report.calls == 200
    assert report.events > 390
    assert report.verify_events_per_s > 0
    assert len(report.asked) == len(dict(growth.documented())) + len(growth.VIEWS) + len(growth.filters(0))


def test_a_question_that_takes_too_long_is_given_up_and_the_others_are_asked(tmp_path: Path) -> None:
    growth.load(tmp_path / "growth.db", tmp_path, 300, lambda _: None)
    answers = list(growth.ask(tmp_path / "growth.db", 0, given_up_s=0))
    assert len(answers) == len(dict(growth.documented())) + len(growth.VIEWS) + len(growth.filters(0))
    assert any(each.ms is None for each in answers)


async def test_the_price_of_a_way_back_is_measured_on_calls_that_are_taken_back(tmp_path: Path) -> None:
    figures = await undo.measure(tmp_path, rounds=1)
    assert figures.calls > 0
    assert figures.with_inverse_cpu_us > 0
    assert figures.undo_p50_ms > 0


def test_policy_engines_are_asked_the_same_questions() -> None:
    row = policy.measure(10, seconds=0.01, stock_rules_max=10)
    assert row["rules"] == 10
    assert all(
        row[name] > 0 for name in ("stock_us", "remit_cold_us", "remit_warm_us", "remit_decide_warm_us")
    )


async def test_the_first_answer_of_a_stdio_server_is_timed_beside_a_bare_one(tmp_path: Path) -> None:
    rows, _ = await startup.measure(1, tmp_path)
    assert {"bare", "remit"} <= {row["target"] for row in rows}
