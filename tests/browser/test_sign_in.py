"""Signing in to the page with a real provider: in a real browser, and by requests that a browser would not send."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from deploy.embedded.ports import LOOPBACK, choose
from deploy.embedded.stack import Stack
from tests.browser.conftest import accessible, opened
from tests.oidc_provider import provider, sign_in_as

PEOPLE: dict[str, dict[str, Any]] = {
    "ada": {"email": "ada@example.com", "groups": ["ml-reviewers", "staff"], "team": "search"},
    "bob": {"email": "bob@example.com", "groups": ["staff"], "team": "search"},
    "eve": {"email": "eve@example.com", "groups": ["ml-reviewers"], "team": "Two Words"},
}


@pytest.fixture(scope="module")
def signing(start_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that knows a provider, whose reviewers may submit and whose others may do nothing."""
    port = choose({"api": 0})["api"]
    with (
        provider(PEOPLE) as issuer,
        start_stack(
            tmp_path_factory.mktemp("signing"),
            LAYERDRIFT_PORT=str(port),
            LAYERDRIFT_PUBLIC_URL=f"http://{LOOPBACK}:{port}",
            LAYERDRIFT_OIDC_ISSUER=issuer,
            LAYERDRIFT_OIDC_CLIENT_ID="layerdrift",
            LAYERDRIFT_OIDC_CLIENT_SECRET="a secret of its own",
            LAYERDRIFT_OIDC_ROLES=json.dumps({"ml-reviewers": ["read", "submit"]}),
            LAYERDRIFT_OIDC_TENANT_CLAIM="team",
        ) as running,
    ):
        yield running


@pytest.fixture
def page(chromium: Browser, signing: Stack) -> Iterator[Page]:
    yield from opened(chromium, signing.url)


@pytest.fixture
def http(signing: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=signing.url) as client:
        yield client


def signed_in(http: httpx.Client, person: str) -> httpx.Response:
    """Goes to the provider and back as a browser does; the answer to the way back."""
    sent = http.get("/auth/login", params={"page": "#/studies"})
    assert sent.status_code == 303
    return http.get(sign_in_as(person, sent.headers["location"]))


def test_somebody_signs_in_comes_back_to_their_page_and_signs_out(page: Page) -> None:
    page.goto("/#/studies")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    accessible(page, "sign-in-with-provider")
    page.get_by_role("link", name="Sign in with your organisation").click()
    page.get_by_role("button", name="ada").click()
    expect(page.get_by_role("heading", name="Studies")).to_be_visible()
    assert page.url.endswith("/#/studies")
    sign_out = page.get_by_role("button", name="Sign out")
    expect(sign_out).to_have_attribute("title", "ada@example.com (search)")
    page.reload()
    expect(page.get_by_role("heading", name="Studies")).to_be_visible()
    sign_out.click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_no_script_reads_the_cookies_and_a_session_acts_with_its_roles(http: httpx.Client) -> None:
    answer = signed_in(http, "ada")
    assert (answer.status_code, answer.headers["location"]) == (303, "/#/studies")
    cookies = [line for line in answer.headers.get_list("set-cookie") if "layerdrift_session=" in line]
    assert all("HttpOnly" in line and "SameSite=lax" in line for line in cookies)
    session = http.get("/auth/session").json()
    assert session == {
        "provider": True,
        "signed_in": True,
        "name": "ada@example.com",
        "tenant": "search",
        "scopes": ["read", "submit"],
    }
    assert http.get("/v1/usage").json()["tenant"] == "search"
    assert http.get("/v1/keys").status_code == 403
    assert (
        http.post("/v1/uploads", json={"filename": "a.csv"}, headers={"Origin": str(http.base_url)}).status_code == 201
    )


def test_a_session_changes_nothing_for_a_page_elsewhere(http: httpx.Client) -> None:
    signed_in(http, "ada")
    for origin in ({}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        answer = http.post("/v1/uploads", json={"filename": "a.csv"}, headers=origin)
        assert answer.status_code == 403, origin


@pytest.mark.parametrize(("person", "said"), [("bob", "has no role here"), ("eve", "belongs to no one tenant")])
def test_who_has_no_role_or_no_tenant_gets_no_session(http: httpx.Client, person: str, said: str) -> None:
    answer = signed_in(http, person)
    assert answer.status_code == 403
    assert said in answer.json()["detail"]
    assert not http.get("/auth/session").json()["signed_in"]


def test_a_way_back_counts_once_and_in_its_own_browser(signing: Stack, http: httpx.Client) -> None:
    back = sign_in_as("ada", http.get("/auth/login").headers["location"])
    with httpx.Client(base_url=signing.url) as other:
        assert other.get(back).status_code == 401  # a link that somebody else was sent
        other.get("/auth/login")
        assert other.get(back).status_code == 401
    assert http.get(back).status_code == 303
    again = httpx.get(back, cookies={"layerdrift_login": parse_qs(urlsplit(back).query)["state"][0]})
    assert again.status_code == 401
    assert "was used before" in again.json()["detail"]


@pytest.mark.parametrize("code", ["wrong", ""])
def test_a_code_that_the_provider_did_not_give_signs_nobody_in(http: httpx.Client, code: str) -> None:
    state = parse_qs(urlsplit(http.get("/auth/login").headers["location"]).query)["state"][0]
    answer = http.get("/auth/callback", params={"state": state, "code": code})
    assert answer.status_code == 401
    assert not http.get("/auth/session").json()["signed_in"]


@pytest.mark.parametrize("page", ["https://evil.example", "//evil.example", "#/\r\nSet-Cookie: a=b", "javascript:1"])
def test_nobody_is_sent_elsewhere_afterwards(http: httpx.Client, page: str) -> None:
    back = sign_in_as("ada", http.get("/auth/login", params={"page": page}).headers["location"])
    assert http.get(back).headers["location"] == "/#/"


def test_without_a_session_or_a_key_nobody_gets_in_even_on_loopback(http: httpx.Client) -> None:
    assert http.get("/v1/analyses").status_code == 401
    http.cookies.set("layerdrift_session", "guessed")
    assert http.get("/v1/analyses").status_code == 401


def test_what_was_answered_to_a_session_is_answered_to_nobody_else(
    signing: Stack, http: httpx.Client, base_folder: Path, noised_folder: Path
) -> None:
    """Reports are answered from memory for two seconds, to those who asked the same with the same cookie."""
    signed_in(http, "ada")
    body = {
        "base": {"uri": base_folder.as_uri()},
        "tuned": {"uri": noised_folder.as_uri()},
        "dataset": {"inline": {"texts": [f"a text of number {number}" for number in range(40)]}},
        "analysis": {"sae": None, "grafts": False},
    }
    made = http.post("/v1/analyses", json=body, headers={"Origin": signing.url}).json()
    report = f"/v1/analyses/{made['id']}/report"
    for _ in range(300):
        if http.get(f"/v1/analyses/{made['id']}").json()["status"] == "succeeded":
            break
        time.sleep(0.5)
    assert http.get(report).status_code == 200
    assert httpx.get(signing.url + report).status_code == 401
    assert httpx.get(signing.url + report, cookies={"layerdrift_session": "guessed"}).status_code == 401


def test_the_time_of_a_session_is_over_at_its_end(http: httpx.Client) -> None:
    signed_in(http, "ada")
    token = http.cookies["layerdrift_session"]
    assert http.post("/auth/logout", headers={"Origin": str(http.base_url)}).status_code == 204
    assert httpx.get(f"{http.base_url}/v1/usage", cookies={"layerdrift_session": token}).status_code == 401
