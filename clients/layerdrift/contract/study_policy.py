"""The policy of a study and its verdict: rules over its members and over what they have in common."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field, model_validator

from layerdrift.contract.policy import Check, Decision, PolicyModel, Rule, each_id_once
from layerdrift.contract.study_report import StudyReport


class StudyRule(Rule):
    """A condition on numbers of a study's report: `members[*].layers[0:3].drift.value`, `best.metric.value.value`."""

    @classmethod
    def document(cls) -> type[BaseModel]:
        return StudyReport

    @model_validator(mode="after")
    def _without_baseline(self) -> Self:
        if self.of_baseline is not None:
            raise ValueError("studies have no baseline: omit of_baseline")
        return self


class StudyPolicy(PolicyModel):
    """The rules that the report of a study must meet."""

    description: str = Field(default="", max_length=2_000, description="for people")
    rules: list[StudyRule] = Field(min_length=1, max_length=200)

    @model_validator(mode="after")
    def _each_id_once(self) -> Self:
        each_id_once(self.rules)
        return self


class StudyVerdict(BaseModel):
    """Whether a study meets a policy."""

    study_id: str
    decision: Decision = Field(description="`fail` if a rule of that severity failed, else `warn`, else `pass`")
    checks: list[Check]
