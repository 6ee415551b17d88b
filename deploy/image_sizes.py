"""`make image-sizes`: what the packages of each image take on disk, from those that are installed here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

IMAGES = {
    "service": ("layerdrift", "layerdrift-server[service,otel]"),
    "inspect": ("layerdrift[render]", "layerdrift-server[service,worker,otel]"),
    "worker": ("layerdrift[render]", "layerdrift-server[worker,otel]"),
}
"""As the Dockerfile installs them."""

MEGABYTE = 10**6


def closure(asked: Iterable[str]) -> dict[str, Distribution]:
    """The packages that some requirements bring with them, by name; those that are not installed here are left out."""
    found: dict[str, Distribution] = {}
    left = [Requirement(one) for one in asked]
    seen: set[tuple[str, str]] = set()
    while left:
        requirement = left.pop()
        for extra in ("", *sorted(requirement.extras)):
            if (requirement.name.lower(), extra) in seen:
                continue
            seen.add((requirement.name.lower(), extra))
            try:
                package = distribution(requirement.name)
            except PackageNotFoundError:
                continue
            found[requirement.name.lower()] = package
            needs = map(Requirement, package.requires or ())
            left += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return found


def size(package: Distribution) -> int:
    """Bytes of the files of one package."""
    paths = (Path(str(package.locate_file(file))) for file in package.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file())


def main() -> None:
    """Prints a line for each image."""
    for image, asked in IMAGES.items():
        packages = closure(asked)
        sizes = {name: size(package) for name, package in packages.items()}
        torch = sizes.pop("torch", 0)
        with_torch = f", and PyTorch for CPUs {torch / MEGABYTE:,.0f} MB" if torch else ""
        print(f"{image}: {len(packages)} packages, {sum(sizes.values()) / MEGABYTE:,.0f} MB{with_torch}")


if __name__ == "__main__":
    main()
