"""One trace from the client through Remit to the source, and nothing of the arguments in it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status as SpanStatus
from tests.interop import running

TRACE = "0af7651916cd43dd8448eb211c80319c"
SECRET = "a-value-that-must-not-be-in-a-span"
CALLER = "b7ad6b7169203331"
ECHO = Path(__file__).parents[1] / "fixtures" / "echo_server.py"
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "traceparent": f"00-{TRACE}-{CALLER}-01",
}
REQUEST: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "echo.echo", "arguments": {"text": SECRET}, "_meta": META},
}
HEADERS = {
    "Accept": "application/json, text/event-stream",
    "MCP-Protocol-Version": "2026-07-28",
    "Mcp-Method": "tools/call",
    "Mcp-Name": "echo.echo",
}
STAGES = {"remit.govern", "remit.decide", "remit.admit", "remit.execute", "remit.settle"}


class Collector:
    """An OTLP/HTTP endpoint that keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.raw = b""
        self.metrics: set[str] = set()
        #: Each point that was sent: the metric, its attributes, its value.
        self.points: list[tuple[str, dict[str, str], int]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.take(self.path, body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, path: str, body: bytes) -> None:
        self.raw += body
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        else:
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                found = [metric for scope in resource.scope_metrics for metric in scope.metrics]
                self.metrics |= {metric.name for metric in found}
                self.points += [
                    (
                        metric.name,
                        {each.key: each.value.string_value for each in point.attributes},
                        point.as_int,
                    )
                    for metric in found
                    for point in (*metric.sum.data_points, *metric.gauge.data_points)
                ]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@contextmanager
def remit_that_tells(collector: Collector, folder: Path) -> Iterator[running.Server]:
    sources = {"echo": {"kind": "mcp", "command": [sys.executable, str(ECHO)]}}
    whole_config = running.remit_config

    def with_telemetry(sources: Any, folder: Path) -> Path:
        path = whole_config(sources, folder)
        more = {
            "telemetry": {"otlp": collector.url},
            "budgets": [{"scope": "agent", "unit": "calls", "window": "day", "limit": 9}],
        }
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "remit_config", with_telemetry)
        with running.remit_in_front_of(sources, folder) as server:
            yield server


def test_a_call_is_one_trace_from_client_to_source(tmp_path: Path, collector: Collector) -> None:
    with remit_that_tells(collector, tmp_path / "remit") as server:
        answer = httpx2.post(server.url, json=REQUEST, headers={**HEADERS, **server.headers})
    # Remit has ended: all it had to send is here.
    assert answer.status_code == 200, answer.text

    spans = {span.name: span for span in collector.spans}
    assert set(spans) >= STAGES
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    served = spans["tools/call echo.echo"]
    assert served.parent_span_id.hex() == CALLER
    assert spans["remit.govern"].parent_span_id == served.span_id
    assert {spans[name].parent_span_id for name in STAGES - {"remit.govern"}} == {
        spans["remit.govern"].span_id
    }
    # What is said to the source belongs to the stage that says it.
    said = answer.json()["result"]["structuredContent"]["meta"]["traceparent"]
    assert said.split("-")[1:3] == [TRACE, spans["remit.execute"].span_id.hex()]
    assert SECRET.encode() not in collector.raw
    assert collector.metrics >= {
        "remit.calls",
        "remit.verdicts",
        "remit.stage.duration",
        "remit.budget.held",
        "remit.calls.in_doubt",
    }


def test_a_trace_does_not_repeat_what_the_source_said(tmp_path: Path, collector: Collector) -> None:
    refused = {**REQUEST["params"], "arguments": {"text": f"refuse {SECRET}"}}
    with remit_that_tells(collector, tmp_path / "remit") as server:
        answer = httpx2.post(
            server.url, json={**REQUEST, "params": refused}, headers={**HEADERS, **server.headers}
        )
    assert SECRET in answer.json()["error"]["message"]

    spans = {span.name: span for span in collector.spans}
    assert set(spans) >= STAGES - {"remit.settle"}
    assert (
        spans["tools/call echo.echo"].status.code
        == spans["remit.execute"].status.code
        == SpanStatus.STATUS_CODE_ERROR
    )
    assert SECRET.encode() not in collector.raw
    assert b"remit_adapters/" not in collector.raw


def until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends, "it never came to be"
        time.sleep(0.05)


def test_a_policy_that_is_refused_shows_as_a_metric_until_it_is_mended(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
    folder = tmp_path / "remit"

    def stale() -> list[int]:
        return [value for name, _, value in collector.points if name == "remit.policy.stale"]

    def loads() -> dict[str, int]:
        """The last count by result."""
        points = [point for point in collector.points if point[0] == "remit.policy.loads"]
        return {attributes["result"]: value for _, attributes, value in points}

    with remit_that_tells(collector, folder):
        assert stale() == []
        policy = folder / "policy.csv"
        policy.write_text(running.POLICY + "p, user:tester, interop, echo.echo, *, 1 == 1, Deny\n")
        until(lambda: stale()[-1:] == [1])
        until(lambda: loads() == {"rejected": 1})
        policy.write_text(running.POLICY + "p, user:tester, interop, echo.gone, *, 1 == 1, deny\n")
        until(lambda: stale()[-1:] == [0])
        until(lambda: loads() == {"rejected": 1, "activated": 1})
