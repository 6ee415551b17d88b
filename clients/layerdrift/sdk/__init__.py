"""The Python client of the service: `Client`, and `AsyncClient` with the same calls to be awaited."""

from layerdrift.sdk.aio import AsyncClient
from layerdrift.sdk.calls import Event, Retries
from layerdrift.sdk.client import Client
from layerdrift.sdk.failures import AnalysisFailed, StudyFailed

__all__ = ["AnalysisFailed", "AsyncClient", "Client", "Event", "Retries", "StudyFailed"]
