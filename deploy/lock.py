"""`make lock`: versions in, requirements.lock out, with the hashes of every file of each; run where pip-tools is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

COMMAND = (
    *("piptools", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate", "--strip-extras"),
    *("--allow-unsafe", "--no-emit-index-url", "--no-emit-find-links", "--pip-args", "--no-deps"),
)
_NAME = re.compile(r"^([A-Za-z0-9._-]+)==")


def main(versions: Path, lock: Path) -> None:
    """Writes the lock of the versions that one file names, a line for each."""
    whole = versions.with_suffix(".hashed")
    subprocess.run([sys.executable, "-m", *COMMAND, "--output-file", str(whole), str(versions)], check=True)
    lock.write_text(only(whole.read_text(), versions.read_text()))


def only(hashed: str, versions: str) -> str:
    """The entries that `versions` names: what these depend on, such as PyTorch's CUDA, is not the lock's to choose."""
    wanted = {_plain(found[1]) for line in versions.splitlines() if (found := _NAME.match(line))}
    kept, keep = [], False
    for line in hashed.splitlines(keepends=True):
        if found := _NAME.match(line):
            keep = _plain(found[1]) in wanted
            wanted.discard(_plain(found[1]))
        if keep and line.strip() and not line.startswith("#"):
            kept.append(line)
    if wanted:
        raise SystemExit(f"no hashes of {', '.join(sorted(wanted))}")
    return "".join(kept)


def _plain(name: str) -> str:
    """A name as package indexes compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
