"""The wire types of OpenAI's files and batches, with every field of OpenAI's.

Source: openai/openai-openapi, `openapi.yaml`, OpenAIFile, Batch, BatchErrors and
CreateBatchRequest.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from matryo.batch.objects import Batch, File, Page, Purpose, Status
from matryo.http.openai.wire import whole

LEAST_LIFE_S, MOST_LIFE_S = 3600, 2_592_000
"""Seconds that a file may live, as OpenAI bounds them."""

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class ExpiresAfter(BaseModel):
    """When a file expires."""

    model_config = _STRICT

    anchor: Literal["created_at"]
    seconds: Annotated[
        int, Field(ge=LEAST_LIFE_S, le=MOST_LIFE_S, description="Life of the file."),
        BeforeValidator(whole),
    ]  # fmt: skip


class BatchRequest(BaseModel):
    """The body of `POST /v1/batches`."""

    model_config = _STRICT

    input_file_id: Annotated[
        str,
        Field(
            description="A file that was uploaded with the purpose batch.",
            json_schema_extra={"pattern": "^file-"},
        ),
    ]
    endpoint: Literal["/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None,
        Field(max_length=16, description="Up to 16 pairs of strings of the caller's own."),
    ] = None
    output_expires_after: Annotated[
        ExpiresAfter | None, Field(description="When the files with the results expire.")
    ] = None


class FileObject(BaseModel):
    """One file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileDeleted(BaseModel):
    """The answer of `DELETE /v1/files/{file_id}`."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchFault(BaseModel):
    """What is wrong with the input file of a batch."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchFaults(BaseModel):
    """Why a batch failed."""

    object: Literal["list"] = "list"
    data: list[BatchFault]


class RequestCounts(BaseModel):
    """Lines of a batch: all, those with a vector, and those with an error."""

    total: int
    completed: int
    failed: int


class InputDetails(BaseModel):
    """Nothing is cached."""

    cached_tokens: Literal[0] = 0


class OutputDetails(BaseModel):
    """Nothing is generated."""

    reasoning_tokens: Literal[0] = 0


class BatchUsage(BaseModel):
    """Tokens of a batch."""

    input_tokens: int
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: Literal[0] = 0
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int


class BatchObject(BaseModel):
    """One batch; a moment that has not come is null."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchFaults | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def file_object(file: File) -> FileObject:
    """A file as OpenAI shows it."""
    return FileObject(
        id=file.id,
        bytes=file.n_bytes,
        created_at=file.created_at,
        expires_at=file.expires_at,
        filename=file.filename,
        purpose=file.purpose,
    )


def file_list(page: Page[File]) -> FileList:
    """A page of files as OpenAI shows it."""
    items = [file_object(one) for one in page.items]
    return FileList(
        data=items,
        first_id=items[0].id if items else None,
        last_id=items[-1].id if items else None,
        has_more=page.has_more,
    )


def batch_object(batch: Batch) -> BatchObject:
    """A batch as OpenAI shows it."""
    faults = [
        BatchFault(code=one.code, message=one.message, param=one.param, line=one.line)
        for one in batch.errors
    ]
    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        model=batch.model,
        errors=BatchFaults(data=faults) if faults else None,
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        status=batch.status,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=batch.created_at,
        in_progress_at=batch.in_progress_at,
        expires_at=batch.expires_at,
        finalizing_at=batch.finalizing_at,
        completed_at=batch.completed_at,
        failed_at=batch.failed_at,
        expired_at=batch.expired_at,
        cancelling_at=batch.cancelling_at,
        cancelled_at=batch.cancelled_at,
        request_counts=RequestCounts(
            total=batch.counts.total,
            completed=batch.counts.completed,
            failed=batch.counts.failed,
        ),
        usage=BatchUsage(input_tokens=batch.n_tokens, total_tokens=batch.n_tokens),
        metadata=None if batch.metadata is None else dict(batch.metadata),
    )


def batch_list(page: Page[Batch]) -> BatchList:
    """A page of batches as OpenAI shows it."""
    items = [batch_object(one) for one in page.items]
    return BatchList(
        data=items,
        first_id=items[0].id if items else None,
        last_id=items[-1].id if items else None,
        has_more=page.has_more,
    )
