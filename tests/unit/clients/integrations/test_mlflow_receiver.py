"""Hears MLflow's registry: whom it believes, what it reviews, and what it leaves in the registry."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from mlflow.exceptions import MlflowException

from layerdrift.contract.errors import InputError
from layerdrift.integrations.mlflow import ANALYSIS_TAG, ERROR_TAG, QUEUED_TAG, URL_TAG, VERDICT_TAG, Version
from layerdrift.integrations.mlflow_receiver import (
    MAX_BODY_BYTES,
    TAG_CHARACTERS,
    ModelReview,
    Receiver,
    Reviews,
    policy_of,
    request_for,
)
from layerdrift.sdk import Client
from mlflow import MlflowClient
from tests.builders.analyses import ANALYSIS_ID, analysis
from tests.builders.http_service import HttpService, problem
from tests.builders.policies import check, verdict
from tests.builders.reports import report

SECRET = "a-secret-of-the-webhook"
REQUEST: dict[str, Any] = {"base": {"uri": "mlflow://reviews@champion"}, "dataset": {"uri": "s3://d/x.csv"}}
CREATED = {"entity": "model_version", "action": "created", "data": {"name": "reviews", "version": "3"}}
PLACE = f"/v1/analyses/{ANALYSIS_ID}"
RATIO = """\
rules:
- {id: a, path: 'layers[0].drift', of_baseline: ratio, max: 2, message: m}
"""


class Registry:
    """Model versions with their tags, in the order they were set; `away`: it takes nothing."""

    def __init__(self, **tags: dict[str, str]) -> None:
        self.tags = {number.removeprefix("v"): dict(found) for number, found in tags.items()}
        self.files: list[str] = []
        self.metrics = 0
        self.away = False
        self.judged = threading.Event()

    def set_model_version_tag(self, name: str, number: str, key: str, value: str) -> None:
        if self.away:
            raise MlflowException("the database is gone")
        self.tags.setdefault(number, {})[key] = value
        if key == VERDICT_TAG:
            self.judged.set()

    def get_model_version(self, name: str, number: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, version=number, run_id="run", tags=self.tags.setdefault(number, {}))

    def search_model_versions(self, filter_string: str, max_results: int) -> list[SimpleNamespace]:
        name = filter_string.split("'")[1]
        return [self.get_model_version(name, number) for number in self.tags]

    def log_batch(self, run: str, metrics: list[Any]) -> None:
        self.metrics += len(metrics)

    def log_artifact(self, run: str, path: str, folder: str) -> None:
        self.files.append(f"{folder}/{Path(path).name}")


@contextmanager
def receiving(registry: Registry) -> Iterator[Receiver]:
    """A receiver for `reviews`, not started."""
    reviews = Reviews(models={"reviews": ModelReview(request=REQUEST)})
    with Client("http://service") as client:
        yield Receiver(reviews, client, cast(MlflowClient, registry), SECRET)


def signed(body: bytes, at: float | None = None, secret: str = SECRET) -> dict[str, str]:
    """The headers of a delivery."""
    stamp = str(int(time.time() if at is None else at))
    digest = hmac.new(secret.encode(), b".".join((b"d1", stamp.encode(), body)), hashlib.sha256).digest()
    signature = "v1," + base64.b64encode(digest).decode()
    return {"x-mlflow-delivery-id": "d1", "x-mlflow-timestamp": stamp, "x-mlflow-signature": signature}


def asked(receiver: Receiver, method: str, path: str, body: bytes = b"", headers: Any = None) -> httpx.Response:
    """One request to the receiver's app."""

    async def whole() -> httpx.Response:
        transport = httpx.ASGITransport(app=receiver.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://receiver") as http:
            return await http.request(method, path, content=body, headers=headers)

    return asyncio.run(whole())


def told(receiver: Receiver, event: Any) -> httpx.Response:
    """An event as MLflow delivers it."""
    body = json.dumps(event).encode()
    return asked(receiver, "POST", "/", body, signed(body))


@pytest.fixture
def reviewed(service: HttpService) -> HttpService:
    """A service whose analyses are done at once."""
    service.answers = {
        "POST /v1/analyses": analysis("queued"),
        f"GET {PLACE}": analysis(),
        f"GET {PLACE}/report": lambda request: httpx.Response(
            200, text="<html>" if request.headers["Accept"] == "text/html" else report().model_dump_json()
        ),
        f"POST {PLACE}/gate": verdict("warn", check("warn"), analysis_id=ANALYSIS_ID),
    }
    return service


def without(name: str) -> Callable[[dict[str, str]], dict[str, str]]:
    return lambda headers: {key: value for key, value in headers.items() if key != name}


@pytest.mark.parametrize(
    ("change", "believed"),
    [
        (lambda headers: headers, True),
        (lambda _: signed(b"body", 1000 - 300), True),
        (lambda _: signed(b"body", 1000 + 300), True),
        (lambda _: signed(b"body", 1000 - 301), False),
        (lambda _: signed(b"body", 1000 + 301), False),
        (lambda _: signed(b"body", 1000, "another secret, not this one"), False),
        (lambda _: signed(b"another body", 1000), False),
        (lambda headers: headers | {"x-mlflow-delivery-id": "d2"}, False),
        (lambda headers: headers | {"x-mlflow-timestamp": "1001"}, False),
        (lambda headers: headers | {"x-mlflow-timestamp": "-1"}, False),
        (lambda headers: headers | {"x-mlflow-timestamp": "²"}, False),
        (lambda headers: headers | {"x-mlflow-timestamp": "9" * 400}, False),
        (lambda headers: headers | {"x-mlflow-timestamp": "9" * 5000}, False),
        (lambda headers: headers | {"x-mlflow-signature": "v1,é"}, False),
        (without("x-mlflow-timestamp"), False),
        (without("x-mlflow-signature"), False),
        (without("x-mlflow-delivery-id"), False),
    ],
)
def test_only_what_was_signed_with_the_secret_within_five_minutes_is_believed(change: Any, believed: bool) -> None:
    with receiving(Registry()) as receiver:
        assert receiver.verified(change(signed(b"body", 1000)), b"body", now=1000.0) is believed


def test_a_new_version_is_queued_and_said_to_be_in_the_registry() -> None:
    registry = Registry()
    with receiving(registry) as receiver:
        answer = told(receiver, CREATED)
    assert (answer.status_code, answer.json()["detail"]) == (202, "mlflow://reviews/3 will be reviewed")
    assert list(registry.tags["3"]) == [QUEUED_TAG]


@pytest.mark.parametrize(
    "event",
    [
        CREATED | {"data": {"name": "others", "version": "1"}},
        CREATED | {"action": "deleted"},
        {"entity": "prompt", "action": "created", "data": {}},
    ],
    ids=["another model", "another action", "another entity"],
)
def test_other_events_are_heard_and_nothing_is_done(event: Any) -> None:
    registry = Registry()
    with receiving(registry) as receiver:
        assert told(receiver, event).status_code == 200
    assert registry.tags == {}


@pytest.mark.parametrize(
    "event", [[], "x", {}, CREATED | {"data": []}, CREATED | {"data": {"name": "reviews"}}, CREATED | {"data": None}]
)
def test_what_is_no_event_is_refused(event: Any) -> None:
    with receiving(Registry()) as receiver:
        assert told(receiver, event).status_code == 422


def test_a_body_that_is_not_json_is_refused() -> None:
    with receiving(Registry()) as receiver:
        assert asked(receiver, "POST", "/", b"{", signed(b"{")).status_code == 422


def test_what_nobody_signed_is_refused_and_leaves_nothing() -> None:
    registry = Registry()
    with receiving(registry) as receiver:
        assert asked(receiver, "POST", "/", json.dumps(CREATED).encode()).status_code == 401
    assert registry.tags == {}


@pytest.mark.parametrize(("size", "status"), [(MAX_BODY_BYTES, 422), (MAX_BODY_BYTES + 1, 413)])
def test_a_body_has_a_largest_size(size: int, status: int) -> None:
    body = b" " * size
    with receiving(Registry()) as receiver:
        assert asked(receiver, "POST", "/", body, signed(body)).status_code == status


def test_a_version_that_cannot_be_remembered_is_to_be_sent_again() -> None:
    registry = Registry()
    registry.away = True
    with receiving(registry) as receiver:
        assert told(receiver, CREATED).status_code == 503


def test_a_review_is_submitted_followed_judged_and_written_back(reviewed: HttpService) -> None:
    registry = Registry()
    with receiving(registry) as receiver:
        receiver.review(Version("reviews", "3"))
    submitted = reviewed.sent(0)
    assert (submitted["tuned"]["uri"], submitted["name"]) == ("mlflow://reviews/3", "reviews version 3")
    assert registry.tags["3"] == {
        ANALYSIS_TAG: ANALYSIS_ID,
        URL_TAG: f"http://service{PLACE}/report",
        VERDICT_TAG: "warn",
    }
    assert list(registry.tags["3"])[-1] == VERDICT_TAG
    names = ("report.html", "report.json", "report.md", "verdict.json")
    assert sorted(registry.files) == [f"layerdrift/{name}" for name in names]
    assert registry.metrics > 0


def test_what_an_earlier_process_left_is_taken_up_and_one_failure_does_not_hold_up_the_next(
    reviewed: HttpService, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(v9={QUEUED_TAG: "x"}, v10={ANALYSIS_TAG: "x"}, v8={QUEUED_TAG: "x", VERDICT_TAG: "pass"}, v7={})
    reviewed.answers["POST /v1/analyses"] = [lambda _: problem(422, "no texts " * 100), analysis("queued")]
    with receiving(registry) as receiver:
        assert asked(receiver, "GET", "/health").status_code == 503
        receiver.start()
        assert registry.judged.wait(10)
        assert asked(receiver, "GET", "/health").json() == {"status": "ok"}
        receiver.stop()
        assert asked(receiver, "GET", "/health").status_code == 503
    assert registry.tags["9"][ERROR_TAG] == ("no texts " * 100)[:TAG_CHARACTERS]
    assert registry.tags["10"][VERDICT_TAG] == "warn"
    assert (registry.tags["8"], registry.tags["7"]) == ({QUEUED_TAG: "x", VERDICT_TAG: "pass"}, {})
    assert "could not review mlflow://reviews/9" in caplog.text


def configured(folder: Path, **review: Any) -> Path:
    path = folder / "reviews.yaml"
    path.write_text(json.dumps({"models": {"reviews": {"request": REQUEST, **review}}}))
    return path


def test_a_policy_lies_beside_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("rules:\n- {id: mine, path: layers.length, min: 2, message: m}\n")
    found = Reviews.load(configured(tmp_path, policy="p.yaml")).models["reviews"]
    assert [rule.id for rule in policy_of(found).rules] == ["mine"]


def test_without_a_policy_the_starter_policy_decides(tmp_path: Path) -> None:
    found = Reviews.load(configured(tmp_path)).models["reviews"]
    assert "early-layers-kept" in [rule.id for rule in policy_of(found).rules]


def test_rules_with_a_baseline_need_one_and_the_configuration_can_give_it(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(RATIO)
    with pytest.raises(InputError, match=r"p\.yaml compares with a baseline"):
        Reviews.load(configured(tmp_path, policy="p.yaml"))
    found = Reviews.load(configured(tmp_path, policy="p.yaml", baseline="an_b")).models["reviews"]
    assert policy_of(found).baseline == "an_b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [", "reviews.yaml"),
        ("", "reviews.yaml"),
        ("models: {}", "at least 1 item"),
        ("models: {a: {request: {}, polcy: x}}", "polcy"),
        ("models: {a: {request: {base: {uri: 's3://a/b'}}}}", "dataset"),
        ("models: {a: {request: {seed: 2024-13-45}}}", "month"),
        (json.dumps({"models": {"a": {"request": REQUEST | {"finetune": {}}}}}), "exactly one of tuned"),
    ],
    ids=["no YAML", "empty", "no models", "unknown field", "no data set", "no date", "fine-tunes itself"],
)
def test_a_configuration_that_cannot_be_used_is_refused_before_anything_is_heard(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "reviews.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        Reviews.load(path)


def test_a_review_keeps_its_own_name_and_its_version_is_what_is_reviewed() -> None:
    review = ModelReview(request=REQUEST | {"name": "nightly", "tuned": {"uri": "s3://somewhere/else"}})
    found = request_for(review, Version("reviews", "3"))
    assert found.name == "nightly"
    assert found.tuned is not None
    assert found.tuned.uri == "mlflow://reviews/3"
