"""Uploads: announced by POST, their bytes streamed by PUT from the request to S3."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from layerdrift.contract.upload import Upload, UploadRequest
from service.http.access import CurrentDeployment, Reader, Submitter
from service.http.concurrency import ConcurrencyLimit
from service.http.paths import UPLOADS
from service.http.problems import documented
from service.use_cases.quotas import require_storage

UploadId = Annotated[str, Path(pattern=r"^up_[a-z2-7]{26}$", description="upload id")]

RECEIVING = ConcurrencyLimit("uploads", of_client=8, in_all=32)
"""Each holds some megabytes until S3 has them."""

router = APIRouter(tags=["uploads"])


@router.post(
    "/v1/uploads",
    summary="Announce an upload",
    status_code=201,
    responses=documented(400, 401, 403, 413, 415, 422, 429, 503),
)
def announce_upload(deployment: CurrentDeployment, key: Submitter, body: UploadRequest, response: Response) -> Upload:
    """Announce an upload. Then PUT its bytes to `Location` and use its `uri` in requests."""
    deployment.waiting_uploads.admit(key.tenant)
    require_storage(deployment, key.tenant)
    upload = deployment.uploads.announce(key.tenant, body)
    if upload.status == "waiting":
        deployment.waiting_uploads.put(key.tenant, upload.id)
    response.headers["Location"] = f"{UPLOADS}{upload.id}"
    return upload


@router.put(
    "/v1/uploads/{upload_id}",
    summary="Upload the bytes",
    responses=documented(401, 403, 404, 409, 413, 422, 429, 503),
    openapi_extra={
        "requestBody": {
            "required": False,  # a file may be empty
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_upload(deployment: CurrentDeployment, key: Submitter, upload_id: UploadId, request: Request) -> Upload:
    """Upload the raw bytes, verified against the announced size and SHA-256. Sending them twice stores them once."""
    with RECEIVING.held(key.tenant):
        receiver = await run_in_threadpool(deployment.uploads.receive, key.tenant, upload_id)
        try:
            async for chunk in request.stream():
                await run_in_threadpool(receiver.take, chunk)
            done = await run_in_threadpool(receiver.finish)
            await run_in_threadpool(deployment.waiting_uploads.forget, key.tenant, upload_id)
        except ClientDisconnect:
            return await run_in_threadpool(deployment.uploads.get, key.tenant, upload_id)  # nobody hears this
        finally:
            await run_in_threadpool(receiver.abort)
        return done


@router.get("/v1/uploads/{upload_id}", summary="Get an upload", responses=documented(401, 403, 404, 422, 429, 503))
def get_upload(deployment: CurrentDeployment, key: Reader, upload_id: UploadId) -> Upload:
    """Get an upload and its status."""
    return deployment.uploads.get(key.tenant, upload_id)


@router.delete(
    "/v1/uploads/{upload_id}",
    summary="Delete an upload",
    status_code=204,
    responses=documented(401, 403, 404, 422, 429, 503),
)
def delete_upload(deployment: CurrentDeployment, key: Submitter, upload_id: UploadId) -> None:
    """Delete an upload. Analyses that have read it keep their reports."""
    deployment.uploads.remove(key.tenant, upload_id)
    deployment.waiting_uploads.forget(key.tenant, upload_id)
