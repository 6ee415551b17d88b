from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from deploy.embedded.credentials import Credentials


def test_they_are_made_once_for_a_home_and_differ_between_homes(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("one", "two")]
    for home in homes:
        home.mkdir()
    one, two = (Credentials.of_home(home) for home in homes)
    assert Credentials.of_home(homes[0]) == one
    pairs = [(one.access_key, two.access_key), (one.secret_key, two.secret_key)]
    pairs += [(one.redis_password, two.redis_password)]
    pairs += [(one.seaweedfs[name], two.seaweedfs[name]) for name in one.seaweedfs]
    assert [pair for pair in pairs if pair[0] == pair[1]] == []


def test_every_secret_is_long_and_none_is_used_twice(tmp_path: Path) -> None:
    made = Credentials.of_home(tmp_path)
    secrets = [made.secret_key, made.redis_password]
    secrets += [value for name, value in made.seaweedfs.items() if "JWT" in name]
    assert len(secrets) == len(set(secrets)) == 6
    assert min(map(len, secrets)) >= 40


def test_nobody_else_can_read_them(tmp_path: Path) -> None:
    Credentials.of_home(tmp_path)
    files = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert set(files.values()) == {0o600}
    assert len(files) == 5
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700


def test_what_an_earlier_version_did_not_make_is_added_and_the_rest_kept(tmp_path: Path) -> None:
    (tmp_path / "s3-key.json").write_text('{"access_key": "old", "secret_key": "older"}')
    (tmp_path / "server-secrets.json").write_text('{"redis_password": "oldest"}')
    made = Credentials.of_home(tmp_path)
    assert (made.access_key, made.secret_key, made.redis_password) == ("old", "older", "oldest")
    assert Credentials.of_home(tmp_path) == made
    assert "WEED_REDIS_PASSWORD" not in made.seaweedfs


def test_a_write_that_was_broken_off_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".s3-key.json.new").write_text('{"access_key": "ha')
    made = Credentials.of_home(tmp_path)
    assert json.loads((tmp_path / "s3-key.json").read_text()) == {
        "access_key": made.access_key,
        "secret_key": made.secret_key,
    }
    assert not (tmp_path / ".s3-key.json.new").exists()


def test_certificates_without_their_key_are_made_again(tmp_path: Path) -> None:
    Credentials.of_home(tmp_path)
    before = (tmp_path / "tls" / "server.pem").read_bytes()
    (tmp_path / "tls" / "server-key.pem").unlink()
    Credentials.of_home(tmp_path)
    assert (tmp_path / "tls" / "server.pem").read_bytes() != before
    certificate, _, key = loaded(tmp_path)
    assert certificate.public_key() == key.public_key()


def loaded(home: Path) -> tuple[x509.Certificate, x509.Certificate, ec.EllipticCurvePrivateKey]:
    folder = home / "tls"
    certificate, authority = (
        x509.load_pem_x509_certificate((folder / name).read_bytes()) for name in ("server.pem", "ca.pem")
    )
    key = load_pem_private_key((folder / "server-key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return certificate, authority, key


def test_the_certificate_is_signed_by_its_authority_and_is_none_itself(tmp_path: Path) -> None:
    Credentials.of_home(tmp_path)
    certificate, authority, key = loaded(tmp_path)
    certificate.verify_directly_issued_by(authority)
    assert certificate.public_key() == key.public_key()
    assert certificate.public_key() != authority.public_key()
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.BasicConstraints)


def test_the_certificate_outlives_the_home(tmp_path: Path) -> None:
    Credentials.of_home(tmp_path)
    now = datetime.now(UTC)
    for one in loaded(tmp_path)[:2]:
        assert one.not_valid_before_utc < now - timedelta(hours=12)
        assert one.not_valid_after_utc > now + timedelta(days=365 * 19)


def test_every_part_of_seaweedfs_is_given_files_that_are_there(tmp_path: Path) -> None:
    given = Credentials.of_home(tmp_path).seaweedfs
    parts = {name.split("_")[2] for name in given if name.startswith("WEED_GRPC_")} - {"CA"}
    assert parts == {"MASTER", "VOLUME", "FILER", "S3", "CLIENT"}
    paths = [value for name, value in given.items() if name.startswith("WEED_GRPC_")]
    assert len(paths) == 11
    assert [path for path in paths if not Path(path).is_file()] == []
