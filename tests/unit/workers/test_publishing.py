"""What a job leaves in the bucket, in which order, and when it is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis
import torch
from safetensors.torch import load

from backends.storage import key_names
from backends.storage.artifact_names import CENTRES
from backends.storage.artifacts import Artifacts
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import UnavailableError
from layerdrift.contract.report import Report
from tests.builders.latents import side, stored
from tests.builders.models import BLOCKS, HIDDEN, tiny_tokenizer
from tests.builders.records import record
from tests.builders.reports import report as whole_report
from tests.builders.stages import stage_context
from tests.builders.stores import MemoryDeployment
from workers.analysis.moments import Frame
from workers.models.inliers import Inliers
from workers.models.states import StateReader
from workers.publishing import keep_autoencoders, keep_centres, publish, publish_preliminary
from workers.stages.common.moment_accumulator import TokenizationSpec
from workers.stages.extract.extracted import Extracted
from workers.stages.sae.findings import Dictionaries, SaeResults
from workers.stages.sae.rows import SaeRows


def report() -> Report:
    """A short one: most of the time of these tests goes into drawing it."""
    return whole_report(layers=2, with_sae=False)


@pytest.fixture
def made(tmp_path: Path) -> MemoryDeployment:
    return MemoryDeployment(tmp_path, record(analysis_id="an_1").model_copy(update={"attempts": 1}))


@pytest.fixture
def artifacts(made: MemoryDeployment) -> Artifacts:
    return Artifacts(made.blobs, made.jobs.get("an_1").owned)


def test_the_list_is_written_before_the_reports_and_the_json_last(made: MemoryDeployment, artifacts: Artifacts) -> None:
    owned = made.jobs.get("an_1").owned
    publish(made.given, owned, report(), artifacts)
    assert made.blobs.written[0] == key_names.artifact_list(owned)
    assert sorted(made.reports.cached) == ["html", "json", "md"]
    assert made.reports.cached[-1] == "json"
    body = made.blobs.objects[made.blobs.written[-1]]
    assert Report.model_validate_json(body) == report()
    listed = json.loads(made.blobs.objects[key_names.artifact_list(owned)])
    assert listed[key_names.report_object(owned, "json")]["bytes"] == len(body)


def test_a_preliminary_report_is_readable_and_noted_with_its_drift(made: MemoryDeployment) -> None:
    publish_preliminary(made.given, made.jobs.get("an_1"), report())
    found = made.jobs.get("an_1")
    assert found.preliminary
    assert found.drift == [layer.drift for layer in report().layers]
    assert Report.model_validate_json(made.reports.early[found.owned, "json"]) == report()
    assert made.blobs.objects == {}


@pytest.mark.parametrize("changes", [{"status": Status.CANCELLED}, {"attempts": 2}])
def test_a_record_that_has_ended_or_is_another_workers_is_left_alone(
    made: MemoryDeployment, changes: dict[str, Any]
) -> None:
    mine = made.jobs.get("an_1")
    theirs = made.jobs.update("an_1", lambda found: found.model_copy(update=changes))
    publish_preliminary(made.given, mine, report())
    assert made.jobs.get("an_1") == theirs


@pytest.mark.parametrize("away", [redis.ConnectionError("gone"), UnavailableError("gone")])
def test_a_preliminary_report_that_cannot_be_written_stops_no_job(made: MemoryDeployment, away: Exception) -> None:
    made.jobs.fails = away
    publish_preliminary(made.given, made.jobs.get("an_1"), report())
    assert not made.jobs.get("an_1").preliminary
    made.jobs.fails, made.reports.away = None, True
    publish_preliminary(made.given, made.jobs.get("an_1"), report())
    assert not made.jobs.get("an_1").preliminary


@pytest.mark.parametrize("limits", [True, False])
def test_centres_are_kept_with_how_the_texts_were_read(
    made: MemoryDeployment, artifacts: Artifacts, tmp_path: Path, limits: bool
) -> None:
    rows = torch.randn(2, BLOCKS + 1, 50, HIDDEN, generator=torch.Generator().manual_seed(0))
    frame = Frame.of(rows[0], 3 * rows[1] + 1)
    inliers = Inliers(False, torch.arange(4.0), 2 * torch.arange(4.0)) if limits else None
    tokenization = TokenizationSpec(tiny_tokenizer(tmp_path), 17, False, StateReader(BLOCKS + 1, HIDDEN), inliers)
    extracted = SimpleNamespace(frame=frame, tokenization=tokenization)
    keep_centres(cast(Extracted, extracted), tmp_path / "centres", artifacts)
    kept = load(made.blobs.objects[key_names.artifact_object(made.jobs.get("an_1").owned, CENTRES)])
    assert int(kept["length"]) == 17
    exact = rows.double()
    torch.testing.assert_close(kept["tuned"], 3 * exact[1].mean(1) + 1, rtol=1e-5, atol=1e-6)
    expected = 9 * (exact[1] - exact[1].mean(1, keepdim=True)).square().sum(2).mean(1)
    torch.testing.assert_close(kept["tuned_spread"], expected, rtol=1e-5, atol=1e-5)
    assert ("base_limits" in kept, "tuned_limits" in kept) == (limits, limits)
    if limits:
        assert torch.equal(kept["tuned_limits"], 2 * torch.arange(4.0))


def test_every_autoencoder_is_stored_under_its_layer_and_leaves_no_file_behind(
    made: MemoryDeployment, artifacts: Artifacts, tmp_path: Path
) -> None:
    rows, contexts, size = stored(tmp_path)
    stack = side(size, 0).stack
    dictionaries = Dictionaries(
        [0], stack, torch.zeros(2, size), None, changed=[[]], others=[[]], firing=[torch.zeros(size, 2)]
    )
    context = stage_context(tmp_path / "job")
    context.folder.mkdir()
    owned = made.jobs.get("an_1").owned
    results = cast(SaeResults, SimpleNamespace(dictionaries=dictionaries))
    found = keep_autoencoders(
        context, owned, results, cast(SaeRows, SimpleNamespace(heldout=rows, contexts=contexts)), "bucket", artifacts
    )
    prefix = key_names.sae_prefix(owned)
    assert found.autoencoders == f"s3://bucket/{prefix}"
    inside = sorted(key.removeprefix(prefix) for key in made.blobs.objects if key.startswith(prefix))
    assert inside == [
        f"{model}/layer-00/{name}" for model in ("base", "tuned") for name in ("cfg.json", "sae_weights.safetensors")
    ]
    metadata = json.loads(made.blobs.objects[f"{prefix}tuned/layer-00/cfg.json"])["metadata"]
    assert (metadata["hook_name"], metadata["layerdrift"]) == (
        "hidden_states.0",
        {"analysis": "an_1", "sae": "tuned/layer-00"},
    )
    assert found.latents.removeprefix("s3://bucket/") in made.blobs.objects
    assert [path for path in context.folder.iterdir() if path.is_dir()] == []
