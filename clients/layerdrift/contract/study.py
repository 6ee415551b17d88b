"""A study: one base model and many fine-tunes of it. The body of POST /v1/studies, and what the API answers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from layerdrift.contract.analysis import ReportState, Status
from layerdrift.contract.errors import FieldProblem, InputError, Problem
from layerdrift.contract.explained import explain
from layerdrift.contract.plain import Plain
from layerdrift.contract.policy import Decision, Policy
from layerdrift.contract.request import (
    AnalysisRequest,
    AnalysisSettings,
    DatasetRef,
    FineTune,
    ModelRef,
    RequestModel,
    TagName,
    TagValue,
)

MIN_MEMBERS: Final = 2
MAX_MEMBERS: Final = 50
OWN_FIELDS: Final = ("tuned", "finetune", "dataset", "seed")
"""What a member may have of its own; the rest of its analysis is the study's."""


class Snapshot(RequestModel):
    """Where in a training run a checkpoint was saved."""

    run: Plain = Field(min_length=1, max_length=100, description="name of the training run")
    step: int = Field(ge=0, description="optimiser step of the checkpoint")


class StudyMember(RequestModel):
    """One fine-tune of the base: a tuned checkpoint, or how to make one."""

    name: Plain = Field(min_length=1, max_length=100, description="unique in the study; names its analysis too")
    task: Plain | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="what the model is tuned for; members of one task are ranked together. null: the name of the data "
        "set's file, or its URI where several data sets have one name",
    )
    repeat_of: Plain | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="name of a recipe: members of one task with the same name differ by their seed alone. Use the same "
        "name in every task, or tasks cannot be compared. null: fine-tunes of the service that differ by `seed` alone "
        "are repeats, tuned checkpoints are not",
    )
    tuned: ModelRef | None = Field(default=None, description="the checkpoint after fine-tuning")
    snapshot: Snapshot | None = Field(
        default=None, description="of a tuned checkpoint: the training run it was saved in; null: it is no snapshot"
    )
    finetune: FineTune | None = Field(default=None, description="create the checkpoint; null: the study's `finetune`")
    dataset: DatasetRef | None = Field(default=None, description="null: the study's `dataset`")
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1, description="null: the study's `seed`")

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if self.tuned is not None and self.finetune is not None:
            raise ValueError("give tuned (a checkpoint) or finetune (how to create it), not both")
        if self.snapshot is not None and self.tuned is None:
            raise ValueError("snapshot requires tuned; for snapshots of a fine-tune set finetune.checkpoints")
        return self


TrialKind = Literal["chosen", "all", "random"]


class LoraTrial(RequestModel):
    """Fine-tunes that try the advice on adapters: LoRA on the layers that changed most, on all, and on as many random
    ones, for every task that has a full fine-tune."""

    layers: int | None = Field(default=None, ge=1, description="layers to choose; null: half of the blocks")
    rank: int | None = Field(default=None, ge=1, le=512, description="null: 8 where that holds the change, else 16")


class MemberAnalysis(NamedTuple):
    """The analysis that a member stands for."""

    member: StudyMember
    request: AnalysisRequest


class StudyRequest(RequestModel):
    """One base model, and the fine-tunes to compare with it and with one another."""

    name: Plain = Field(default="", max_length=200, description="display name, shown in lists and in the report")
    tags: dict[TagName, TagValue] = Field(default={}, max_length=50, description="tags of the study and its analyses")
    base: ModelRef = Field(description="the checkpoint that every member was tuned from")
    dataset: DatasetRef | None = Field(default=None, description="texts of the members that have no data set")
    finetune: FineTune | None = Field(
        default=None, description="how to create the checkpoints of members that have neither tuned nor finetune"
    )
    analysis: AnalysisSettings = Field(default=AnalysisSettings(), description="what to compute for each member")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="random seed of the members that have none")
    similarity: bool = Field(
        default=True,
        description="compare the tuned models with one another: their states and their changes at every layer",
    )
    lora_trial: LoraTrial | None = Field(
        default=None,
        description="try the advice on adapters by training, after all members have ended; null: do not. Costs three "
        "more fine-tunes for each task",
    )
    policy: Policy | None = Field(
        default=None,
        description="policy that each member's own report is evaluated against (paths as `layers[0:3].drift`); its "
        "decision ranks the members. For rules over the study's report POST them to `/gate`. null: the starter policy "
        "for what was compared",
    )
    members: list[StudyMember] = Field(
        min_length=MIN_MEMBERS, max_length=MAX_MEMBERS, description="each becomes an analysis"
    )

    def analyses(self) -> list[MemberAnalysis]:
        """The analysis of each member, the same as if it had been submitted alone under the member's name.

        Raises:
            InputError: a member is no analysis, or the same as another; `errors` names all of them.
        """
        problems = list(self._policy_problems())
        found: list[MemberAnalysis] = []
        names, questions, saved = dict[str, int](), dict[str, int](), dict[tuple[str | None, str, int], int]()
        for number, member in enumerate(self.members):
            try:
                request = self._analysis(number, member)
            except InputError as error:
                problems += error.errors
                continue
            question = request.model_dump_json(exclude={"name"})
            problems += _duplicate(
                number, f"two members are called {member.name!r}", "/name", names.setdefault(member.name, number)
            )
            first = self.members[questions.setdefault(question, number)].name
            same = f"members {first!r} and {member.name!r} are the same analysis: change seed, tuned or finetune of one"
            problems += _duplicate(number, same, "", questions[question])
            if member.snapshot is not None:
                place = (member.task, member.snapshot.run, member.snapshot.step)
                twice = f"two members are snapshots of run {place[1]!r} at step {place[2]}"
                problems += _duplicate(number, twice, "/snapshot", saved.setdefault(place, number))
            found.append(MemberAnalysis(member, request))
        if problems:
            raise InputError("; ".join(problem.detail for problem in problems), problems)
        return found

    def _policy_problems(self) -> Iterator[FieldProblem]:
        if self.policy is not None and self.policy.needs_baseline:
            yield FieldProblem(
                pointer="/policy", detail="a study has no baseline: remove the rules with of_baseline from policy"
            )

    def _analysis(self, number: int, member: StudyMember) -> AnalysisRequest:
        body = {"name": member.name, "tags": self.tags, "base": self.base, "analysis": self.analysis}
        finetune = self._finetune(member)
        dataset = member.dataset or self.dataset
        if dataset is None:
            raise InputError.at(f"/members/{number}", f"member {member.name!r} has no data set, nor has the study")
        if finetune is None and member.tuned is None:
            raise InputError.at(
                f"/members/{number}",
                f"member {member.name!r} has neither tuned nor finetune, nor has the study finetune",
            )
        seed = self.seed if member.seed is None else member.seed
        whole = {**body, "tuned": member.tuned, "finetune": finetune, "dataset": dataset, "seed": seed}
        try:
            return AnalysisRequest.model_validate(whole)
        except ValidationError as error:
            problems = [
                FieldProblem(
                    pointer=self.pointer(number, "".join(f"/{part}" for part in one["loc"])),
                    detail=f"member {member.name!r}: {explain(one, AnalysisRequest)}",
                )
                for one in error.errors()
            ]
            raise InputError("; ".join(problem.detail for problem in problems), problems) from error

    def _finetune(self, member: StudyMember) -> FineTune | None:
        return member.finetune or (self.finetune if member.tuned is None else None)

    @property
    def full_finetunes(self) -> list[bool]:
        """Of each member, whether the service tunes all its weights."""
        made = [self._finetune(member) for member in self.members]
        return [one is not None and one.method == "full" for one in made]

    def pointer(self, number: int, pointer: str) -> str:
        """Where in the study the place of a member's analysis was given."""
        member, field = self.members[number], pointer.split("/")[1] if pointer else ""
        if field in OWN_FIELDS and getattr(member, field) is None:
            return pointer
        shared = field and field not in OWN_FIELDS
        return pointer if shared else f"/members/{number}{pointer}"


def _duplicate(number: int, detail: str, place: str, first: int) -> Iterator[FieldProblem]:
    if first != number:
        yield FieldProblem(pointer=f"/members/{number}{place}", detail=detail)


class StudyMemberState(BaseModel):
    """A member, or a trial of adapters, and how far its analysis has come."""

    name: str
    task: str
    analysis_id: str
    status: Status
    fraction: float = Field(ge=0, le=1, description="completed share of the stages of its analysis")
    error: Problem | None = Field(default=None, description="why its analysis failed")
    report: ReportState = "none"
    verdict: Decision | None = Field(default=None, description="of the starter policy; null: no report yet")


class StudyLinks(BaseModel):
    """Paths of the resources of a study."""

    self: str
    events: str
    report: str
    cancel: str


class Study(BaseModel):
    """A study and how far it has come."""

    model_config = ConfigDict(extra="ignore")

    id: str = Field(description="hash of the request and of the analyses: identical requests have the same id")
    object: Literal["study"] = "study"
    name: str
    tags: dict[str, str]
    status: Status = Field(
        description="`running` from when the first analysis runs until the report is written; a member that fails "
        "leaves a hole in the report, the study fails only if no member succeeds"
    )
    created_at: datetime
    finished_at: datetime | None = None
    request: StudyRequest
    members: list[StudyMemberState]
    trials: list[StudyMemberState] = Field(
        default=[], description="trials of adapters, once all members have ended; see `request.lora_trial`"
    )
    fraction: float = Field(ge=0, le=1, description="mean of the members' and of the trials', those to come as 0")
    error: Problem | None = Field(default=None, description="why the study failed")
    submitted_by: str = Field(default="", description="name or id of the API key; empty if no key is required")
    links: StudyLinks

    @property
    def awaited(self) -> list[StudyMemberState]:
        """Members, and trials once there are any: all that the report waits for."""
        return [*self.members, *self.trials]


class StudyPage(BaseModel):
    """A page of studies, newest first."""

    items: list[Study]
    next_cursor: str | None = Field(description="pass as `cursor` to get the next page; null on the last page")
