"""Events as other systems take them: tables, log records, and the forms that security tools agree on.

Each form is a view of the same events. The record itself, byte for byte as it was sealed, is what `remit
audit export` prints by default; every other form names stream, number and hash of each event, so that one
leads back to the other. What is read is written at once: memory does not grow with the number of events.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from remit.chain import EventRow
from remit.errors import RemitError

Format = Literal["jsonl", "csv", "parquet", "otlp", "ocsf", "cloudevents"]
Json = dict[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Facts that have a column of their own in tables.
_FACTS = ("agent", "user", "run", "tool", "effect", "verdict", "code", "error_code", "by")
_COLUMNS: tuple[str, ...] = ("stream", "seq", "at", "kind", "tenant", "call_id", *_FACTS, "event", "hash")
#: What begins a formula, also at full width, or is passed over before one.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
#: Events that one request, or one group of rows, carries.
_BATCH = 512
_ROWS = 8192


def lines(events: Iterable[EventRow], form: Format) -> Iterator[str]:
    """The events as lines of text; for `jsonl`, `csv`, `ocsf` and `cloudevents`."""
    match form:
        case "csv":
            return _csv(events)
        case "ocsf":
            return (_line(each) for each in _ocsf(events))
        case "cloudevents":
            return (_line(cloud_event(event)) for event in events)
        case _:
            return (f'{{"hash":"{event.hash}","event":{event.body}}}\n' for event in events)


def write_parquet(events: Iterable[EventRow], path: Path) -> None:
    """A Parquet file of the events, group of rows by group. Raises RemitError without the `parquet` extra."""
    try:
        arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        raise RemitError("Parquet needs the parquet extra: pip install 'remit[parquet]'") from None
    kinds = {"seq": arrow.int64(), "at": arrow.timestamp("us", tz="UTC")}
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in _COLUMNS])
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        rows = (_row(event) | {"at": event.at_us} for event in events)
        while some := list(islice(rows, _ROWS)):
            writer.write_table(arrow.Table.from_pylist(some, schema=schema))


def send_otlp(events: Iterable[EventRow], endpoint: str) -> None:
    """Send the events to a collector as OTLP log records over HTTP. Raises RemitError when it refuses."""
    try:
        from opentelemetry._logs import LogRecord, SeverityNumber
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
        from opentelemetry.sdk._logs import ReadableLogRecord
        from opentelemetry.sdk._logs.export import LogRecordExportResult
        from opentelemetry.sdk.resources import Resource
        from requests import Response, Session
    except ImportError:
        raise RemitError("OTLP needs the otlp extra: pip install 'remit[otlp]'") from None
    resource = Resource({"service.name": "remit", "service.version": version("remit")})

    def record(event: EventRow) -> ReadableLogRecord:
        attributes = {
            "gen_ai.tool.name" if name == "tool" else f"remit.{name}": value
            for name, value in _row(event).items()
            if value is not None and name not in ("at", "event")
        }
        troubled = _SEVERITY.get(event.kind, 1) > 1
        severity = SeverityNumber.WARN if troubled else SeverityNumber.INFO
        return ReadableLogRecord(
            LogRecord(
                timestamp=event.at_us * 1000,
                observed_timestamp=event.at_us * 1000,
                severity_number=severity,
                severity_text=severity.name,
                event_name=f"remit.{event.kind}",
                body=event.body,
                attributes=attributes,
            ),
            resource,
        )

    def must_have_taken_all(answer: Response, *_: Any, **__: Any) -> None:
        # The exporter counts a redirection, and what was taken in part, as done.
        content = answer.content
        if 300 <= answer.status_code < 400:
            raise RemitError(f"it answered {answer.status_code}")
        if answer.ok and "protobuf" in answer.headers.get("content-type", ""):
            part = ExportLogsServiceResponse.FromString(content).partial_success
            if part.rejected_log_records:
                raise RemitError(f"it refused {part.rejected_log_records}: {part.error_message}")

    session = Session()
    session.hooks["response"].append(must_have_taken_all)
    exporter = OTLPLogExporter(endpoint=endpoint, session=session)
    try:
        left = iter(events)
        while some := [record(event) for event in islice(left, _BATCH)]:
            if exporter.export(some) is not LogRecordExportResult.SUCCESS:
                raise RemitError(f"the collector at {endpoint} did not take the events: see its log")
    finally:
        exporter.shutdown()


def cloud_event(event: EventRow) -> Json:
    """One event as a CloudEvent (cloudevents.io, version 1.0) in its JSON form."""
    return {
        "specversion": "1.0",
        "id": f"{event.stream}/{event.seq}",
        "source": "/remit",
        "type": f"dev.remit.{event.kind}",
        "time": _at(event),
        "datacontenttype": "application/json",
        **({"subject": event.call_id} if event.call_id else {}),
        "remithash": event.hash,
        "data": json.loads(event.body),
    }


#: OCSF: 1 informational, 2 low, 3 medium.
_SEVERITY: Mapping[str, int] = {
    "call.denied": 2,
    "call.failed": 2,
    "call.in_doubt": 3,
    "call.contradicted": 3,
    "policy.rejected": 3,
}
#: OCSF: 1 success, 2 failure.
_STATUS: Mapping[str, int] = {"call.succeeded": 1, "call.denied": 2, "call.failed": 2, "call.in_doubt": 0}


def _ocsf(events: Iterable[EventRow]) -> Iterator[Json]:
    """Events as API Activity (class 6003) of OCSF, with its profiles `record_integrity` and `ai_operation`.

    The fingerprint covers `raw_data`, which is the event as it was sealed, and the fingerprint before it.
    """
    newest: dict[str, EventRow] = {}
    for event in events:
        facts: Json = json.loads(event.body)
        agent, person = facts.get("agent"), facts.get("user") or facts.get("by")
        status = _STATUS.get(event.kind, 99)
        activity = {None: 99, "read": 2}.get(facts.get("effect"), 3)
        previous: Json = {"uid": f"{event.stream}/{event.seq - 1}"}
        before = newest.get(event.stream)
        if before and before.seq == event.seq - 1:  # of a choice, the one before may be missing
            previous["fingerprint"] = _fingerprint(before.hash)
        attestation = {
            "uid": f"{event.stream}/{event.seq}",
            "chain_uid": event.stream,
            "fingerprint": _fingerprint(event.hash),
            **({"prev_event": previous} if event.seq > 1 else {}),
        }
        newest[event.stream] = event
        yield {
            "activity_id": activity,
            "activity_name": {2: "Read", 3: "Update"}.get(activity, event.kind),
            "category_uid": 6,
            "class_uid": 6003,
            "type_uid": 600300 + activity,
            "severity_id": _SEVERITY.get(event.kind, 1),
            "time": event.at_us // 1000,
            "message": f"{event.kind} {facts.get('tool') or ''}".strip(),
            "status_id": status,
            "status": {0: "Unknown", 1: "Success", 2: "Failure"}.get(status, event.kind),
            **({"status_code": code} if (code := facts.get("error_code") or facts.get("code")) else {}),
            "metadata": {
                "version": "1.9.0-dev",
                "product": {"name": "Remit", "vendor_name": "Remit", "version": version("remit")},
                "profiles": ["record_integrity", "ai_operation"],
                "uid": f"{event.stream}/{event.seq}",
                "sequence": event.seq,
                "event_code": event.kind,
                **({"tenant_uid": event.tenant} if event.tenant else {}),
                **({"correlation_uid": event.call_id} if event.call_id else {}),
            },
            "actor": {
                "app_name": agent or "remit",
                **({"user": {"name": person, "uid": person, "type_id": 1}} if person else {}),
            },
            "api": {
                "operation": facts.get("tool") or event.kind,
                "service": {"name": "remit"},
                **({"request": {"uid": event.call_id}} if event.call_id else {}),
            },
            "src_endpoint": {"name": agent or "remit", "svc_name": "remit"},
            **({"ai_agent": {"name": agent, "uid": agent}} if agent else {}),
            "raw_data": event.body,
            "attestation_list": [attestation],
            "unmapped": {name: facts[name] for name in ("verdict", "run", "policy_version") if name in facts},
        }


def _fingerprint(digest: str) -> Json:
    return {"algorithm": "SHA-256", "algorithm_id": 3, "value": digest}


def _csv(events: Iterable[EventRow]) -> Iterator[str]:
    held = io.StringIO()
    # Only what ends a row is quoted by every Python: a value may have either in it.
    writer = csv.DictWriter(held, _COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    for event in events:
        yield _taken(held)
        writer.writerow({name: _inert(value) for name, value in _row(event).items()})
    yield _taken(held)


def _taken(row: io.StringIO) -> str:
    """The row that was written, which ends as a line does."""
    text = row.getvalue().removesuffix("\r\n") + "\n"
    row.seek(0)
    row.truncate()
    return text


def _inert(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula (CWE-1236): agents name their runs themselves."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _row(event: EventRow) -> Json:
    facts = json.loads(event.body)
    return {
        "stream": event.stream,
        "seq": event.seq,
        "at": _at(event),
        "kind": event.kind,
        "tenant": event.tenant,
        "call_id": event.call_id,
        **{name: facts.get(name) for name in _FACTS},
        "event": event.body,
        "hash": event.hash,
    }


def _at(event: EventRow) -> str:
    moment = _EPOCH + timedelta(microseconds=event.at_us)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _line(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def counted(events: Iterable[EventRow], advance: Callable[[], None]) -> Iterator[EventRow]:
    """The events, and `advance` told of each that has gone by."""
    for event in events:
        yield event
        advance()
