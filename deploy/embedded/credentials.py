"""What the embedded stores ask of whoever connects: made once for each home, readable by its owner alone."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CERTIFICATE_YEARS = 20
_GRPC_PARTS = ("master", "volume", "filer", "s3", "client")
_JWT_KEYS = ("JWT_SIGNING_KEY", "JWT_SIGNING_READ_KEY", "JWT_FILER_SIGNING_KEY", "JWT_FILER_SIGNING_READ_KEY")


@dataclass(frozen=True)
class Credentials:
    """The S3 key that clients sign with, Valkey's password, and what SeaweedFS's own parts show to each other."""

    access_key: str
    secret_key: str
    redis_password: str
    seaweedfs: dict[str, str]

    @classmethod
    def of_home(cls, home: Path) -> Self:
        """Those of a folder; what it lacks is made now."""
        signing = _kept(home / "s3-key.json", {"access_key": 10, "secret_key": 20})
        servers = _kept(home / "server-secrets.json", {"redis_password": 24} | dict.fromkeys(_JWT_KEYS, 32))
        password = servers.pop("redis_password")
        shown = {f"WEED_{name}": secret for name, secret in servers.items()} | _certificates(home / "tls")
        return cls(signing["access_key"], signing["secret_key"], password, shown)


def _kept(path: Path, lengths: dict[str, int]) -> dict[str, str]:
    """Random secrets by name, of so many bytes each."""
    found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    if set(lengths) - set(found):
        found = {name: secrets.token_hex(length) for name, length in lengths.items()} | found
        _write(path, json.dumps(found).encode())
    return found


def _write(path: Path, content: bytes) -> None:
    """Writes a file that nobody else could read at any time, whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    fresh.write_bytes(content)
    fresh.rename(path)


def _certificates(folder: Path) -> dict[str, str]:
    """Settings of SeaweedFS with which its parts take gRPC calls from each other alone.

    One certificate, signed by an authority whose key is not kept, is every part's.
    """
    authority, certificate, key = (folder / name for name in ("ca.pem", "server.pem", "server-key.pem"))
    if not key.exists():  # written last
        folder.mkdir(mode=0o700, exist_ok=True)
        for path, content in zip((authority, certificate, key), _made(), strict=True):
            _write(path, content)
    settings = {"WEED_GRPC_CA": str(authority)}
    for part in _GRPC_PARTS:
        settings |= {f"WEED_GRPC_{part.upper()}_CERT": str(certificate), f"WEED_GRPC_{part.upper()}_KEY": str(key)}
    return settings


def _made() -> tuple[bytes, bytes, bytes]:
    """An authority's certificate, one that it signed, and the key of that one, as PEM."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = _name("layerdrift embedded stack")
    authority = (
        _builder(issuer, issuer, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    certificate = (
        _builder(_name("seaweedfs"), issuer, key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(uses, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (
        authority.public_bytes(serialization.Encoding.PEM),
        certificate.public_bytes(serialization.Encoding.PEM),
        private,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * CERTIFICATE_YEARS))
    )
