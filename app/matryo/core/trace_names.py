"""Every name that a span or a metric of OpenTelemetry has here. The only table of them.

The conventions for GenAI, MCP and RPC are not stable: their names move, and move here alone.
Names that begin with `matryo.` are ours, because no convention has such a name.

Source, as of 2026-11-27: open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-spans.md,
gen-ai-metrics.md and mcp.md (status: development); open-telemetry/semantic-conventions 1.44.0,
docs/http/http-spans.md (stable) and docs/rpc/rpc-spans.md (release candidate).
"""

from __future__ import annotations

# --- names of spans

EMBEDDINGS = "embeddings"
"""Of a request for vectors, before the model's name; also a value of `OPERATION`."""
EXECUTE_TOOL = "execute_tool"
"""A value of `OPERATION`."""
TOOLS_CALL = "tools/call"
"""Of a call of a tool, before the tool's name; also a value of `MCP_METHOD`."""
PARSE = "parse"
"""Stage: a large body becomes texts."""
TOKENIZE = "tokenize"
"""Stage: texts become tokens."""
QUEUE = "queue"
"""Stage: from admission until the first run takes a text of the request."""
INFERENCE = "inference"
"""Stage: from the first run to the last; with the model's name, one run of a batch."""
ENCODE = "encode"
"""Stage: vectors become the body of the answer."""

# --- attributes of GenAI

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
DIMENSIONS = "gen_ai.embeddings.dimension.count"
ENCODING_FORMATS = "gen_ai.request.encoding_formats"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
TOOL_NAME = "gen_ai.tool.name"

# --- attributes of every kind of server

ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
CLIENT_ADDRESS = "client.address"

# --- attributes of HTTP, gRPC and MCP

HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
URL_PATH = "url.path"
URL_SCHEME = "url.scheme"
RPC_SYSTEM = "rpc.system.name"
RPC_METHOD = "rpc.method"
RPC_STATUS = "rpc.response.status_code"
MCP_METHOD = "mcp.method.name"

# --- attributes of ours

REQUEST_ID = "matryo.request.id"
TEXTS = "matryo.request.texts"
INPUT_TYPE = "matryo.input_type"
FINGERPRINT = "matryo.fingerprint"
STAGES_DROPPED = "matryo.stages.dropped"
"""Stages of a request past `MOST_STAGES`, which have no span."""
BATCHES = "matryo.batches"
"""Runs that had texts of a request; the span links to the first `MOST_LINKS` of them."""
BATCH_TEXTS = "matryo.batch.texts"
BATCH_TOKENS = "matryo.batch.tokens"
BATCH_REQUESTS = "matryo.batch.requests"
"""Requests with texts in a batch; the span links to the first `MOST_LINKS` of them."""

# --- values

PROVIDER_VALUE = "matryo"
"""The conventions list no such provider, and allow a value of one's own."""
GRPC = "grpc"
OTHER_METHOD = "_OTHER"
"""Of an HTTP method that the conventions do not list."""
TOOL_ERROR = "tool_error"
"""Of a tool's result that is an error."""
SERVICE_NAME = "matryo"
"""`service.name`, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say otherwise."""

# --- the metric

REQUEST_DURATION = "gen_ai.server.request.duration"
REQUEST_DURATION_BUCKETS_S = tuple(0.01 * 2**n for n in range(14))
"""0.01 s doubling to 81.92 s."""
METRIC_ATTRIBUTES = (
    OPERATION,
    PROVIDER,
    REQUEST_MODEL,
    RESPONSE_MODEL,
    SERVER_ADDRESS,
    SERVER_PORT,
    ERROR_TYPE,
)
"""Attributes of a span that the metric has too."""
