"""Which members differ by their seed alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from workers.studies.outcomes import Outcome

MIN_REPEATS = 2


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Members of one task and one recipe.

    recipe: what its groups of other tasks share: everything but the data set and the seed.
    """

    name: str
    task: str
    recipe: str
    named: bool
    members: tuple[Outcome, ...]


def repeats_of(outcomes: Sequence[Outcome]) -> list[Repeats]:
    """The groups of two or more, in the order of the members. Members that failed count: their group is theirs."""
    groups: defaultdict[tuple[str, str, bool], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        given = outcome.member.repeat_of
        if given is not None:
            groups[outcome.task, given, True].append(outcome)
        elif outcome.request.finetune is not None:
            groups[outcome.task, _question(outcome), False].append(outcome)
    return [
        Repeats(
            name=key if named else f"{members[0].name} and its repeats",
            task=task,
            recipe=key if named else _recipe(members[0]),
            named=named,
            members=tuple(members),
        )
        for (task, key, named), members in groups.items()
        if len(members) >= MIN_REPEATS
    ]


def _question(outcome: Outcome) -> str:
    """Everything that a fine-tune's analysis depends on but its seed."""
    return outcome.request.model_dump_json(exclude={"name", "seed", "tags", "webhook"})


def _recipe(outcome: Outcome) -> str:
    """Everything but the seed and the data."""
    settings = outcome.request.model_dump(mode="json", include={"base", "finetune", "analysis"})
    return json.dumps(settings, sort_keys=True)
