"""Studies on the running service: real API, queue, worker, Redis and S3; tiny models."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from layerdrift.cli.main import app
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import ConflictError, InputError, NotFoundError
from layerdrift.contract.study import StudyRequest
from layerdrift.sdk import Client
from tests.builders.models import save_model, tiny_bert
from tests.builders.texts import make_texts

WAIT_SECONDS = 300.0
KINDS = ("chosen", "all", "random")


def labelled(path: Path, word: str, seed: int) -> Path:
    """A CSV of texts, labelled by whether a word stands in them."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows([text, str(int(word in text))] for text in make_texts(400, seed=seed))
    return path


@pytest.fixture(scope="module")
def asked(roots: Path, base_folder: Path, noised_folder: Path) -> dict[str, Any]:
    """Two tasks with two seeds each, and one checkpoint."""
    tasks = {"good": labelled(roots / "good.csv", "good", 3), "film": labelled(roots / "film.csv", "film", 4)}
    dataset = {name: {"uri": path.as_uri(), "max_examples": 60} for name, path in tasks.items()}
    return {
        "name": "two tasks",
        "base": {"uri": base_folder.as_uri()},
        "finetune": {"epochs": 1, "checkpoints": 2},
        "analysis": {"sae": None, "grafts": False},
        "members": [
            {"name": f"{task}-{seed}", "task": task, "seed": seed, "dataset": dataset[task]}
            for task in tasks
            for seed in (0, 1)
        ]
        + [{"name": "good-longer", "task": "good", "finetune": {"epochs": 2}, "dataset": dataset["good"]}]
        + [{"name": "noised", "task": "good", "tuned": {"uri": noised_folder.as_uri()}, "dataset": dataset["good"]}],
    }


def test_a_study_goes_from_the_post_to_the_report(client: Client, asked: dict[str, Any]) -> None:
    study = client.submit_study({**asked, "lora_trial": {"layers": 1, "rank": 2}})
    assert [member.name for member in study.members] == [
        "good-0",
        "good-1",
        "film-0",
        "film-1",
        "good-longer",
        "noised",
    ]
    assert client.submit_study({**asked, "lora_trial": {"layers": 1, "rank": 2}}).id == study.id
    with pytest.raises(ConflictError, match="it has no report"):
        client.study_report(study.id)
    with pytest.raises(ConflictError, match="cancel it first"):
        client.delete_study(study.id)
    report = client.wait_study(study.id, timeout=WAIT_SECONDS)
    assert [member.analysis_id for member in report.members] == [member.analysis_id for member in study.members]
    for member in report.members:
        own = client.report(member.analysis_id)
        assert [layer.drift.value for layer in member.measured] == [layer.drift for layer in own.layers]
    assert {group.task: group.members for group in report.repeats} == {
        "good": ["good-0", "good-1"],
        "film": ["film-0", "film-1"],
    }
    assert [curve.run for curve in report.training] == ["good-0", "good-1", "film-0", "film-1"]
    (test,) = [one for one in report.paired_tests if {one.one, one.other} == {"good-0", "good-longer"}]
    assert (test.metric, test.texts) == ("accuracy", 60)
    assert test.difference.value is not None
    alike = report.similarity
    assert alike is not None
    assert alike.members == [member.name for member in report.members]
    assert len(alike.layers) == len(report.layers)
    assert len(alike.tree) == len(alike.members) - 1
    same = alike.layers[-1].change_cosine[0][4]
    assert same is not None
    assert same > 0.3  # one recipe, one seed, one more epoch
    assert report.lora is not None
    trials = [(one.task, one.kind, len(one.layers)) for one in report.lora.trials]
    assert trials == [(task, kind, 3 if kind == "all" else 1) for task in ("good", "film") for kind in KINDS]
    assert all(one.metric is not None and one.trainable_parameters for one in report.lora.trials)
    assert all((one.p is None) is (one.kind == "all") for one in report.lora.trials)
    last = report.layers[-1]
    assert last.seed_sd.value is not None
    assert last.task_p is not None
    assert client.list_studies(name="two TASKS").items[0].id == study.id
    assert "<html" in client.rendered_study_report(study.id, "html")
    assert client.rendered_study_report(study.id, "md").startswith("# two tasks")
    rules = [{"id": "few", "path": "members[*].layers[0:2].drift.value", "max": 2, "message": "moved"}]
    verdict = client.gate_study("two tasks", {"rules": rules})
    assert (verdict.decision, verdict.checks[0].matched) == ("pass", 12)
    alone = client.submit(StudyRequest.model_validate(asked).analyses()[0].request)
    assert alone.id == study.members[0].analysis_id


def test_a_member_that_fails_leaves_a_hole_and_runs_again_with_the_study(
    client: Client, asked: dict[str, Any], roots: Path
) -> None:
    broken = save_model(tiny_bert(3), roots / "broken")
    weights = broken / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    dataset = asked["members"][0]["dataset"]
    members = [asked["members"][-1], {"name": "broken", "tuned": {"uri": broken.as_uri()}, "dataset": dataset}]
    study = client.submit_study({**asked, "name": "with a hole", "members": members})
    report = client.wait_study(study.id, timeout=WAIT_SECONDS)
    assert [bool(member.layers) for member in report.members] == [True, False]
    assert report.members[1].error
    assert [warning.code for warning in report.warnings][:1] == ["members_missing"]
    again = client.submit_study({**asked, "name": "with a hole", "members": members})
    assert (again.id, again.status.final) == (study.id, False)
    *_, last = client.watch_study(study.id, timeout=WAIT_SECONDS)
    assert last.status is Status.SUCCEEDED
    client.delete_study(study.id)
    with pytest.raises(NotFoundError):
        client.get_study(study.id)
    assert client.get(study.members[0].analysis_id).status is Status.SUCCEEDED


def test_a_study_is_cancelled_with_the_analyses_that_it_made(client: Client, asked: dict[str, Any]) -> None:
    kept = asked["members"][-1]
    members = [kept, *({**member, "seed": 7 + number} for number, member in enumerate(asked["members"][:4]))]
    study = client.submit_study({**asked, "name": "cancelled", "members": members})
    assert client.cancel_study(study.id).status is Status.CANCELLED
    *_, last = client.watch_study(study.id, timeout=WAIT_SECONDS)
    ended = [client.get(member.analysis_id) for member in last.members]
    assert ended[0].status is Status.SUCCEEDED
    with pytest.raises(ConflictError):
        client.cancel_study(study.id)


def test_members_that_cannot_be_are_refused_before_anything_runs(
    client: Client, asked: dict[str, Any], roots: Path
) -> None:
    other = save_model(tiny_bert(0, blocks=2), roots / "shallow")
    members = [
        {**asked["members"][0], "name": "first"},
        {**asked["members"][0], "name": "copy of first"},
        {**asked["members"][1], "name": "first"},
        {"name": "nothing", "dataset": {"uri": (roots / "missing.csv").as_uri()}},
        {"name": "shallow", "tuned": {"uri": other.as_uri()}, "dataset": asked["members"][0]["dataset"]},
    ]
    before = {one.id for one in client.list(limit=100).items}
    with pytest.raises(InputError) as refused:
        client.submit_study({**asked, "members": members})
    assert {one.pointer for one in refused.value.errors} == {"/members/1", "/members/2/name"}
    with pytest.raises(InputError) as refused:
        client.submit_study({**asked, "members": [members[0], *members[3:]]})
    assert {one.pointer for one in refused.value.errors} == {"/members/1/dataset/uri", "/members/2/tuned/uri"}
    assert {one.id for one in client.list(limit=100).items} == before
    answer = httpx.post(f"{client.url}/v1/studies", json={**asked, "members": asked["members"][:1] * 51})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/members")


def test_the_command_line_runs_a_study_and_ends_as_its_policy_says(
    client: Client, asked: dict[str, Any], tmp_path: Path
) -> None:
    file, policy, page = tmp_path / "study.yaml", tmp_path / "policy.yaml", tmp_path / "study.html"
    file.write_text(yaml.safe_dump({**asked, "name": "from a file"}))
    rule = {"id": "unmoved", "path": "members[*].mean_drift", "max": -1, "message": "it moved"}
    policy.write_text(json.dumps({"rules": [rule]}))
    url = ["--url", client.url]
    ran = CliRunner().invoke(app, ["study", "run", str(file), "--policy", str(policy), "--html", str(page), *url])
    assert ran.exit_code == 1, ran.output
    assert "it moved" in ran.output
    assert page.read_text().startswith("<!doctype html>")
    listed = CliRunner().invoke(app, ["study", "list", *url])
    assert "from a file" in listed.output
    shown = CliRunner().invoke(app, ["study", "report", "from a file", *url])
    assert "general for" in shown.output
