"""Webhooks to a real receiver on loopback; signatures are judged by the standard's own library."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from pydantic import SecretStr, ValidationError
from standardwebhooks import Webhook as Judge

from backends import webhooks
from backends.deployment import Deployment
from backends.jobs.records import Delivery, JobRecord
from backends.settings import Settings
from backends.storage import key_names
from backends.webhooks import WebhookSender, WebhookTargets, is_public
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import Webhook
from tests.builders.records import record
from tests.builders.webhooks import SECRET, Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


@pytest.fixture
def telling(settings: Settings, valkey: redis.Redis) -> Deployment:
    changes = {"webhook_hosts": ["127.0.0.1"], "webhook_secrets": {"ci": SecretStr(SECRET)}}
    return Deployment.connect(settings.model_copy(update=changes))


def ended(deployment: Deployment, url: str, status: Status = Status.SUCCEEDED) -> JobRecord:
    made = record().model_copy(update={"deliveries": [Delivery(webhook=Webhook(url=url, secret_ref="ci"))]})
    deployment.jobs.submit(made)
    return deployment.jobs.update(made.id, lambda found: found.ended(status))


def send(deployment: Deployment) -> int:
    return WebhookSender(deployment.jobs, deployment.webhook_queue, deployment.webhooks).send_due(lambda: False)


def test_the_end_of_a_job_is_told_once_and_signed_by_the_standard(telling: Deployment, receiver: Receiver) -> None:
    job = ended(telling, receiver.url)
    assert (send(telling), send(telling)) == (1, 0)
    ((headers, body),) = receiver.heard
    told = Judge(SECRET).verify(body, {name.lower(): value for name, value in headers.items()})
    assert (told["type"], told["data"]["id"], told["data"]["links"]["report"]) == (
        "analysis.succeeded",
        job.id,
        f"/v1/analyses/{job.id}/report",
    )
    assert headers["Host"] == receiver.url.split("/")[2]
    delivery = telling.jobs.get(job.id).deliveries[0]
    assert (delivery.tries, delivery.error, delivery.waiting) == (1, None, False)
    forged = json.loads(body) | {"type": "analysis.failed"}
    with pytest.raises(Exception, match="No matching signature"):
        Judge(SECRET).verify(json.dumps(forged), {name.lower(): value for name, value in headers.items()})


def test_a_job_that_runs_is_not_told(telling: Deployment, receiver: Receiver) -> None:
    made = record().model_copy(update={"deliveries": [Delivery(webhook=Webhook(url=receiver.url, secret_ref="ci"))]})
    telling.jobs.submit(made)
    assert (send(telling), receiver.heard) == (0, [])


@pytest.mark.parametrize("code", [500, 302, 404])
def test_what_is_not_taken_is_tried_again_later_and_later_with_the_same_id(
    telling: Deployment, receiver: Receiver, valkey: redis.Redis, code: int
) -> None:
    job = ended(telling, receiver.url)
    receiver.codes = [code, code]
    waits = []
    for tries in (1, 2, 3):
        assert send(telling) == 1
        assert telling.jobs.get(job.id).deliveries[0].tries == tries
        due: Any = valkey.zscore(key_names.WEBHOOKS, job.id)
        if due is not None:
            waits.append(due - time.time())
            valkey.zadd(key_names.WEBHOOKS, {job.id: 0})
    assert [round(wait) for wait in waits] == list(webhooks.BACKOFF_SECONDS[:2])
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == 1
    assert len(receiver.heard) == 3
    assert telling.jobs.get(job.id).deliveries[0].waiting is False


def test_a_receiver_that_never_answers_well_is_given_up(
    telling: Deployment, receiver: Receiver, valkey: redis.Redis
) -> None:
    job = ended(telling, receiver.url)
    receiver.codes = [500] * 20
    while telling.jobs.get(job.id).deliveries[0].waiting:
        valkey.zadd(key_names.WEBHOOKS, {job.id: 0})
        send(telling)
    delivery = telling.jobs.get(job.id).deliveries[0]
    assert (delivery.tries, delivery.given_up, delivery.error) == (8, True, "it returned status 500")
    assert valkey.zcard(key_names.WEBHOOKS) == 0


def test_webhooks_survive_an_emptied_redis(telling: Deployment, receiver: Receiver, valkey: redis.Redis) -> None:
    job = ended(telling, receiver.url)
    valkey.flushdb()
    assert send(telling) == 0
    telling.jobs.restore()
    assert send(telling) >= 1
    assert job.id.encode() in b"".join(body for _, body in receiver.heard)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/",
        "https://127.0.0.2/",
        "https://10.1.2.3/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://localhost/",
        "https://printer.local/",
        "https://user:secret@example.org/",
        "ftp://example.org/",
        "https:///path",
    ],
)
def test_urls_that_reach_into_the_network_are_refused_at_the_post(telling: Deployment, url: str) -> None:
    with pytest.raises(InputError) as raised:
        telling.webhooks.check(Webhook(url=url, secret_ref="ci"))
    assert raised.value.errors[0].pointer == "/webhook/url"


def test_a_secret_must_be_one_of_the_operators(telling: Deployment) -> None:
    telling.webhooks.check(Webhook(url="https://example.org/hook", secret_ref="ci"))
    with pytest.raises(InputError, match="there is no secret 'other'"):
        telling.webhooks.check(Webhook(url="https://example.org/hook", secret_ref="other"))
    with pytest.raises(ValidationError, match="'ci' is not base64"):
        Settings(webhook_secrets={"ci": SecretStr("not base64!")})


def test_a_name_that_resolves_into_the_network_is_not_spoken_to(telling: Deployment, receiver: Receiver) -> None:
    """A public name whose server answers with a private address, beside a public one, when it is asked."""
    port = int(receiver.url.split(":")[2].split("/")[0])
    targets = WebhookTargets(telling.settings, lambda *_: ["93.184.215.14", "127.0.0.1"])
    job = ended(telling, f"https://rebound.example.org:{port}/")
    WebhookSender(telling.jobs, telling.webhook_queue, targets).send_due(lambda: False)
    assert receiver.heard == []
    assert "not a public address" in str(telling.jobs.get(job.id).deliveries[0].error)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_public_addresses_are_told_from_others(address: str, public: bool) -> None:
    assert is_public(address) is public
