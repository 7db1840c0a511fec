"""Traces and metrics, through the OpenTelemetry API: nothing happens until an SDK is configured.

Spans carry names, ids and verdicts, never arguments. One trace runs from the client through Remit to the
source: the caller's context comes in `_meta` (W3C Trace Context) and goes out there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, propagate, trace

if TYPE_CHECKING:
    from remit.model import Call, Outcome

_NOTHING = nullcontext()
_tracer = trace.get_tracer("remit")
_meter = metrics.get_meter("remit")
_calls = _meter.create_counter("remit.calls", unit="{call}", description="Governed calls by outcome.")
_seconds = _meter.create_histogram("remit.call.duration", unit="s", description="Whole governed calls.")


def on() -> bool:
    """Whether a tracer is configured."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def span(name: str, call: Call) -> AbstractContextManager[Any]:
    """A span of one stage of `call`; costs nothing while tracing is off."""
    if not on():
        return _NOTHING
    return _tracer.start_as_current_span(
        name,
        attributes={
            "remit.call.id": call.id,
            "remit.call.kind": call.kind,
            "remit.tenant": call.principal.tenant,
            "remit.agent": call.principal.agent,
            "gen_ai.tool.name": call.tool.name,
        },
    )


def propagated(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """`meta` with the current trace context, for the source."""
    if not on():
        return meta
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return {**meta, **carrier}


def current_trace_id() -> str | None:
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None


def count(call: Call, outcome: Outcome, seconds: float) -> None:
    attributes = {"tool": call.tool.name, "outcome": type(outcome).__name__.lower()}
    _calls.add(1, attributes)
    _seconds.record(seconds, attributes)


def configure(endpoint: str) -> None:
    """Export to an OTLP/HTTP endpoint. Raises ImportError without the `otlp` extra."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "remit"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))
    trace.set_tracer_provider(provider)
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{endpoint.rstrip('/')}/v1/metrics"))
    metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=[reader]))
