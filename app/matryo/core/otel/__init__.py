"""Spans and a metric for OpenTelemetry, the extra `matryo[otel]`. Loaded with MATRYO_TRACING alone.

Every provider belongs to one tracer: neither the SDK's global providers nor those of the API are
set, so that no library of this process begins to trace.
"""
