"""The policy of a review and its verdict: which numbers of a report must lie where, and whether they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, field_validator, model_validator

from layerdrift.contract.errors import InputError
from layerdrift.contract.paths import Path, PathError
from layerdrift.contract.report import Report
from layerdrift.contract.words import has_word

Severity = Literal["fail", "warn"]
Decision = Literal["pass", "warn", "fail"]
Scalar = float | bool | str
Words = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1, max_length=1_000)]


LISTED_WORDS = 5
"""Words that a limit names."""


class PolicyModel(BaseModel):
    """Base of every part: unknown fields are refused, and no number is NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Rule(PolicyModel):
    """One condition on every number, or text, that the path matches. A path that matches no number is an error."""

    id: str = Field(pattern=r"^[A-Za-z0-9][\w.-]{0,99}$", description="its name in the verdict and in JUnit")
    severity: Severity = Field(default="fail", description="what a violation means for the verdict")
    message: str = Field(min_length=1, max_length=2_000, description="shown when the rule is violated")
    path: str = Field(
        min_length=1,
        max_length=500,
        description="numbers or texts of the report: `layers[0:3].similarity.token.cka.value`; slices as in Python, "
        "names in brackets filter (`layers[zone=general]`), `[*]` takes all, `.length` counts what a list has",
    )
    minus: str | None = Field(
        default=None,
        max_length=500,
        description="path of what is subtracted first: one number, or as many as `path` matches",
    )
    of_baseline: Literal["ratio", "difference"] | None = Field(
        default=None,
        description="evaluate the ratio to, or the difference from, the same number in the baseline's report",
    )
    floor: float | None = Field(
        default=None,
        gt=0,
        strict=True,
        description="with `of_baseline: ratio`: smaller numbers count as this, so that a ratio of noise fails nothing",
    )
    min: float | None = Field(default=None, strict=True, description="smallest allowed value")
    max: float | None = Field(default=None, strict=True, description="largest allowed value")
    equals: StrictBool | StrictStr | None = Field(default=None, description="required value, if it is not a number")
    without_words: Words | None = Field(
        default=None,
        description="no text that the path matches, such as `learned.completions[*].text`, may have one of these words "
        "or phrases; whole words, capital and small letters alike. A list without entries satisfies the rule",
    )
    only_words: Words | None = Field(
        default=None,
        description="texts that the path matches, such as `learned.tokens[*].token`, may have no other words than "
        "these. A list without entries satisfies the rule",
    )
    if_undefined: Literal["error", "pass", "warn", "fail"] = Field(
        default="error",
        description="decision if the report has null there: a number that was not computed or is not defined",
    )

    skip_if_present: list[Annotated[str, Field(max_length=500)]] = Field(
        default=[],
        max_length=20,
        description="paths of single values: where the report has one of them, the rule is skipped. For rules that "
        "stand in for a better one, such as for models without a head",
    )

    @classmethod
    def document(cls) -> type[BaseModel]:
        """What its paths lead into."""
        return Report

    @field_validator("skip_if_present")
    @classmethod
    def _lead_to_something(cls, paths: list[str]) -> list[str]:
        for path in paths:
            cls._leads_to_something(path)
            if not Path.parse(path).single:
                raise ValueError(f"{path} may lead to several values; name one, such as outputs.kind")
        return paths

    @field_validator("path", "minus")
    @classmethod
    def _leads_to_something(cls, path: str | None) -> str | None:
        if path is not None:
            try:
                Path.parse(path).check(cls.document())
            except PathError as error:
                raise ValueError(str(error)) from error
        return path

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        if self.of_words:
            return self._words_can_be_judged()
        if self.equals is None and self.min is None and self.max is None:
            raise ValueError(
                "give min, max, equals, without_words or only_words: nothing is asked of what the path matches"
            )
        if self.equals is None and not Path.parse(self.path).check(self.document()):
            raise ValueError(f"{self.path} is no number: ask for it with equals, without_words or only_words")
        if self.minus is not None and not Path.parse(self.minus).check(self.document()):
            raise ValueError(f"{self.minus} is no number to take off")
        numeric = (self.min, self.max, self.minus, self.of_baseline)
        if self.equals is not None and any(given is not None for given in numeric):
            raise ValueError("equals goes without min, max, minus and of_baseline")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: nothing can hold")
        if self.floor is not None and self.of_baseline != "ratio":
            raise ValueError("floor is for of_baseline: ratio")
        return self

    def _words_can_be_judged(self) -> Self:
        if Path.parse(self.path).check(self.document()):
            raise ValueError(f"{self.path} is a number: ask for it with min and max; words are asked of texts")
        others = (self.equals, self.min, self.max, self.minus, self.of_baseline, self.floor)
        if any(given is not None for given in others):
            raise ValueError("without_words and only_words go without equals, min, max, minus and of_baseline")
        for word in (*(self.without_words or ()), *(self.only_words or ())):
            if not has_word(word):
                raise ValueError(f"{word!r} contains no letter or digit")
        return self

    @property
    def of_words(self) -> bool:
        """Whether it is asked of words, not of numbers."""
        return self.without_words is not None or self.only_words is not None

    @property
    def limit(self) -> str:
        """What is asked, in symbols."""
        if self.of_words:
            asked = (("none of", self.without_words), ("only", self.only_words))
            return ", ".join(f"{how} {listed(words)}" for how, words in asked if words is not None)
        if self.equals is not None:
            return f"= {str(self.equals).lower() if isinstance(self.equals, bool) else self.equals}"
        if self.min is not None and self.max is not None:
            return f"{self.min:g} to {self.max:g}"
        return f">= {self.min:g}" if self.min is not None else f"<= {self.max:g}"


def listed(words: list[str]) -> str:
    """The first LISTED_WORDS, and how many more there are."""
    more = f" and {len(words) - LISTED_WORDS} more" if len(words) > LISTED_WORDS else ""
    return ", ".join(words[:LISTED_WORDS]) + more


class Policy(PolicyModel):
    """The rules that a report must meet."""

    description: str = Field(default="", max_length=2_000, description="for people")
    baseline: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="earlier analysis, such as the production model's, for rules with `of_baseline`: its id, the "
        "first characters of it, its name, or `latest`",
    )
    rules: list[Rule] = Field(min_length=1, max_length=200)

    @model_validator(mode="after")
    def _each_id_once(self) -> Self:
        each_id_once(self.rules)
        return self

    @property
    def needs_baseline(self) -> bool:
        """Whether a rule compares with another report."""
        return any(rule.of_baseline for rule in self.rules)


def each_id_once(rules: Sequence[Rule]) -> None:
    """ValueError where two rules have one id."""
    seen: set[str] = set()
    for rule in rules:
        if rule.id in seen:
            raise ValueError(f"two rules are called {rule.id!r}")
        seen.add(rule.id)


class Finding(BaseModel):
    """A number that does not hold what its rule asks, and where it stands."""

    path: str = Field(description="of this one number: `layers[2].drift`")
    observed: Scalar | None = Field(description="null: the report has no number there")


class Check(BaseModel):
    """What became of a rule."""

    id: str
    decision: Decision
    severity: Severity
    path: str
    matched: int = Field(ge=0, description="numbers that were judged; 0: the rule was skipped (`skip_if_present`)")
    observed: Scalar | None = Field(description="the number farthest from what is asked, or nearest to its limit")
    limit: str
    message: str = Field(description="the rule's")
    detail: str = Field(description="what was found, in words")
    evaluated: bool = Field(
        default=True,
        description="false: the report has no number where the rule looks, so `if_undefined` decided; "
        "that says nothing about the model",
    )
    skipped: bool = Field(
        default=False, description="no number was evaluated, because of `skip_if_present` or `if_undefined`"
    )
    findings: list[Finding] = Field(
        default=[], description="those that do not hold, the first hundred; `detail` says how many there are"
    )

    @property
    def said(self) -> str:
        """The rule's message, where a number made it say so."""
        return self.message if self.evaluated else f"no number to evaluate, which counts as {self.decision}"

    @property
    def shown(self) -> str:
        """The decision, or `skip` where nothing was evaluated and that passes."""
        return "skip" if self.skipped and self.decision == "pass" else self.decision


class Verdict(BaseModel):
    """Whether the fine-tuned model may replace its base."""

    analysis_id: str
    baseline: str | None = None
    decision: Decision = Field(description="`fail` if a rule of that severity failed, else `warn`, else `pass`")
    checks: list[Check]

    @property
    def evaluated(self) -> bool:
        """Whether numbers made it fail; false: only rules on numbers that the report does not have did."""
        return self.decision != "fail" or any(one.evaluated and one.decision == "fail" for one in self.checks)

    @property
    def skipped(self) -> int:
        """Checks that did not apply, or had no number to look at."""
        return sum(check.shown == "skip" for check in self.checks)

    @property
    def counts(self) -> dict[Decision, int]:
        """Checks by what became of them."""
        order: tuple[Decision, ...] = ("pass", "warn", "fail")
        return {one: sum(check.decision == one for check in self.checks) for one in order}


def rule_error(rules: Sequence[Rule], rule: Rule, detail: str) -> InputError:
    """A rule that cannot be judged on a report; points at its path."""
    return InputError.at(f"/rules/{rules.index(rule)}/path", f"rule {rule.id}: {detail}")
