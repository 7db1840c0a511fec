"""Exports: the same events in the forms of other systems, each of which leads back to what was sealed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from tests.server.acme import Terminal
from tests.server.builders import a_remit
from tests.server.test_erasing import ROLES, a_place

OCSF = json.loads((Path(__file__).parents[1] / "fixtures/ocsf_api_activity.json").read_text("utf-8"))


def sealed(remit: Terminal, *words: str) -> list[dict[str, Any]]:
    """What the record itself says."""
    return [json.loads(line) for line in remit("audit", "export", *words).out.splitlines()]


def test_a_table_has_a_row_for_each_event_and_the_event_itself(remit: Terminal) -> None:
    rows = list(csv.DictReader(io.StringIO(remit("audit", "export", "--format", "csv").out)))
    told = sealed(remit)
    assert [row["hash"] for row in rows] == [each["hash"] for each in told]
    assert [json.loads(row["event"]) for row in rows] == [each["event"] for each in told]
    refund = next(row for row in rows if row["kind"] == "call.succeeded" and row["tool"] == "acme.refund")
    assert (refund["agent"], refund["user"], refund["effect"]) == (
        "agent:support-bot",
        "user:alice",
        "reversible",
    )
    assert refund["at"].endswith("Z")


def test_no_spreadsheet_takes_what_an_agent_wrote_for_a_formula(tmp_path: Path) -> None:
    runs = ["=HYPERLINK(1)", "+1", "-1", "@x", "\tx", "\n=1", "\uff1d1", "ticket-1"]

    async def life() -> None:
        async with a_remit(tmp_path, policy=ROLES) as remit:
            for run in runs:
                await remit.done("shop.look", {"thing": "pen"}, run=run)

    anyio.run(life)
    out = a_place(tmp_path)("audit", "export", "--format", "csv").out
    rows = [row for row in csv.DictReader(io.StringIO(out)) if row["kind"] == "call.succeeded"]
    assert [row["run"] for row in rows] == [*(f"'{run}" for run in runs[:-1]), "ticket-1"]
    assert [json.loads(row["event"])["run"] for row in rows] == runs


def test_what_an_agent_wrote_neither_ends_a_row_of_a_table_nor_begins_one(tmp_path: Path) -> None:
    runs = ["a\rforged", "a\nforged,1", 'a"\r\nforged,1', "a\0b"]

    async def life() -> None:
        async with a_remit(tmp_path, policy=ROLES) as remit:
            for run in runs:
                await remit.done("shop.look", {"thing": "pen"}, run=run)

    anyio.run(life)
    place = a_place(tmp_path)
    out = place("audit", "export", "--format", "csv").out
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert [row["hash"] for row in rows] == [each["hash"] for each in sealed(place)]
    assert [row["run"] for row in rows if row["kind"] == "call.succeeded"] == runs


def test_a_parquet_file_has_the_same_rows(remit: Terminal, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "events.parquet"
    assert remit("audit", "export", "--format", "parquet", "-o", str(file)).code == 0
    table = parquet.read_table(file)
    assert table.column("hash").to_pylist() == [each["hash"] for each in sealed(remit)]
    assert str(table.schema.field("at").type) == "timestamp[us, tz=UTC]"
    assert file.stat().st_mode & 0o777 == 0o600
    assert remit("audit", "export", "--format", "parquet").code == 64


def test_a_cloud_event_is_one_by_its_specification(remit: Terminal) -> None:
    events = [
        json.loads(line) for line in remit("audit", "export", "--format", "cloudevents").out.splitlines()
    ]
    told = sealed(remit)
    assert [event["data"] for event in events] == [each["event"] for each in told]
    assert len({(event["source"], event["id"]) for event in events}) == len(told)
    for event in events:
        assert event["specversion"] == "1.0"
        assert all(event[name] for name in ("id", "source", "type", "time", "remithash"))
        assert all(name.isalnum() and name == name.lower() for name in event)


def test_ocsf_is_api_activity_with_a_fingerprint_of_what_was_sealed(remit: Terminal) -> None:
    events = [json.loads(line) for line in remit("audit", "export", "--format", "ocsf").out.splitlines()]
    assert len(events) == len(sealed(remit))
    chains: dict[str, str] = {}
    for event in events:
        assert list(flaws(event, OCSF["class"])) == []
        assert (event["class_uid"], event["category_uid"]) == (6003, 6)
        assert event["type_uid"] == 600300 + event["activity_id"]
        (proof,) = event["attestation_list"]
        previous = chains.get(proof["chain_uid"], "0" * 64)
        digest = hashlib.sha256(bytes.fromhex(previous) + event["raw_data"].encode()).hexdigest()
        assert proof["fingerprint"]["value"] == digest
        if "prev_event" in proof:
            assert proof["prev_event"]["fingerprint"]["value"] == previous
        chains[proof["chain_uid"]] = digest


def test_a_fingerprint_before_is_that_of_the_event_that_it_names(tmp_path: Path) -> None:
    async def life() -> None:
        async with a_remit(tmp_path, policy=ROLES) as remit:
            await remit.done("shop.look", {"thing": "pen"})
            await remit.switch("kill", "tool", "shop.set")
            await remit.done("shop.look", {"thing": "pen"})

    anyio.run(life)
    place = a_place(tmp_path)
    whole = {f"{it['event']['stream']}/{it['event']['seq']}": it["hash"] for it in sealed(place)}
    chosen = place("audit", "export", "--format", "ocsf", "--tenant", "acme").out.splitlines()
    before = [json.loads(line)["attestation_list"][0]["prev_event"] for line in chosen]
    assert {"fingerprint" in each for each in before[1:]} == {True, False}
    assert all(each["fingerprint"]["value"] == whole[each["uid"]] for each in before if "fingerprint" in each)


def flaws(value: dict[str, Any], of: dict[str, Any]) -> Generator[str]:
    """What the schema does not allow of an object: its names, types, enumerations, requirements."""
    attributes = of["attributes"]
    for name, rule in attributes.items():
        if rule.get("required") and name not in value:
            yield f"{name} is missing"
    for name in value:
        if name not in attributes:
            yield f"there is no {name}"
            continue
        rule = attributes[name]
        for one in value[name] if rule.get("array") else [value[name]]:
            if rule["type"] in OCSF["objects"]:
                inner = OCSF["objects"][rule["type"]]
                yield from (f"{name}.{flaw}" for flaw in flaws(one, inner))
            elif rule["type"] in ("integer_t", "long_t", "timestamp_t"):
                if type(one) is not int or ("enum" in rule and str(one) not in rule["enum"]):
                    yield f"{name} cannot be {one!r}"
            elif rule["type"] in ("string_t", "username_t", "file_hash_t") and not isinstance(one, str):
                yield f"{name} cannot be {one!r}"
    needed = of.get("constraints", {}).get("at_least_one", ())
    if needed and not any(name in value for name in needed):
        yield f"one of {needed} is missing"


@contextmanager
def a_collector(status: int = 200, answer: bytes = b"") -> Generator[tuple[str, list[bytes]]]:
    """An OTLP collector on loopback, and the bodies that it got."""
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Location", "/sign-in")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/logs", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_schema_is_one_that_can_be_failed(remit: Terminal) -> None:
    event = json.loads(remit("audit", "export", "--format", "ocsf").out.splitlines()[0])
    for change in (
        {"severity_id": 7},
        {"nonsense": 1},
        {"actor": {}},
        {"api": {"version": "1"}},
        {"time": "x"},
    ):
        assert list(flaws({**event, **change}, OCSF["class"]))
    del event["metadata"]
    assert list(flaws(event, OCSF["class"])) == ["metadata is missing"]


def test_a_collector_gets_a_log_record_of_each_event(remit: Terminal) -> None:
    with a_collector() as (endpoint, got):
        assert remit("audit", "export", "--format", "otlp", "--endpoint", endpoint).code == 0
    requests = [ExportLogsServiceRequest.FromString(body) for body in got]
    logs = [
        log
        for request in requests
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for log in scope.log_records
    ]
    told = sealed(remit)
    assert [json.loads(log.body.string_value) for log in logs] == [each["event"] for each in told]
    assert [log.event_name for log in logs] == [f"remit.{each['event']['kind']}" for each in told]
    assert [log.time_unix_nano for log in logs] == [each["event"]["at_us"] * 1000 for each in told]


def test_a_collector_that_refuses_is_said(remit: Terminal) -> None:
    part = ExportLogsServiceResponse()
    part.partial_success.rejected_log_records = 1
    for collector in (
        a_collector(status=400),
        a_collector(status=302),
        a_collector(answer=part.SerializeToString()),
    ):
        with collector as (endpoint, _):
            refused = remit("audit", "export", "--format", "otlp", "--endpoint", endpoint)
        assert refused.code == 1
        assert "did not take the events" in refused.err
    assert remit("audit", "export", "--format", "otlp").code == 64
    assert remit("audit", "export", "--format", "otlp", "--endpoint", "").code == 64


def test_what_is_exported_can_be_limited(remit: Terminal) -> None:
    whole = sealed(remit)
    assert sealed(remit, "--tenant", "nobody") == []
    mine = sealed(remit, "--tenant", "acme")
    assert 0 < len(mine) < len(whole)
    assert all(each["event"]["tenant"] == "acme" for each in mine)
    assert sealed(remit, "--until", "2020-01-01") == []
    assert remit("audit", "export", "--format", "csv", "--checkpoint", "x").code == 64
