"""Sources, data set preview and estimate: what a client asks for before it submits."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from backends.estimates.estimate import estimate_of
from layerdrift.contract.analysis import Status
from layerdrift.contract.estimate import DatasetPreview, Estimate, Sources
from layerdrift.contract.request import AnalysisRequest, DatasetRef
from service.http.access import CurrentDeployment, Reader, Submitter
from service.http.problems import documented

router = APIRouter(tags=["planning"])


class PreviewRequest(BaseModel):
    """A data set and how to read it."""

    dataset: DatasetRef
    labelled: bool = Field(default=False, description="require a label in every row, as fine-tuning does")


@router.post(
    "/v1/estimates",
    summary="Estimate an analysis",
    responses=documented(400, 401, 403, 413, 415, 422, 429, 503),
)
def estimate_analysis(deployment: CurrentDeployment, key: Submitter, body: AnalysisRequest) -> Estimate:
    """Estimate the time, memory and disk of a request. Validates it like a submission, but submits nothing."""
    sources = deployment.sources.of(key.tenant)
    sizes = sources.sizes(body, sources.pin(body))
    return estimate_of(body, sizes, deployment.rates, deployment.listing.count(Status.QUEUED))


@router.post(
    "/v1/datasets/preview",
    summary="Preview a data set",
    responses=documented(400, 401, 403, 413, 415, 422, 429, 503),
)
def preview_dataset(deployment: CurrentDeployment, key: Submitter, body: PreviewRequest) -> DatasetPreview:
    """Preview the columns and first rows of a data set as they would be read, or the problems that prevent it."""
    return deployment.sources.of(key.tenant).preview(body.dataset, body.labelled)


@router.get("/v1/sources", summary="List models and data sets", responses=documented(401, 403, 422, 429, 503))
def list_sources(deployment: CurrentDeployment, key: Reader) -> Sources:
    """List what requests can use: folders under the model roots, your checkpoints, uploads and registered models."""
    return deployment.catalogue.of(key.tenant)
