from __future__ import annotations

import pytest

from backends.storage import artifact_names, key_names
from backends.storage.key_names import Owned

OWNED = Owned("default", "an_x")


def test_autoencoders_lie_where_they_are_looked_for() -> None:
    name = artifact_names.sae_file("base/layer-03", "cfg.json")
    assert name == "saes/base/layer-03/cfg.json"  # as clients fetch it
    assert key_names.artifact_object(OWNED, name) == f"{key_names.sae_prefix(OWNED)}base/layer-03/cfg.json"


@pytest.mark.parametrize("suffix", ["json", "html", "md"])
def test_a_report_has_the_same_name_in_the_list_and_in_the_bucket(suffix: str) -> None:
    key = key_names.report_object(OWNED, suffix)
    assert key.removeprefix(key_names.report_prefix(OWNED)) == artifact_names.report(suffix) == f"report.{suffix}"


def test_no_two_files_of_an_analysis_have_one_name() -> None:
    names = [artifact_names.CENTRES, artifact_names.LATENTS, artifact_names.report("json")]
    names += [artifact_names.sae_file(f"{role}/layer-00", "cfg.json") for role in ("base", "tuned")]
    assert len(set(names)) == 5
