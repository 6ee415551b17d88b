"""Tells somebody's server that an analysis has ended, in the form of Standard Webhooks 1.0 (standardwebhooks.com).

What is to be told stands in the job record; a sorted set in Redis says when to try next. URLs come from requests, so
they may reach nothing but public addresses: the name is resolved once, looked at, and that very address is spoken to.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import redis

from backends.jobs.records import Delivery, JobRecord
from backends.jobs.store import JobStore
from backends.settings import Settings
from backends.storage import key_names
from layerdrift.contract.errors import InputError, LayerdriftError
from layerdrift.contract.request import Webhook

BACKOFF_SECONDS = (5, 30, 120, 600, 3600, 6 * 3600, 24 * 3600)
"""Before each try after the first; after the last one nobody tries again."""

CLAIM_SECONDS = 60
DEADLINE_SECONDS = 10.0
"""From connecting to the answer's status line, however slowly a receiver says it."""

SENDERS = 8
"""Analyses that are told of at once: a slow receiver holds one of them."""

_POLL_SECONDS = 0.2
_POINTER = "/webhook/url"
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
"""All that is given out; what lies elsewhere is local, or writes an IPv4 address as an IPv6 one."""

logger = logging.getLogger(__name__)


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`; the secret is base64, `whsec_` before it or not."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def message(record: JobRecord) -> bytes:
    """The body that is sent of an analysis that has ended."""
    analysis = record.analysis()
    ended = record.finished_at or record.created_at
    data = {
        "id": record.id,
        "name": analysis.name,
        "tags": analysis.tags,
        "status": analysis.status,
        "error": analysis.error.model_dump(mode="json", exclude_none=True) if analysis.error else None,
        "links": analysis.links.model_dump(),
    }
    return json.dumps({"type": f"analysis.{record.status}", "timestamp": ended.isoformat(), "data": data}).encode()


class WebhookTargets:
    """Which URLs may be told, and what they are signed with; `resolve` gives the addresses of a host and port."""

    def __init__(self, settings: Settings, resolve: Callable[[str, int], list[str]] | None = None) -> None:
        self._resolve = resolve or _resolved
        self._hosts = settings.webhook_hosts
        self._secrets = settings.webhook_secrets

    def check(self, webhook: Webhook) -> None:
        """InputError where a webhook of a request can never be sent. Resolves no name yet."""
        parts = urlsplit(webhook.url)
        allowed = parts.hostname in self._hosts
        if parts.scheme != "https" and not (allowed and parts.scheme == "http"):
            raise InputError.at(_POINTER, "a webhook must be an https: URL")
        if not parts.hostname or parts.username or parts.password or parts.fragment:
            raise InputError.at(_POINTER, "a webhook must be a plain URL: a host and a path, without user or fragment")
        if not allowed and not _public_literal(parts.hostname):
            raise InputError.at(
                _POINTER,
                f"{parts.hostname} is not a public address; the operator can allow it in LAYERDRIFT_WEBHOOK_HOSTS",
            )
        if webhook.secret_ref not in self._secrets:
            raise InputError.at(
                "/webhook/secret_ref",
                f"there is no secret {webhook.secret_ref!r}; the operator defines secrets in "
                "LAYERDRIFT_WEBHOOK_SECRETS",
            )

    def secret(self, webhook: Webhook) -> str:
        """What it is signed with; KeyError where there is none any more."""
        return self._secrets[webhook.secret_ref].get_secret_value()

    def address(self, url: str) -> str:
        """The address that a URL's host has now; PermissionError unless it is public or allowed."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        found = self._resolve(host, port)
        if host not in self._hosts and not all(is_public(address) for address in found):
            raise PermissionError(f"{host} resolves to {found[0]}, which is not a public address")
        return found[0]


def _resolved(host: str, port: int) -> list[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether an address is one of the internet's; ValueError where it is none. Forms that hide another one are not."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if found not in _GLOBAL_IPV6 or found.sixtofour is not None or found.teredo is not None:
            return False
    return found.is_global and not found.is_multicast


def _public_literal(host: str) -> bool:
    """False for addresses that are written out and not public; names are looked at when they are resolved."""
    try:
        return is_public(host)
    except ValueError:
        pass
    try:
        return is_public(socket.inet_ntoa(socket.inet_aton(host)))  # 127.1, 0x7f000001, 017700000001
    except OSError:
        name = host.rstrip(".")
        return "." in name and not name.endswith((".local", ".internal", ".localhost"))


class WebhookQueue:
    """When to try which webhooks next."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def put(self, analysis_id: str, seconds: float = 0.0) -> None:
        """An analysis is to be looked at after so many seconds."""
        self._redis.zadd(key_names.WEBHOOKS, {analysis_id: time.time() + seconds})

    def take(self) -> str | None:
        """One that is due, for this caller alone for CLAIM_SECONDS; it is offered again then unless it is `done`."""
        due: Any = self._redis.zrangebyscore(key_names.WEBHOOKS, "-inf", time.time(), start=0, num=1)
        if not due:
            return None
        later = time.time() + CLAIM_SECONDS
        taken = self._redis.eval(_CLAIM, 1, key_names.WEBHOOKS, due[0], str(time.time()), str(later))
        return due[0].decode() if taken else None

    def done(self, analysis_id: str) -> None:
        """It need not be looked at any more."""
        self._redis.zrem(key_names.WEBHOOKS, analysis_id)


_CLAIM = """
local score = redis.call('zscore', KEYS[1], ARGV[1])
if not score or tonumber(score) > tonumber(ARGV[2]) then return 0 end
redis.call('zadd', KEYS[1], ARGV[3], ARGV[1])
return 1
"""


class WebhookSender:
    """Sends what is due."""

    def __init__(self, jobs: JobStore, queue: WebhookQueue, targets: WebhookTargets) -> None:
        self._jobs = jobs
        self._queue = queue
        self._targets = targets

    def send_due(self, stopped: Callable[[], bool]) -> int:
        """Sends until nothing is due, to SENDERS receivers at once; how many tries were made."""
        running: list[threading.Thread] = []
        tries: list[int] = []
        while not stopped():
            running = [thread for thread in running if thread.is_alive()]
            analysis_id = self._queue.take() if len(running) < SENDERS else None
            if analysis_id is not None:
                thread = threading.Thread(target=self._send_one, args=(analysis_id, tries), name="sender", daemon=True)
                thread.start()
                running.append(thread)
            elif running:
                running[0].join(_POLL_SECONDS)
            else:
                break
        return sum(tries)

    def _send_one(self, analysis_id: str, tries: list[int]) -> None:
        """Sends what an analysis has to tell; where that cannot be written down, it is offered again later."""
        try:
            tries.append(self._send_all(analysis_id))
        except (redis.RedisError, LayerdriftError) as error:
            logger.warning("%s: could not record the results of its webhooks: %s", analysis_id, error)

    def _send_all(self, analysis_id: str) -> int:
        record = self._jobs.find(analysis_id)
        waiting = [] if record is None else [delivery for delivery in record.deliveries if delivery.waiting]
        if record is None or not record.status.final or not waiting:
            self._queue.done(analysis_id)
            return 0
        outcomes = {delivery.webhook.url: self._try(record, delivery) for delivery in waiting}
        updated = self._jobs.update(analysis_id, lambda found: _noted(found, outcomes))
        left = [delivery.tries for delivery in updated.deliveries if delivery.waiting]
        if left:
            self._queue.put(analysis_id, BACKOFF_SECONDS[min(left) - 1])
        else:
            self._queue.done(analysis_id)
        return len(waiting)

    def _try(self, record: JobRecord, delivery: Delivery) -> str | None:
        """None where it was taken, else why not."""
        try:
            self._post(record, delivery.webhook)
        except TimeoutError:
            return f"no response within {DEADLINE_SECONDS:g} s"
        except (httpx.HTTPError, OSError, KeyError, ValueError) as error:
            logger.warning(
                "%s: the webhook to %s failed: %s", record.id, urlsplit(delivery.webhook.url).hostname, error
            )
            return str(error) or type(error).__name__
        return None

    def _post(self, record: JobRecord, webhook: Webhook) -> None:
        parts = urlsplit(webhook.url)
        address = self._targets.address(webhook.url)
        body, now = message(record), int(time.time())
        digest = hashlib.sha256(f"{record.id} {record.finished_at} {webhook.url}".encode()).hexdigest()
        message_id = f"msg_{digest[:32]}"
        headers = {
            "Content-Type": "application/json",
            "Host": parts.netloc,
            "User-Agent": "layerdrift",
            "webhook-id": message_id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(self._targets.secret(webhook), message_id, now, body),
        }
        literal = f"[{address}]" if ":" in address else address
        there = urlunsplit(parts._replace(netloc=literal + (f":{parts.port}" if parts.port else "")))
        extensions = {"sni_hostname": parts.hostname} if parts.scheme == "https" else {}
        status = asyncio.run(_status(there, body, headers, extensions))
        if not 200 <= status < 300:
            raise ValueError(f"it returned status {status}")


async def _status(url: str, body: bytes, headers: dict[str, str], extensions: dict[str, Any]) -> int:
    """What a POST is answered, by its status line alone; TimeoutError after DEADLINE_SECONDS."""
    async with (
        asyncio.timeout(DEADLINE_SECONDS),
        httpx.AsyncClient(timeout=DEADLINE_SECONDS, trust_env=False) as client,
        client.stream("POST", url, content=body, headers=headers, extensions=extensions) as answer,
    ):
        return answer.status_code


def _noted(record: JobRecord, outcomes: dict[str, str | None]) -> JobRecord:
    """The record with what became of this round of tries."""
    deliveries = []
    for delivery in record.deliveries:
        if delivery.waiting and delivery.webhook.url in outcomes:
            error = outcomes[delivery.webhook.url]
            tries = delivery.tries + 1
            given_up = error is not None and tries > len(BACKOFF_SECONDS)
            told = datetime.now(UTC) if error is None else None
            changes = {"tries": tries, "error": error, "told_at": told, "given_up": given_up}
            deliveries.append(delivery.model_copy(update=changes))
        else:
            deliveries.append(delivery)
    return record.model_copy(update={"deliveries": deliveries})
