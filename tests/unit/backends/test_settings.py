from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from backends.settings import Settings

Read = Callable[..., Settings]
SECRET = base64.b64encode(b"sixteen of bytes").decode()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """The settings of an environment with these variables and none else of the product's."""
    for name in [*os.environ]:
        if name.startswith("LAYERDRIFT_") or name in ("HF_ENDPOINT", "MLFLOW_TRACKING_URI"):
            monkeypatch.delenv(name)

    def given(**variables: str) -> Settings:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return Settings()

    return given


def test_without_any_variable_the_api_is_on_loopback_and_reads_its_own_folders(read: Read) -> None:
    settings = read()
    assert (settings.host, settings.port, settings.allowed_hosts, settings.admin_key) == ("127.0.0.1", 8000, [], None)
    assert settings.roots == [Path("var").resolve() / name for name in ("models", "data", "demo", "demo-llm")]


def test_folders_follow_home_unless_they_are_named(read: Read, tmp_path: Path) -> None:
    settings = read(LAYERDRIFT_HOME=str(tmp_path))
    assert settings.scratch == tmp_path.resolve() / "scratch"
    assert settings.roots == [tmp_path.resolve() / name for name in ("models", "data", "demo", "demo-llm")]
    named = read(LAYERDRIFT_MODEL_ROOTS=f"{tmp_path}/a{os.pathsep}{os.pathsep}{tmp_path}/b,c/../d")
    assert named.roots == [tmp_path.resolve() / "a", tmp_path.resolve() / "d"]


@pytest.mark.parametrize("name", ["webhook_hosts", "allowed_hosts", "readable_buckets"])
@pytest.mark.parametrize(
    ("value", "names"), [("a, b ,c", ["a", "b", "c"]), ("a,,", ["a"]), ("", []), (" ", []), ("*", ["*"])]
)
def test_lists_are_separated_by_commas(read: Read, name: str, value: str, names: list[str]) -> None:
    assert getattr(read(**{f"LAYERDRIFT_{name.upper()}": value}), name) == names


def test_host_names_are_compared_in_lower_case_and_without_brackets(read: Read) -> None:
    assert read(LAYERDRIFT_ALLOWED_HOSTS="API.Example.org,[::1],::1").allowed_hosts == ["api.example.org", "::1", "::1"]


@pytest.mark.parametrize("host", ["api.example.org:8000", "https://api.example.org", "api.example.org/", "[::1]:8000"])
def test_a_host_name_with_scheme_or_port_is_refused(read: Read, host: str) -> None:
    with pytest.raises(ValidationError, match="leave out scheme and port"):
        read(LAYERDRIFT_ALLOWED_HOSTS=f"good.example.org,{host}")


@pytest.mark.parametrize("secret", [f"whsec_{SECRET}", SECRET])
def test_secrets_of_webhooks_are_base64_with_or_without_the_prefix(read: Read, secret: str) -> None:
    settings = read(LAYERDRIFT_WEBHOOK_SECRETS=f'{{"ci": "{secret}"}}')
    assert settings.webhook_secrets["ci"].get_secret_value() == secret


@pytest.mark.parametrize("secret", ["not base64", "c2VjcmV", "whsec_whsec_c2VjcmV0", "c2Vjä"])
def test_a_secret_that_is_not_base64_is_refused_by_its_name(read: Read, secret: str) -> None:
    with pytest.raises(ValidationError, match="the secret 'ci' is not base64"):
        read(LAYERDRIFT_WEBHOOK_SECRETS=f'{{"ci": "{secret}"}}')


@pytest.mark.parametrize("secret", ["", "whsec_", "c2VjcmV0"])
def test_a_secret_that_could_be_guessed_is_refused(read: Read, secret: str) -> None:
    with pytest.raises(ValidationError, match=r"the secret 'ci' has [06] bytes; at least 16 are needed"):
        read(LAYERDRIFT_WEBHOOK_SECRETS=f'{{"ci": "{secret}"}}')


def test_a_wrong_secret_shows_neither_itself_nor_the_others(read: Read) -> None:
    with pytest.raises(ValidationError) as raised:
        read(LAYERDRIFT_WEBHOOK_SECRETS=f'{{"good": "{SECRET}", "bad": "not base64"}}')
    assert SECRET not in str(raised.value)
    assert "not base64" not in str(raised.value).replace("is not base64", "")


def test_an_empty_endpoint_is_none(read: Read) -> None:
    settings = read(LAYERDRIFT_S3_ENDPOINT="", LAYERDRIFT_S3_PUBLIC_ENDPOINT="")
    assert (settings.s3_endpoint, settings.s3_public_endpoint) == (None, None)


def test_no_secret_shows_where_settings_are_printed(read: Read) -> None:
    names = ("admin_key", "s3_access_key", "s3_secret_key", "hf_token", "mlflow_token", "mlflow_password")
    settings = read(**{f"LAYERDRIFT_{name.upper()}": "hush" for name in names})
    assert "hush" not in repr(settings)
    assert "hush" not in settings.model_dump_json()
    assert settings.admin_key is not None
    assert settings.admin_key.get_secret_value() == "hush"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "80"),
        ("PORT", "65536"),
        ("PORT", "http"),
        ("WORKERS", "0"),
        ("LEASE_SECONDS", "2"),
        ("MAX_ATTEMPTS", "0"),
        ("S3_BUCKET", "ab"),
        ("LOG_FORMAT", "xml"),
        ("LINK_SECONDS", "604801"),  # S3 signs for a week at most
    ],
)
def test_a_value_out_of_range_is_refused_with_the_name_of_its_setting(read: Read, name: str, value: str) -> None:
    with pytest.raises(ValidationError, match=name.lower()):
        read(**{f"LAYERDRIFT_{name}": value})


def test_variables_that_other_tools_read_are_defaults(read: Read) -> None:
    assert (read().hf_endpoint, read().mlflow_url) == ("https://huggingface.co", None)
    others = read(HF_ENDPOINT="https://hub.test", MLFLOW_TRACKING_URI="http://mlflow.test")
    assert (others.hf_endpoint, others.mlflow_url) == ("https://hub.test", "http://mlflow.test")
    own = read(LAYERDRIFT_HF_ENDPOINT="https://own.test", LAYERDRIFT_MLFLOW_URL="http://own.test")
    assert (own.hf_endpoint, own.mlflow_url) == ("https://own.test", "http://own.test")


def test_variables_of_later_versions_are_passed_over(read: Read) -> None:
    assert read(LAYERDRIFT_NOT_YET="1", LAYERDRIFT_PORT="9000").port == 9000
