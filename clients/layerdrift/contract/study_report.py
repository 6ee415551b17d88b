"""The report of a study, schema version 1: what only many fine-tunes of one base can say.

Every member's own report stays as it is; this holds what follows from all of them. Definitions: `docs/studies.md`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from pydantic import Field

from layerdrift.contract.analysis import Status
from layerdrift.contract.names import ZoneName
from layerdrift.contract.policy import Decision
from layerdrift.contract.report import Measured, ReportModel, Zone
from layerdrift.contract.study import StudyRequest, TrialKind

STUDY_SCHEMA_VERSION: Final = 1

MetricName = Literal["accuracy", "choices_accuracy", "preferences_accuracy", "answers_perplexity", "perplexity"]
Generality = Literal["all", "some", "none"]

STUDY_WARNING_CODES: Final = (
    "drift_on_other_texts",
    "few_repeats",
    "members_missing",
    "metrics_on_other_texts",
    "settings_differ",
    "similarity_not_computed",
)
"""All that there are, for whoever asks for one by its code; docs/studies.md says what to do about each."""


class StudyWarning(ReportModel):
    """A caveat to consider before trusting a number."""

    code: str = Field(examples=list(STUDY_WARNING_CODES))
    message: str


class StudyMetric(ReportModel):
    """How well a member does its task."""

    name: MetricName = Field(description="the first of these that the data set and the model have; see docs/studies.md")
    value: Measured = Field(
        description="on the analysed texts, with its 95 % interval: accuracies 0 to 1, perplexities 1 or more"
    )
    change: Measured | None = Field(
        default=None,
        description="against the base: difference of accuracies, ratio of perplexities; null: it has no such head",
    )

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is a better one."""
        return not self.name.endswith("perplexity")


class MemberLayer(ReportModel):
    """A layer of one member."""

    index: int = Field(ge=0)
    zone: ZoneName
    drift: Measured = Field(description="1 - CKA of the token view, with its 95 % interval")
    drifted: bool = Field(description="whether the drift exceeds rounding")
    general: bool | None = Field(
        description="true: the drift and its interval are at most 0.1, the ceiling of the zone `general`; false: they "
        "are above it; null: the interval has 0.1 inside"
    )


class StudyReportMember(ReportModel):
    """What a member's own report says."""

    name: str
    task: str
    analysis_id: str
    status: Status
    error: str | None = Field(default=None, description="why it has no report; null: it has one")
    repeat_of: str | None = Field(default=None, description="name of its group of repeats; null: none")
    method: Literal["full", "lora", "head"] | None = Field(default=None, description="null: a tuned checkpoint")
    seed: int | None = Field(default=None, description="of the fine-tune; null: a tuned checkpoint")
    layers: list[MemberLayer] | None = Field(default=None, description="null: no report")
    mean_drift: float | None = Field(default=None, description="mean drift of layers 1 to L; null: no report")
    zones: list[Zone] | None = Field(default=None, description="null: no report")
    metric: StudyMetric | None = Field(default=None, description="null: no report, or no head to evaluate")
    decision: Decision | None = Field(default=None, description="of the policy; null: it could not be evaluated")
    freeze_first: int | None = Field(default=None, description="its own advice; null: no report, or no advice")

    @property
    def measured(self) -> list[MemberLayer]:
        """Its layers; none without a report."""
        return self.layers or []


class StudyLayer(ReportModel):
    """A layer over all members."""

    index: int = Field(ge=0)
    name: str
    general: Generality = Field(
        description="for how many tasks the layer is general. It is general for a task if it is in every "
        "member of the task that has a report (`members[].layers[].general`); for a task without a report it is not "
        "known to be"
    )
    general_for: list[str] = Field(description="tasks")
    changed_for: list[str] = Field(description="tasks: general is false in every member")
    mixed_for: list[str] = Field(description="tasks: members differ, or an interval has 0.1 inside")
    seed_sd: Measured = Field(
        description="standard deviation of the drift over repeats, pooled over their groups; null: no two repeats, or "
        "their drift is the same"
    )
    reseeding: float | None = Field(
        description="repeatability limit: in 95 % of cases two single fine-tunes that differ by their seed alone "
        "differ by less in drift; null: as `seed_sd`"
    )
    task_sd: Measured = Field(
        description="standard deviation of the drift over tasks, with their texts, beyond that over seeds, within "
        "recipes; null: no recipe has two repeats in each of two tasks. Without an interval of its own"
    )
    task_share: Measured = Field(
        description="intraclass correlation, the share of the variance of the drift that is the tasks': task_sd^2 / "
        "(task_sd^2 + seed_sd^2), 0 to 1"
    )
    task_p: float | None = Field(
        ge=0,
        le=1,
        description="p-value of no difference between tasks (F test), not adjusted for the number of layers; null: as "
        "`task_sd`",
    )


class RepeatGroup(ReportModel):
    """Members that differ by their seed alone."""

    name: str
    task: str
    recipe: str | None = Field(description="`repeat_of` of its members; null: the service found the group")
    members: list[str]


class RankedMember(ReportModel):
    """A member's place among those of its task."""

    name: str
    rank: int = Field(ge=1, description="by the policy's decision, then by the metric; equal members share a rank")
    decision: Decision | None = Field(description="of the policy; null: it could not be evaluated")
    metric: float | None = Field(description="value of the task's metric; null: the members have none in common")
    mean_drift: float = Field(description="mean drift of layers 1 to L")
    differs_from_first: bool | None = Field(
        default=None,
        description="whether paired tests separate it from every member of rank 1 that it was tested against "
        "(adjusted p of 0.05 or less); null: it is of rank 1, or there is no such test",
    )
    on_front: bool = Field(
        description="on the Pareto front: no other member of the task that the policy does not fail is at least as "
        "good by the metric and has at most as much drift, and is better by one of the two. False for members "
        "that the policy fails, and where the task has no common metric"
    )


class TaskRanking(ReportModel):
    """The members of a task in order."""

    task: str
    metric: MetricName | None = Field(description="null: the members have none in common")
    members: list[RankedMember]
    best: str | None = Field(description="the one member of rank 1; null: there are several, or the policy fails it")


class PairedTest(ReportModel):
    """Two members of a task on the texts that both were evaluated on."""

    task: str
    one: str
    other: str
    metric: MetricName
    texts: int = Field(description="that both were evaluated on; members with other seeds or data share only some")
    difference: Measured = Field(
        description="accuracy of `other` minus that of `one`, -1 to 1; of perplexities `other` over `one`, > 0"
    )
    p: float = Field(ge=0, le=1, description="p-value that the two are equally good")
    p_adjusted: float = Field(ge=0, le=1, description="the same, adjusted for all tests of the task by Holm's method")


class FreezingMember(ReportModel):
    """What a common depth means for a member."""

    name: str
    own: int = Field(ge=0, description="blocks that its own advice freezes")
    cost: Measured | None = Field(
        description="cost of the base's layers up to the common depth, as `prefix_cost` of its report: drop in "
        "accuracy (0 to 1), relative increase of perplexity, or the graft's measure; null: no grafts"
    )
    own_cost: Measured | None = Field(description="the same at its own depth")
    forgone: int = Field(ge=0, description="blocks that it could freeze beyond the common depth")


class StudyFreezing(ReportModel):
    """How many blocks may be frozen for every task."""

    depth: int = Field(ge=0, description="blocks: the least of the members' own advice")
    members: list[FreezingMember]
    without_advice: list[str] = Field(description="members whose report advises nothing")


class LoraLayer(ReportModel):
    """How much of the weights' change a layer has, and what rank would hold it."""

    layer: int = Field(description="whose states the block makes")
    change: float = Field(ge=0, description="mean over members of the layer's largest relative Frobenius norm")
    rank: int | None = Field(
        description="8 or 16, if rank-8 or rank-16 updates hold 90 % of every member's change; null: more"
    )
    top8: float = Field(ge=0, le=1, description="least share, over members and parts, of the change that rank 8 holds")
    top16: float = Field(ge=0, le=1, description="the same of rank 16")


class LoraTrialResult(ReportModel):
    """A fine-tune by LoRA on some layers: the first full fine-tune of a task with ten times its learning rate."""

    task: str
    kind: TrialKind = Field(description="`chosen`: the layers that changed most; `random`: as many others")
    layers: list[int] = Field(description="blocks with adapters, counted from 1")
    rank: int
    analysis_id: str
    trainable_parameters: int | None = Field(default=None, description="null: no report")
    metric: StudyMetric | None = Field(default=None, description="null: no report, or no metric")
    against_all: Measured | None = Field(
        default=None,
        description="its accuracy minus that of LoRA on all layers on the same texts, or the ratio of perplexities; "
        "null: it is that, or they cannot be compared",
    )
    p: float | None = Field(
        default=None, ge=0, le=1, description="p-value that the two are equally good, not adjusted; null: likewise"
    )
    error: str | None = Field(default=None, description="why it has no report; null: it has one")


class StudyLora(ReportModel):
    """Which layers changed, from the weights of members that were tuned in full and of whole checkpoints; adapters and
    `method: lora` are left out, since their rank is given."""

    members: list[str]
    layers: list[LoraLayer] = Field(description="by layer, those without attention or MLP weights left out")
    trials: list[LoraTrialResult] = Field(default=[], description="empty: not requested, or no full fine-tune")


class StudyCurve(ReportModel):
    """Drift over training of one run."""

    run: str
    task: str
    steps: list[int] = Field(description="optimiser steps of the snapshots")
    drift: list[list[float]] = Field(description="[snapshot][layer]: 1 - CKA of the token view")


Matrix = list[list[float | None]]
"""A number of every two members. null: one of them did not change; of bounds also the diagonal, and too few texts."""


class SimilarityLayer(ReportModel):
    """How alike the tuned models are at a layer, as matrices in the order of `members`."""

    index: int = Field(ge=0)
    cka: Matrix = Field(description="debiased linear CKA of the tuned models' tokens, at most 1")
    cka_low: Matrix = Field(description="lower bounds of the 95 % intervals")
    cka_high: Matrix = Field(description="upper bounds")
    change_cosine: Matrix = Field(
        description="cosine of the changes that two fine-tunes make to the tokens, means taken off, -1 to 1: 1, "
        "proportional changes; 0, orthogonal ones"
    )
    change_cosine_low: Matrix = Field(description="lower bounds of the 95 % intervals")
    change_cosine_high: Matrix = Field(description="upper bounds")
    overlap: Matrix = Field(
        description="overlap of the subspaces of the `rank` strongest directions of the changes, 0 to 1: mean squared "
        "cosine of their principal angles. Diagonal: split-half stability, of one member's subspaces from "
        "disjoint halves of the texts; no limit for the other cells"
    )
    angle: Matrix = Field(description="smallest principal angle of these subspaces, 0 to 90 degrees")


class TreeJoin(ReportModel):
    """Two branches of the dendrogram that become one. 0 to M - 1: members; M + i: join i, as in SciPy's linkage."""

    left: int
    right: int
    distance: float = Field(
        ge=0, le=2, description="1 - mean cosine of changes, mean over the members of both branches"
    )


class StudySimilarity(ReportModel):
    """The tuned models beside one another, on texts of all data sets of the study."""

    members: list[str] = Field(description="those with a report, in the order of rows and columns")
    texts: int = Field(description="texts that the tokens are of, from all data sets")
    tokens: int = Field(
        description="tokens compared, as many of each data set as it has: those that count in every member's analysis"
    )
    rank: int = Field(description="directions of a subspace")
    chance_overlap: float = Field(
        description="expected overlap of random subspaces: rank / width; states that concentrate in few directions "
        "overlap more"
    )
    layers: list[SimilarityLayer]
    tree: list[TreeJoin] = Field(
        description="dendrogram of the members by how alike their changes are (average linkage of 1 - cosine, mean "
        "over the layers above the embeddings that both changed); empty: two members changed no layer in common"
    )


class StudyEngine(ReportModel):
    """What made the report."""

    version: str
    member_versions: list[str] = Field(description="engines of the members' reports")


class StudyReport(ReportModel):
    """What the members of a study have in common, and where they differ."""

    schema_version: Literal[1] = STUDY_SCHEMA_VERSION
    study_id: str
    name: str
    created_at: datetime
    engine: StudyEngine
    request: StudyRequest
    base: str = Field(description="URI of the base")
    tasks: list[str] = Field(description="in the order of the members")
    members: list[StudyReportMember] = Field(description="in the order of the request, those without a report too")
    best: StudyReportMember | None = Field(
        default=None, description="the best member of the only task; null: several tasks, or none is best"
    )
    layers: list[StudyLayer]
    repeats: list[RepeatGroup]
    rankings: list[TaskRanking] = Field(description="by task")
    paired_tests: list[PairedTest] = Field(
        default=[], description="every two members of a task with one metric that share 20 texts or more"
    )
    similarity: StudySimilarity | None = Field(
        default=None, description="null: not requested, fewer than two members, or not possible; see `warnings`"
    )
    freezing: StudyFreezing | None = Field(description="null: no member has advice")
    lora: StudyLora | None = Field(description="null: no member was tuned in full, or no weights were compared")
    training: list[StudyCurve] = Field(description="runs with snapshots")
    warnings: list[StudyWarning]
