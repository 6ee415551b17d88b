"""The awaited client on the running service, and API keys over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.embedded.stack import Stack
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import ForbiddenError, InputError, NotFoundError, UnauthorizedError
from layerdrift.contract.key import KeyRequest, Scope
from layerdrift.contract.policy import Policy
from layerdrift.contract.request import AnalysisRequest
from layerdrift.sdk import AsyncClient, Client
from tests.builders.operator import ADMIN
from tests.builders.texts import make_texts


def test_many_analyses_are_followed_side_by_side(
    stack: Stack, base_folder: Path, noised_folder: Path, tmp_path: Path
) -> None:
    def request(seed: int) -> AnalysisRequest:
        return AnalysisRequest.model_validate(
            {
                "base": {"uri": base_folder.as_uri()},
                "tuned": {"uri": noised_folder.as_uri()},
                "dataset": {"inline": {"texts": make_texts(60)}},
                "analysis": {"sae": None, "grafts": False},
                "seed": seed,
            }
        )

    async def whole() -> None:
        async with AsyncClient(stack.url) as client:
            submitted = await asyncio.gather(*(client.submit(request(seed)) for seed in (21, 22)))
            reports = await asyncio.gather(*(client.wait(one.id, timeout=200) for one in submitted))
            assert [report.analysis_id for report in reports] == [one.id for one in submitted]
            first, second = submitted
            assert (await client.get(first.id)).status is Status.SUCCEEDED
            assert first.id in [one.id for one in (await client.list(limit=5)).items]
            events = [event async for event in client.events(first.id)]
            assert events[-1].name == "done"
            compared = await client.compare(first.id, second.id)
            assert (compared.same_base, compared.same_settings) == (True, False)
            policy = {"rules": [{"id": "a", "path": "layers.length", "min": 4, "message": "m"}]}
            assert (await client.gate(first.id, Policy.model_validate(policy))).decision == "pass"
            assert "<html" in await client.rendered_report(first.id, "html")
            inspected = await client.inspect(first.id, "the film is good", "a dull plot")
            assert [text.text for text in inspected.texts] == ["the film is good", "a dull plot"]
            (page,) = [one for one in await client.artifacts(first.id) if one.name == "report.html"]
            await client.download(page, tmp_path / "report.html")
            assert hashlib.sha256((tmp_path / "report.html").read_bytes()).hexdigest() == page.sha256
            upload = await client.upload(base_folder)
            assert upload.status == "complete"
            await client.delete(second.id)
            with pytest.raises(NotFoundError):
                await client.get(second.id)

    asyncio.run(whole())


def test_keys_are_made_listed_and_revoked_over_http(keyed: Stack) -> None:
    with pytest.raises(UnauthorizedError), Client(keyed.url) as nobody:
        nobody.keys()
    with Client(keyed.url, api_key=ADMIN) as root:
        made = root.create_key(KeyRequest(name="ci", scopes=frozenset({Scope.READ}), priority=7))
        assert (made.name, made.tenant, made.priority) == ("ci", "default", 7)
        listed = root.keys()
        assert {"ci", "LAYERDRIFT_ADMIN_KEY"} <= {key.name for key in listed}
        with Client(keyed.url, api_key=made.secret) as reader:
            reader.list()
            with pytest.raises(ForbiddenError):
                reader.keys()
            with pytest.raises(ForbiddenError):
                reader.create_key(KeyRequest())
            with pytest.raises(ForbiddenError):
                reader.revoke_key(made.id)
        root.revoke_key(made.id)
        with pytest.raises(NotFoundError):
            root.revoke_key(made.id)
    with pytest.raises(UnauthorizedError), Client(keyed.url, api_key=made.secret) as reader:
        reader.list()


@pytest.mark.slow
def test_the_first_key_can_make_others_and_the_last_one_only_goes_on_loopback(
    start_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    with start_stack(tmp_path) as stack, Client(stack.url) as anybody:
        with pytest.raises(InputError, match="the first key needs the admin scope"):
            anybody.create_key(KeyRequest())
        made = anybody.create_key(KeyRequest(scopes=frozenset({Scope.ADMIN, Scope.OPERATOR})))
        with pytest.raises(UnauthorizedError):
            anybody.list()
        with Client(stack.url, api_key=made.secret) as root:
            root.revoke_key(made.id)
        assert anybody.list().items == []
