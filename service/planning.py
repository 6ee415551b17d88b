"""Before anything runs: what there is to analyse, how a data set is read, and what a request will take."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from layerdrift.backends.estimating import estimate_of
from layerdrift.contract.analysis import Status
from layerdrift.contract.estimate import DatasetPreview, Estimate, Sources
from layerdrift.contract.request import AnalysisRequest, DatasetRef
from service.problems import documented
from service.security import Backends, Reader, Submitter

router = APIRouter(tags=["planning"])


class PreviewRequest(BaseModel):
    """A data set and how it would be read."""

    dataset: DatasetRef
    labelled: bool = Field(default=False, description="every row must have a label, as a fine-tune needs")


@router.post(
    "/v1/estimates",
    summary="Estimate an analysis",
    responses=documented(400, 401, 403, 415, 422, 429, 503),
)
def estimate_analysis(backends: Backends, key: Submitter, body: AnalysisRequest) -> Estimate:
    """How long a request takes, and how much memory and disk. Checks it as a submission does, and submits nothing."""
    sources = backends.sources.of(key.tenant)
    sizes = sources.sizes(body, sources.pin(body))
    return estimate_of(body, sizes, backends.rates, backends.jobs.count(Status.QUEUED))


@router.post(
    "/v1/datasets/preview",
    summary="Preview a data set",
    responses=documented(400, 401, 403, 415, 422, 429, 503),
)
def preview_dataset(backends: Backends, key: Submitter, body: PreviewRequest) -> DatasetPreview:
    """The columns of a data set and its first rows as they would be read, or what keeps it from being read."""
    return backends.sources.of(key.tenant).preview(body.dataset, body.labelled)


@router.get("/v1/sources", summary="List models and data sets", responses=documented(401, 403, 422, 429, 503))
def list_sources(backends: Backends, key: Reader) -> Sources:
    """What requests can name here: folders under the model roots, own checkpoints, uploads, registered models."""
    return backends.catalogue.of(key.tenant)
