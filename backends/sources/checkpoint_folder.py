"""Which folder of a location holds the checkpoint: the top, or else the shallowest folder that has one.

Knows file names and reads `config.json`; knows no scheme, and executes nothing.
"""

from __future__ import annotations

import json
import re
from urllib.parse import quote, urlsplit

from backends.sources.locations import Location, PinnedFile
from layerdrift.contract.errors import DeniedError, InputError, NotFoundError

CONFIG = "config.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODULES = "modules.json"
"""What sentence-transformers lists its modules in; its first versions wrote a config.json without a model beside it."""

MAX_CONFIG_BYTES = 4 << 20
MAX_DEPTH, MAX_FOLDERS = 3, 200
"""How deep below the top is searched, and how many folders."""

_NAMED = 5
_ONE_ALONE = {
    "upload": "upload a zip with only one of them",
    "hf": "move one of them to its own repository, or use a file: or s3: URI",
    "mlflow": "register only one of them",
    "models": "register only one of them",
}
_UNREADABLE = (NotFoundError, DeniedError, OSError, ValueError, RecursionError)


def folder_of(location: Location, folder: str) -> Location:
    """A folder of a location by its relative path; the location itself for an empty one."""
    return location.inside(folder) if folder else location


def find_checkpoint(location: Location, uri: str, pointer: str) -> str:
    """The relative path of the checkpoint's folder; empty where it is the location itself, or where there is none.

    Raises:
        InputError: several folders at the same depth hold one, there are too many folders, or none can be listed.
    """
    names = {file.name for file in listed(location, uri, pointer)}
    if ADAPTER_CONFIG in names or (CONFIG in names and (MODULES not in names or _names_model_type(location))):
        return ""
    level, searched = [""], 0
    for _ in range(MAX_DEPTH):
        level = [path for folder in level for path in _subfolders(location, folder)]
        searched += len(level)
        if searched > MAX_FOLDERS:
            raise InputError.at(
                pointer, f"{uri} has no {CONFIG}, but more than {MAX_FOLDERS} folders; give the checkpoint's own folder"
            )
        found = [folder for folder in level if _is_checkpoint(location.inside(folder))]
        if len(found) > 1:
            raise InputError.at(pointer, _several(uri, found))
        if found:
            return found[0]
    return ""


def listed(location: Location, uri: str, pointer: str) -> list[PinnedFile]:
    """The files of a location; InputError where they cannot be listed."""
    try:
        return location.files()
    except (NotFoundError, DeniedError) as error:
        raise InputError.at(pointer, error.detail) from error
    except (OSError, ValueError) as error:
        raise InputError.at(pointer, f"{uri} cannot be read: {error}") from error


def _subfolders(location: Location, folder: str) -> list[str]:
    """The folders of a folder, by their paths; those of one that cannot be listed are none."""
    try:
        names = folder_of(location, folder).folders()
    except _UNREADABLE:
        return []
    return [f"{folder}/{name}" if folder else name for name in names]


def _is_checkpoint(folder: Location) -> bool:
    try:
        names = {file.name for file in folder.files()}
    except _UNREADABLE:
        return False
    return ADAPTER_CONFIG in names or (CONFIG in names and _names_model_type(folder))


def _names_model_type(folder: Location) -> bool:
    """Whether its config.json is a model's; the layers of sentence-transformers have a config.json too."""
    try:
        config = json.loads(folder.read(CONFIG, MAX_CONFIG_BYTES))
    except _UNREADABLE:
        return False
    return isinstance(config, dict) and isinstance(config.get("model_type"), str)


def _several(uri: str, found: list[str]) -> str:
    """What to say of several checkpoints at one depth."""
    folders = sorted(found, key=_natural)
    more = f" and {len(folders) - _NAMED} more" if len(folders) > _NAMED else ""
    one_alone = f"choose one of them: {uri.rstrip('/')}/{quote(folders[-1])}/"
    advice = _ONE_ALONE.get(urlsplit(uri).scheme, one_alone)
    return f"{uri} contains {len(folders)} checkpoints ({', '.join(folders[:_NAMED])}{more}); {advice}"


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts checkpoint-500 before checkpoint-1000."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]
