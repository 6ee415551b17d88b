"""The client of the service. `client.py` is generated from `aio.py` by `make fmt`: edit `aio.py` alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from httpx_sse import aconnect_sse

from layerdrift.contract.analysis import Analysis, AnalysisPage, Status
from layerdrift.contract.artifact import Artifact
from layerdrift.contract.comparison import Comparison
from layerdrift.contract.errors import LayerdriftError, TransportError, UnavailableError
from layerdrift.contract.estimate import Estimate, Sources
from layerdrift.contract.inspection import Inspection
from layerdrift.contract.key import ApiKey, KeyRequest, NewKey
from layerdrift.contract.policy import Policy, Verdict
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.study import Study, StudyPage, StudyRequest
from layerdrift.contract.study_policy import StudyPolicy, StudyVerdict
from layerdrift.contract.study_report import StudyReport
from layerdrift.contract.upload import Upload
from layerdrift.contract.usage import Usage
from layerdrift.sdk import calls
from layerdrift.sdk.calls import OUTAGE_SECONDS, POLL_SECONDS, Call, Event, ReportFormat, Retries, Stream
from layerdrift.sdk.failures import AnalysisFailed, StudyFailed, error_of
from layerdrift.sdk.files import Heard
from layerdrift.sdk.waiting import async_chunks, async_prepared, async_sleep

_T = TypeVar("_T")


class AsyncClient:
    """A connection to one service; use it as a context manager, or close it. `AsyncClient` is for asyncio.

    Args:
        url: of the service; None: LAYERDRIFT_URL, or http://127.0.0.1:8000.
        timeout: seconds until an answer must have come.
        api_key: None: LAYERDRIFT_API_KEY, where that is set.
        retries: what is done where the service is unavailable or asks to wait.
        on_retry: called with the reason before a call is tried again.

    Every call raises TransportError where the service cannot be reached, and the error of `contract.errors` that fits
    the service's answer.
    """

    def __init__(
        self,
        url: str | None = None,
        timeout: float = 70.0,
        api_key: str | None = None,
        retries: Retries | None = None,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**calls.connection(url, api_key, timeout))
        self._retries = retries or Retries()
        self._on_retry = on_retry or (lambda _: None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """Of the service."""
        return str(self._http.base_url).rstrip("/")

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def submit(self, request: AnalysisRequest | Mapping[str, Any]) -> Analysis:
        """Submits a request, as a model or a dict; returns its analysis, new or from an equal earlier request."""
        return await self._send(calls.submit(request))

    async def estimate(self, request: AnalysisRequest | Mapping[str, Any]) -> Estimate:
        """How long a request will take, and how much memory and disk; checks it, and submits nothing."""
        return await self._send(calls.estimate(request))

    async def sources(self) -> Sources:
        """The models and data sets that requests can name: folders, files, checkpoints, uploads, registered models."""
        return await self._send(calls.sources())

    async def get(self, analysis_id: str) -> Analysis:
        """One analysis as it stands."""
        return await self._send(calls.get(analysis_id))

    async def list(
        self,
        limit: int = 20,
        cursor: str | None = None,
        status: Status | None = None,
        name: str | None = None,
        tag: str | None = None,
    ) -> AnalysisPage:
        """A page of analyses, newest first; `tag` as `key:value`."""
        return await self._send(calls.page(limit, cursor, status, name, tag))

    async def cancel(self, analysis_id: str) -> Analysis:
        """Asks an analysis to stop."""
        return await self._send(calls.cancel(analysis_id))

    async def rerun(self, analysis_id: str) -> Analysis:
        """Asks the service's version of the engine what an analysis asked an earlier one, of the same files."""
        return await self._send(calls.rerun(analysis_id))

    async def delete(self, analysis_id: str) -> None:
        """Forgets an analysis that has ended, its report and its artifacts."""
        await self._send(calls.delete(analysis_id))

    async def report(self, analysis_id: str, preliminary: bool = False) -> Report:
        """The report of an analysis.

        Args:
            preliminary: also accept what is known while the analysis still runs (`status` is then `preliminary`).

        Raises:
            ConflictError: it has not succeeded, or is still running and `preliminary` is false.
        """
        return await self._send(calls.report(analysis_id, preliminary))

    async def rendered_report(self, analysis_id: str, format: ReportFormat, preliminary: bool = False) -> str:
        """The report as an HTML page or as Markdown; raises like `report`."""
        return await self._send(calls.rendered(analysis_id, format, preliminary))

    async def artifacts(self, analysis_id: str) -> Sequence[Artifact]:
        """The files that an analysis left."""
        return await self._send(calls.artifacts(analysis_id))

    async def download(self, artifact: Artifact, target: Path) -> None:
        """Writes an artifact's bytes to a file.

        Raises:
            LayerdriftError: they are not the bytes that were kept, or did not come; no file is written.
        """
        digest, part = hashlib.sha256(), target.with_name(f"{target.name}.part")
        try:
            async with (
                httpx.AsyncClient(timeout=self._http.timeout) as plain,
                plain.stream("GET", artifact.url) as answer,
            ):
                answer.raise_for_status()
                with part.open("wb") as file:
                    async for chunk in answer.aiter_bytes():
                        digest.update(chunk)
                        file.write(chunk)
        except httpx.HTTPError as error:
            raise TransportError(f"{artifact.name} could not be fetched: {error}") from error
        else:
            if digest.hexdigest() != artifact.sha256:
                got = digest.hexdigest()
                raise LayerdriftError(f"{artifact.name} came with the sha256 {got}, not {artifact.sha256}")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    async def compare(self, analysis_id: str, other_id: str) -> Comparison:
        """The other report's numbers less this one's, layer by layer."""
        return await self._send(calls.compare(analysis_id, other_id))

    async def gate(self, analysis_id: str, policy: Policy | Mapping[str, Any]) -> Verdict:
        """Whether the report holds a policy; InputError where a rule cannot be judged on it."""
        return await self._send(calls.gate(analysis_id, policy))

    async def inspect(self, analysis_id: str, *texts: str, completion_tokens: int = 24) -> Inspection:
        """Other texts through both models of an analysis.

        Args:
            completion_tokens: with which language models go on from the end of each text, at most; 0: none.
        """
        return await self._send(calls.inspect(analysis_id, [*texts], completion_tokens))

    async def upload(self, path: Path | str, heard: Heard | None = None) -> Upload:
        """Uploads a data set file, or a checkpoint's folder; what the service has already is not sent again.

        Raises:
            InputError: there is no such file or folder, or the folder contains no safetensors weights.
        """
        async with async_prepared(Path(path)) as file:
            upload = await self._send(calls.announce(file.announced))
            if upload.status != "complete":
                upload = await self._send(calls.put(upload.id), lambda: async_chunks(file, heard))
            return upload

    async def usage(self, tenant: str | None = None) -> Usage:
        """What the tenant has used this month, and its quota.

        Args:
            tenant: another one; needs the scope operator.
        """
        return await self._send(calls.usage(tenant))

    async def keys(self) -> Sequence[ApiKey]:
        """The tenant's API keys; needs the scope admin."""
        return await self._send(calls.keys())

    async def create_key(self, request: KeyRequest | Mapping[str, Any]) -> NewKey:
        """Makes an API key; its secret is told this once."""
        return await self._send(calls.create_key(request))

    async def revoke_key(self, key_id: str) -> None:
        """Makes an API key useless."""
        await self._send(calls.revoke_key(key_id))

    async def events(
        self, analysis_id: str, after: str | None = None, timeout: float | None = None
    ) -> AsyncIterator[Event]:
        """What happens to an analysis, until it has ended; a stream that breaks off is taken up where it was.

        Args:
            after: the id of the last event that was seen; None: from the beginning.

        Raises:
            TimeoutError: it has not ended after `timeout` seconds, looked at every 10 s at least.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        lost: float | None = None
        while True:
            headers = {"Last-Event-ID": after} if after else {}
            try:
                async with aconnect_sse(self._http, "GET", calls.events_path(analysis_id), headers=headers) as source:
                    if not source.response.is_success:
                        await source.response.aread()
                        raise error_of(source.response)
                    lost = None
                    async for sent in source.aiter_sse():
                        if sent.data:  # else a sign of life
                            after = sent.id or after
                            yield Event.of(sent)
                        if sent.event == "done":
                            return
                        calls.check(deadline, analysis_id, timeout)
            except (httpx.TransportError, UnavailableError) as error:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > OUTAGE_SECONDS:
                    raise TransportError(f"{self.url} has been away for {OUTAGE_SECONDS:g} s: {error}") from error
            calls.check(deadline, analysis_id, timeout)
            await async_sleep(POLL_SECONDS)

    async def watch(self, analysis_id: str, timeout: float | None = None) -> AsyncIterator[Analysis]:
        """The analysis again and again until it has ended; the last one is final.

        Outages of up to OUTAGE_SECONDS are waited out.

        Raises:
            TimeoutError: it has not ended after `timeout` seconds; the analysis goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        answered = time.monotonic()
        while True:
            try:
                analysis = await self.get(analysis_id)
            except (TransportError, UnavailableError):
                if time.monotonic() - answered > OUTAGE_SECONDS:
                    raise
            else:
                answered = time.monotonic()
                yield analysis
                if analysis.status.final:
                    return
            calls.check(deadline, analysis_id, timeout)
            await async_sleep(POLL_SECONDS)

    async def wait(self, analysis_id: str, timeout: float | None = None) -> Report:
        """The report, once there is one.

        Raises:
            AnalysisFailed: it failed or was cancelled.
            TimeoutError: it has not ended after `timeout` seconds.
        """
        async for analysis in self.watch(analysis_id, timeout):
            last = analysis
        if last.status is not Status.SUCCEEDED:
            raise AnalysisFailed(last)
        return await self.report(analysis_id)

    async def submit_study(self, request: StudyRequest | Mapping[str, Any]) -> Study:
        """Submits a study, as a model or a dict; returns it, new or from an equal earlier request."""
        return await self._send(calls.submit_study(request))

    async def get_study(self, study_id: str) -> Study:
        """One study as it stands, with its members."""
        return await self._send(calls.study(study_id))

    async def list_studies(
        self, limit: int = 20, cursor: str | None = None, name: str | None = None, tag: str | None = None
    ) -> StudyPage:
        """A page of studies, newest first; `tag` as `key:value`."""
        return await self._send(calls.studies(limit, cursor, name, tag))

    async def cancel_study(self, study_id: str) -> Study:
        """Ends a study, and the analyses that it made and no other open study needs."""
        return await self._send(calls.cancel_study(study_id))

    async def delete_study(self, study_id: str) -> None:
        """Forgets a study that has ended, and its report; the analyses of its members stay."""
        await self._send(calls.delete_study(study_id))

    async def study_report(self, study_id: str) -> StudyReport:
        """The report of a study; ConflictError where it has not succeeded."""
        return await self._send(calls.study_report(study_id))

    async def rendered_study_report(self, study_id: str, format: ReportFormat) -> str:
        """The report of a study as an HTML page or as Markdown; raises like `study_report`."""
        return await self._send(calls.rendered_study(study_id, format))

    async def gate_study(self, study_id: str, policy: StudyPolicy | Mapping[str, Any]) -> StudyVerdict:
        """Whether the report of a study holds a policy; InputError where a rule cannot be judged on it."""
        return await self._send(calls.gate_study(study_id, policy))

    async def watch_study(self, study_id: str, timeout: float | None = None) -> AsyncIterator[Study]:
        """The study again and again until it has ended; the last one is final. Raises like `watch`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        answered = time.monotonic()
        while True:
            try:
                study = await self.get_study(study_id)
            except (TransportError, UnavailableError):
                if time.monotonic() - answered > OUTAGE_SECONDS:
                    raise
            else:
                answered = time.monotonic()
                yield study
                if study.status.final:
                    return
            calls.check(deadline, study_id, timeout, "layerdrift study watch")
            await async_sleep(POLL_SECONDS)

    async def wait_study(self, study_id: str, timeout: float | None = None) -> StudyReport:
        """The report of a study, once there is one.

        Raises:
            StudyFailed: no member has a report, or it was cancelled.
            TimeoutError: it has not ended after `timeout` seconds.
        """
        async for study in self.watch_study(study_id, timeout):
            last = study
        if last.status is not Status.SUCCEEDED:
            raise StudyFailed(last)
        return await self.study_report(study_id)

    async def _send(self, call: Call[_T], stream: Callable[[], Stream] | None = None) -> _T:
        """Sends a call until there is an answer to keep; `stream` is asked again for every try."""
        made = 0
        while True:
            made += 1
            answer, error = None, None
            try:
                answer = await self._http.send(call.request(self._http, stream() if stream else None))
            except httpx.TransportError as raised:
                error = calls.unreachable(self._http.base_url, raised)
            pause = self._retries.pause(made, call, answer)
            if pause is not None:
                self._on_retry(calls.retrying(self.url, pause, answer))
                await async_sleep(pause)
            elif answer is not None:
                return call.result(answer)
            elif error is not None:
                raise error
