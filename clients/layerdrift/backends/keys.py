"""Every key in Redis and in the bucket, in one place."""

from __future__ import annotations

JOBS_BY_TIME = "ld:jobs"
"""Sorted set of analysis ids by creation time, microseconds."""

OPEN_JOBS = "ld:jobs:open"
"""Set of the ids that are queued or running."""

WORKERS = "ld:workers"
"""Sorted set of the workers that listen, by the time until which they said so, seconds since 1970."""


def job(analysis_id: str) -> str:
    """String: the job record as JSON."""
    return f"ld:job:{analysis_id}"


def lease(analysis_id: str) -> str:
    """String with a time to live: the token of the worker that holds the job."""
    return f"ld:lease:{analysis_id}"


def announced(analysis_id: str) -> str:
    """String with a time to live: some worker has just announced the job again."""
    return f"ld:announced:{analysis_id}"


def cached_report(analysis_id: str, suffix: str) -> str:
    """String with a time to live: a rendered report."""
    return f"ld:report:{analysis_id}:{suffix}"


def job_object(analysis_id: str) -> str:
    """Object: the job record, written when it is accepted and when it ends."""
    return f"jobs/{analysis_id}.json"


def report_object(analysis_id: str, suffix: str) -> str:
    """Object: a report; suffix json, html or md."""
    return f"reports/{analysis_id}/report.{suffix}"


def sae_prefix(analysis_id: str) -> str:
    """Prefix: the autoencoders, a folder for each."""
    return f"artifacts/{analysis_id}/saes/"


def latents_object(analysis_id: str) -> str:
    """Object: all latents of the autoencoders and where they fire most, as Parquet."""
    return f"artifacts/{analysis_id}/latents.parquet"


def unfinished_prefix(analysis_id: str) -> str:
    """Prefix: states of trainings that a later worker goes on from; gone when the job has ended."""
    return f"unfinished/{analysis_id}/"


CHECKPOINTS = "checkpoints/"


def checkpoint_prefix(analysis_id: str) -> str:
    """Prefix: the checkpoint that a fine-tune made, in transformers' layout."""
    return f"{CHECKPOINTS}{analysis_id}/"
