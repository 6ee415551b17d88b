"""Keys lie where what removes, lists and restricts them looks. That no tenant's name is another's key: test_keys."""

from __future__ import annotations

import itertools

import pytest

from backends.storage import key_names
from backends.storage.key_names import Owned

OWNED = Owned("team", "an_x")


def objects_of(owned: Owned) -> dict[str, str]:
    """Every object and every prefix of an analysis in the bucket."""
    return {
        "job": key_names.record_object(key_names.JOBS, owned),
        "study": key_names.record_object(key_names.STUDIES, owned),
        "report": key_names.report_prefix(owned),
        "artifacts": key_names.artifact_prefix(owned),
        "unfinished": key_names.unfinished_prefix(owned),
        "checkpoint": key_names.checkpoint_prefix(owned),
        "finetune": key_names.finetune_object(owned.tenant, owned.id),
        "upload": key_names.upload_object(owned.tenant, owned.id),
        "upload record": key_names.upload_record(owned.tenant, owned.id),
    }


def redis_keys_of(analysis_id: str) -> list[str]:
    """Every key of an analysis in Redis."""
    return [
        key_names.record(key_names.JOBS, analysis_id),
        key_names.submission(analysis_id),
        key_names.lease(analysis_id),
        key_names.announced(analysis_id),
        key_names.events(analysis_id),
        key_names.cached_report(analysis_id, "json"),
        key_names.preliminary_report(analysis_id, "json"),
    ]


@pytest.mark.parametrize("kind", objects_of(OWNED))
def test_all_that_a_tenant_has_lies_under_its_prefix_and_under_no_others(kind: str) -> None:
    key = objects_of(OWNED)[kind]
    assert key.startswith(key_names.tenant_prefix("team"))
    assert not key.startswith(key_names.tenant_prefix("tea"))  # a name that begins alike


def test_removing_one_kind_of_an_analysis_removes_no_other() -> None:
    found = objects_of(OWNED).values()
    assert not [pair for pair in itertools.permutations(found, 2) if pair[0].startswith(pair[1])]


def test_removing_an_analysis_removes_none_whose_id_begins_alike() -> None:
    longer = objects_of(Owned("team", "an_xy")).values()
    assert not [key for key in longer if key.startswith(tuple(objects_of(OWNED).values()))]


def test_what_is_listed_under_a_prefix_is_of_that_kind() -> None:
    for kind in (key_names.JOBS, key_names.STUDIES):
        assert key_names.record_object(kind, OWNED).startswith(key_names.record_prefix(kind, "team"))
    assert key_names.checkpoint_prefix(OWNED).startswith(key_names.checkpoints_prefix("team"))
    assert key_names.upload_record("team", "up_x").startswith(key_names.uploads_prefix("team"))
    assert key_names.artifact_list(OWNED).startswith(key_names.artifact_prefix(OWNED))
    assert not key_names.artifact_list(OWNED).startswith(key_names.sae_prefix(OWNED))


def test_keys_of_analyses_differ_by_kind_and_by_id() -> None:
    keys = [*redis_keys_of("an_x"), *redis_keys_of("an_y")]
    assert len(set(keys)) == len(keys)


def test_requests_are_counted_for_each_key_and_minute() -> None:
    assert len({key_names.rate("key_a", 7), key_names.rate("key_a", 8), key_names.rate("key_b", 7)}) == 3
