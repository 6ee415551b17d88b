"""Uploads: announced by POST, their bytes streamed by PUT from the request to S3."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from layerdrift.contract.upload import Upload, UploadRequest
from service.concurrency import ConcurrencyLimit
from service.problems import documented
from service.security import Backends, Reader, Submitter

PREFIX = "/v1/uploads/"
UploadId = Annotated[str, Path(pattern=r"^up_[a-z2-7]{26}$", description="id of an upload")]

RECEIVING = ConcurrencyLimit("uploads", of_client=8, in_all=32)
"""Each holds some megabytes until S3 has them."""

router = APIRouter(tags=["uploads"])


@router.post("/v1/uploads", status_code=201, responses=documented(401, 403, 413, 422, 429, 503))
def announce_upload(backends: Backends, key: Submitter, body: UploadRequest, response: Response) -> Upload:
    """Announces an upload: PUT its bytes to `Location`, then name it by its `uri` in requests."""
    backends.waiting_uploads.admit(key.tenant)
    upload = backends.uploads.announce(key.tenant, body)
    if upload.status == "waiting":
        backends.waiting_uploads.put(key.tenant, upload.id)
    response.headers["Location"] = f"{PREFIX}{upload.id}"
    return upload


@router.put(
    "/v1/uploads/{upload_id}",
    responses=documented(401, 403, 404, 409, 413, 422, 429, 503),
    openapi_extra={
        "requestBody": {
            "required": False,  # a file may be empty
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_upload(backends: Backends, key: Submitter, upload_id: UploadId, request: Request) -> Upload:
    """The bytes of an upload as they are, checked against what was announced; sent twice, they are kept once."""
    with RECEIVING.held(key.tenant):
        receiver = await run_in_threadpool(backends.uploads.receive, key.tenant, upload_id)
        try:
            async for chunk in request.stream():
                await run_in_threadpool(receiver.take, chunk)
            done = await run_in_threadpool(receiver.finish)
            await run_in_threadpool(backends.waiting_uploads.forget, key.tenant, upload_id)
        except ClientDisconnect:
            return await run_in_threadpool(backends.uploads.get, key.tenant, upload_id)  # nobody hears this
        finally:
            await run_in_threadpool(receiver.abort)
        return done


@router.get("/v1/uploads/{upload_id}", responses=documented(401, 403, 404, 422, 429, 503))
def get_upload(backends: Backends, key: Reader, upload_id: UploadId) -> Upload:
    """An upload and whether its bytes have come."""
    return backends.uploads.get(key.tenant, upload_id)


@router.delete("/v1/uploads/{upload_id}", status_code=204, responses=documented(401, 403, 404, 422, 429, 503))
def delete_upload(backends: Backends, key: Submitter, upload_id: UploadId) -> None:
    """Forgets an upload; analyses that have read it keep their reports."""
    backends.uploads.remove(key.tenant, upload_id)
    backends.waiting_uploads.forget(key.tenant, upload_id)
