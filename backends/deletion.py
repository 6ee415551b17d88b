"""Deleting an analysis or a study with everything that it left. Knows no HTTP."""

from __future__ import annotations

from backends.deployment import Deployment
from backends.storage import key_names
from layerdrift.contract.errors import ConflictError


def delete(deployment: Deployment, tenant: str, analysis_id: str) -> None:
    """Removes the report, the artifacts and the checkpoint, then the record.

    Raises:
        NotFoundError: the tenant has no such analysis.
        ConflictError: it is queued or running.
    """
    record = deployment.jobs.get(analysis_id, tenant)
    if not record.status.final:
        raise ConflictError(f"the analysis is {record.status}; cancel it first")
    deployment.reports.forget(record.owned)
    for prefix in (key_names.artifact_prefix, key_names.checkpoint_prefix, key_names.unfinished_prefix):
        deployment.blobs.delete_all(prefix(record.owned))
    deployment.jobs.remove(record)


def delete_study(deployment: Deployment, tenant: str, study_id: str) -> None:
    """Removes a study and its report; its members' analyses stay.

    Raises:
        NotFoundError: the tenant has no such study.
        ConflictError: it is queued or running.
    """
    record = deployment.studies.get(study_id, tenant)
    if not record.status.final:
        raise ConflictError(f"the study is {record.status}; cancel it first")
    deployment.reports.forget(record.owned)
    deployment.studies.remove(record)
