"""What waits, beside the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import zipfile
from pathlib import Path

import pytest

from layerdrift.contract.errors import InputError
from layerdrift.sdk import files
from layerdrift.sdk.waiting import async_chunks, async_prepared, chunks, prepared


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("size", [0, 1, 4, 5, 12])
def test_both_ways_to_read_a_file_give_its_bytes_and_say_how_far_they_are(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 4)
    path = tmp_path / "texts.csv"
    path.write_bytes(bytes(range(size)))

    async def read(heard: files.Heard) -> list[bytes]:
        async with async_prepared(path) as file:
            return [chunk async for chunk in async_chunks(file, heard)]

    beside: list[tuple[int, int]] = []
    found = asyncio.run(read(lambda *so_far: beside.append(so_far)))
    here: list[tuple[int, int]] = []
    with prepared(path) as file:
        assert list(chunks(file, lambda *so_far: here.append(so_far))) == found
    assert b"".join(found) == path.read_bytes()
    assert beside == here == [(min(4 * part, size), size) for part in range(1, -(-size // 4) + 1)]


def test_a_folder_is_packed_while_it_is_needed_as_it_is_without_an_event_loop(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")

    async def pack() -> Path:
        async with async_prepared(folder) as file:
            assert zipfile.ZipFile(file.path).namelist() == ["config.json", "model.safetensors"]
            assert file.announced.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
            with prepared(folder) as other:
                assert other.announced == file.announced
            return file.path

    assert not asyncio.run(pack()).exists()


def test_an_archive_is_removed_where_its_upload_fails(tmp_path: Path) -> None:
    made: list[Path] = []

    async def fail() -> None:
        async with async_prepared(checkpoint(tmp_path / "model")) as file:
            made.append(file.path)
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        asyncio.run(fail())
    assert not made[0].exists()


def test_what_cannot_be_sent_is_refused_on_entering(tmp_path: Path) -> None:
    async def enter() -> None:
        async with async_prepared(tmp_path / "absent"):
            pytest.fail("entered")

    with pytest.raises(InputError, match="neither a file nor a folder"):
        asyncio.run(enter())
