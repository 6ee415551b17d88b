"""What a reference and a cursor may be. Pages and counts, which Redis keeps: tests/integration/test_backends."""

from __future__ import annotations

import base64
from typing import cast

import pytest
import redis

from backends.jobs.listing import MAX_NAMESAKES, JobListing
from backends.jobs.records import EVERY, JobRecord, Wanted
from layerdrift.contract.errors import InputError, NotFoundError
from tests.builders.records import record
from tests.builders.stores import MemoryJobs

NO_REDIS = cast(redis.Redis, None)


class OnePage(JobListing):
    """A list whose records are all on one page; Redis is not asked."""

    def __init__(self, *records: JobRecord) -> None:
        super().__init__(NO_REDIS, MemoryJobs(*records))
        self._shown = records

    def page(
        self, tenant: str, limit: int, cursor: str | None, wanted: Wanted = EVERY
    ) -> tuple[list[JobRecord], str | None]:
        return [one for one in self._shown if one.tenant == tenant and wanted.admits(one)][:limit], None


def called(name: str) -> JobRecord:
    made = record()
    return made.model_copy(update={"request": made.request.model_copy(update={"name": name})})


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    ["nonsense", "%%%", "=", "ü", "a", encoded("an_x"), encoded(":an_x"), encoded("1.5:an_x"), encoded("9" * 5_000)],
)
def test_a_cursor_that_no_list_has_returned_is_an_input_error(cursor: str) -> None:
    with pytest.raises(InputError, match="use one that a list has returned") as raised:
        JobListing(NO_REDIS, MemoryJobs()).page("default", 5, cursor)
    assert [one.pointer for one in raised.value.errors] == ["/cursor"]


def test_a_whole_id_stands_for_itself_and_is_not_looked_for() -> None:
    whole = "an_" + "a2" * 13
    assert OnePage().resolve("default", whole) == whole


@pytest.mark.parametrize("name", ["my run", "an_ab", "an_" + "a" * 27, "an_ABC", "an_a01", "Latest"])
def test_a_name_stands_for_the_one_analysis_that_has_it(name: str) -> None:
    mine, other = called(name), called(f"{name} 2")
    assert OnePage(other, mine).resolve("default", name) == mine.id


def test_a_name_of_several_analyses_asks_for_one_of_their_ids() -> None:
    twins = [called("my run") for _ in range(2)]
    with pytest.raises(InputError, match="'my run' matches several analyses") as raised:
        OnePage(*twins).resolve("default", "my run")
    for twin in twins:
        assert f"{twin.id} of {twin.created_at:%Y-%m-%d %H:%M}" in raised.value.detail


def test_of_many_namesakes_some_are_named() -> None:
    many = [called("my run") for _ in range(MAX_NAMESAKES + 3)]
    with pytest.raises(InputError) as raised:
        OnePage(*many).resolve("default", "my run")
    assert sum(one.id in raised.value.detail for one in many) == MAX_NAMESAKES


def test_a_name_of_another_tenants_analysis_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="no analysis has the id or name 'my run'"):
        OnePage(called("my run")).resolve("other", "my run")
