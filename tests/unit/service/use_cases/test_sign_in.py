"""What the claims of an ID token allow."""

from __future__ import annotations

from typing import Any

import pytest

from backends.settings import Settings
from layerdrift.contract.errors import ForbiddenError
from service.use_cases.sign_in import key_of

ISSUER = "https://id.example"
SETTINGS = Settings(
    public_url="https://layerdrift.example",
    oidc_issuer=ISSUER,
    oidc_client_id="layerdrift",
    oidc_roles={"reviewers": ["read", "submit"], "admins": ["admin"]},
)


@pytest.mark.parametrize(
    ("groups", "scopes"),
    [
        (["reviewers"], {"read", "submit"}),
        (["reviewers", "admins", "staff"], {"read", "submit", "admin"}),
        ("admins", {"admin"}),
    ],
)
def test_roles_of_a_claim_give_what_the_operator_says(groups: Any, scopes: set[str]) -> None:
    key = key_of(SETTINGS, {"sub": "u1", "email": "a@b.example", "groups": groups})
    assert (set(key.scopes), key.name, key.tenant) == (scopes, "a@b.example", "default")


@pytest.mark.parametrize("claims", [{}, {"groups": ["staff"]}, {"groups": None}, {"groups": [1, {}]}, {"groups": {}}])
def test_without_a_role_nobody_gets_in(claims: dict[str, Any]) -> None:
    with pytest.raises(ForbiddenError, match="u1 has no role here"):
        key_of(SETTINGS, {"sub": "u1"} | claims)


def test_by_default_a_provider_lets_nobody_in() -> None:
    settings = Settings(public_url="https://layerdrift.example", oidc_issuer=ISSUER, oidc_client_id="layerdrift")
    with pytest.raises(ForbiddenError, match="LAYERDRIFT_OIDC_ROLES"):
        key_of(settings, {"sub": "u1", "groups": ["admins"]})


def test_a_role_of_everybody_and_a_nested_claim() -> None:
    settings = SETTINGS.model_copy(
        update={"oidc_roles": {"*": ["read"], "x": ["admin"]}, "oidc_roles_claim": "a.roles"}
    )
    assert set(key_of(settings, {"sub": "u1"}).scopes) == {"read"}
    assert set(key_of(settings, {"sub": "u1", "a": {"roles": ["x"]}}).scopes) == {"read", "admin"}


@pytest.mark.parametrize("tenant", [None, "", "Two Words", ["a", "b"], [], 7])
def test_who_is_of_no_one_tenant_is_refused(tenant: Any) -> None:
    settings = SETTINGS.model_copy(update={"oidc_tenant_claim": "team"})
    assert key_of(settings, {"sub": "u1", "groups": ["admins"], "team": "search"}).tenant == "search"
    with pytest.raises(ForbiddenError, match="no one tenant"):
        key_of(settings, {"sub": "u1", "groups": ["admins"], "team": tenant})


@pytest.mark.parametrize("missing", ["public_url", "oidc_client_id"])
def test_half_of_the_settings_is_refused_with_the_name_of_the_other(missing: str) -> None:
    given: dict[str, Any] = {"public_url": "https://a.example", "oidc_issuer": ISSUER, "oidc_client_id": "x"}
    with pytest.raises(ValueError, match=f"needs LAYERDRIFT_{missing.upper()}"):
        Settings.model_validate({name: value for name, value in given.items() if name != missing})
