"""Traces and metrics through the OpenTelemetry API; nothing is made and nothing costs until they are on.

Spans carry names, ids and verdicts, never arguments, nor the words of an error, which may repeat them. One
trace runs from the client through Remit to the source: the caller's context comes in `_meta` (W3C Trace
Context) and goes out there. They are on when the configuration names an endpoint, or when the process that
embeds Remit has set a tracer provider before.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry import metrics, propagate, trace

if TYPE_CHECKING:
    from remit.model import Call, Charge, Outcome, Verdict

_NOTHING = nullcontext()
_tracer = trace.get_tracer("remit")
_meter = metrics.get_meter("remit")
_calls = _meter.create_counter("remit.calls", unit="{call}", description="Governed calls by outcome.")
_verdicts = _meter.create_counter(
    "remit.verdicts", unit="{verdict}", description="Decisions by how far they let a call go."
)
_in_doubt = _meter.create_gauge(
    "remit.calls.in_doubt", unit="{call}", description="Calls of which nobody knows yet what became of them."
)
_stages = _meter.create_histogram("remit.stage.duration", unit="s", description="Time in each stage.")
_held = _meter.create_counter("remit.budget.held", unit="1", description="Amounts held, by unit.")
_loads = _meter.create_counter(
    "remit.policy.loads", unit="{version}", description="New policy versions of a running server, by result."
)
_stale = _meter.create_gauge(
    "remit.policy.stale", unit="1", description="1 while a new policy version is refused and the old decides."
)
_on = False


def on() -> bool:
    """Whether spans and metrics go anywhere."""
    return _on


def notice() -> None:
    """Look once whether the embedding process has set a tracer provider."""
    global _on
    _on = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def stage(name: str, call: Call) -> AbstractContextManager[Any]:
    """A span and a duration for one stage of `call`."""
    return _stage(name, call) if _on else _NOTHING


@contextmanager
def _stage(name: str, call: Call) -> Generator[None]:
    attributes = {
        "remit.call.id": call.id,
        "remit.call.kind": call.kind,
        "remit.tenant": call.principal.tenant,
        "remit.agent": call.principal.agent,
        "gen_ai.tool.name": call.tool.name,
    }
    started = time.perf_counter()
    with _tracer.start_as_current_span(
        f"remit.{name}", attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield
        except Exception as error:
            span.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            _stages.record(time.perf_counter() - started, {"stage": name})


def count(call: Call, outcome: Outcome) -> None:
    """Count a governed call by what became of it; a refusal by its code."""
    if not _on:
        return
    from remit.model import Refused

    code = outcome.verdict.code if isinstance(outcome, Refused) else ""
    kind = type(outcome).__name__.lower()
    _calls.add(1, {"tool": call.tool.name, "kind": call.kind, "outcome": kind, "code": code})


def decided(call: Call, verdict: Verdict) -> None:
    if _on:
        attributes = {"tool": call.tool.name, "kind": call.kind, "code": verdict.code}
        _verdicts.add(1, {**attributes, "verdict": verdict.rung.name.lower()})


def in_doubt(calls: int) -> None:
    if _on:
        _in_doubt.set(calls)


def held(charges: Sequence[Charge]) -> None:
    if _on:
        for charge in charges:
            _held.add(charge.amount, {"unit": charge.unit})


def policy_loaded(result: Literal["activated", "rejected"]) -> None:
    if _on:
        _loads.add(1, {"result": result})


def policy_stale(stale: bool) -> None:
    """Whether something stands where the next policy should and is refused."""
    if _on:
        _stale.set(int(stale))


def propagated(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """`meta` with the current trace context, for the source."""
    if not _on:
        return meta
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return {**meta, **carrier}


def current_trace_id() -> str | None:
    if not _on:
        return None
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None


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
    base = endpoint.rstrip("/")
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{base}/v1/traces")))
    trace.set_tracer_provider(provider)
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{base}/v1/metrics"))
    metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=[reader]))
