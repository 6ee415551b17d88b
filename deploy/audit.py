"""`make audit`: the locked packages beside the known vulnerabilities; says how many could not be looked up."""

from __future__ import annotations

import json
import subprocess
import sys

COMMAND = ("pip_audit", "-r", "requirements.lock", "--require-hashes", "--disable-pip", "--progress-spinner", "off")


def main() -> int:
    """1 where a package has a known vulnerability; 0 else, also where none could be looked up."""
    done = subprocess.run(
        [sys.executable, "-m", *COMMAND, "--format", "json"], capture_output=True, text=True, check=False
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        _say(f"not audited: {reason}")
        return 0
    return report(packages)


def report(packages: list[dict[str, object]]) -> int:
    """Says what pip-audit found of each package."""
    skipped = [one for one in packages if "skip_reason" in one]
    vulnerable = [(one, found) for one in packages for found in _known(one)]
    for one, found in vulnerable:
        fixed = ", ".join(found.get("fix_versions", [])) or "no version yet"
        _say(f"{one['name']} {one['version']}: {found['id']}, mended in {fixed}")
    if len(skipped) == len(packages):
        _say("not audited: the data base of vulnerabilities could not be reached")
    else:
        _say(f"{len(packages) - len(skipped)} of {len(packages)} packages audited, {len(vulnerable)} vulnerabilities")
    return 1 if vulnerable else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _known(package: dict[str, object]) -> list[dict[str, list[str]]]:
    found = package.get("vulns", [])
    return found if isinstance(found, list) else []


if __name__ == "__main__":
    sys.exit(main())
