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
from layerdrift.contract.report import Measured, ReportModel, ReportWarning, Zone
from layerdrift.contract.study import StudyRequest

STUDY_SCHEMA_VERSION: Final = 1

MetricName = Literal["accuracy", "choices_accuracy", "preferences_accuracy", "answers_perplexity", "perplexity"]
Generality = Literal["all", "some", "none"]

STUDY_WARNING_CODES: Final = (
    "drift_on_other_texts",
    "few_repeats",
    "members_missing",
    "metrics_on_other_texts",
    "one_task",
    "settings_differ",
    "similarity_not_computed",
)
"""All that there are."""


class StudyMetric(ReportModel):
    """How well a member does its task."""

    name: MetricName
    value: Measured = Field(description="on the analysed texts, with its 95 % interval")
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


class StudyReportMember(ReportModel):
    """What a member's own report says."""

    name: str
    task: str
    analysis_id: str
    status: Status
    error: str | None = Field(default=None, description="why it has no report; null: it has one")
    repeat_of: str | None = Field(default=None, description="name of its group of repeats; null: it has none")
    method: Literal["full", "lora", "head"] | None = Field(default=None, description="null: a tuned checkpoint")
    seed: int | None = Field(default=None, description="of the fine-tune; null: a tuned checkpoint")
    layers: list[MemberLayer] = Field(default=[], description="empty: no report")
    mean_drift: float | None = Field(default=None, description="mean drift of layers 1 to L; null: no report")
    zones: list[Zone] = Field(default=[], description="empty: no report")
    metric: StudyMetric | None = Field(default=None, description="null: no report, or no head to evaluate")
    decision: Decision | None = Field(default=None, description="of the policy; null: it could not be evaluated")
    freeze_first: int | None = Field(default=None, description="its own advice; null: no report, or no advice")


class StudyLayer(ReportModel):
    """A layer over all members."""

    index: int = Field(ge=0)
    name: str
    general: Generality = Field(
        description="for how many tasks the layer is general. It is general for a task if it lies in the zone "
        "`general` of every member of the task that has a report"
    )
    general_for: list[str] = Field(description="tasks")
    changed_for: list[str] = Field(description="tasks: in the zone `general` of no member")
    mixed_for: list[str] = Field(description="tasks: in the zone `general` of some members alone")
    seed_sd: Measured = Field(
        description="standard deviation of the drift over repeats, pooled over their groups; needs two repeats"
    )
    reseeding: float | None = Field(
        description="two fine-tunes whose drift differs by less may differ by their seed alone (95 %); null: unknown"
    )
    task_sd: Measured = Field(
        description="standard deviation of the drift over tasks beyond that over seeds, with the same recipe; without "
        "an interval of its own"
    )
    task_share: Measured = Field(
        description="share of the variance of the drift that is the tasks': task_sd^2 / (task_sd^2 + seed_sd^2)"
    )
    task_p: float | None = Field(
        ge=0,
        le=1,
        description="p-value of the F test that tasks do not matter; null: fewer than two tasks with repeats",
    )


class RepeatGroup(ReportModel):
    """Members that differ by their seed alone."""

    name: str
    task: str
    recipe: str | None = Field(description="what its groups of other tasks share; null: it was named by the request")
    members: list[str]


class RankedMember(ReportModel):
    """A member's place among those of its task."""

    name: str
    rank: int = Field(ge=1, description="by the policy's decision, then by the metric; equal members share a rank")
    decision: Decision | None
    metric: float | None
    mean_drift: float
    told_from_first: bool | None = Field(
        default=None,
        description="whether a paired test tells it from a member of rank 1 (adjusted p of 0.05 or less); null: it is "
        "of rank 1, or there is no such test",
    )
    on_front: bool = Field(
        description="on the Pareto front: no other member of the task that the policy does not fail is at least as "
        "good by the metric and has at most as much drift, and is better by one of the two"
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
        description="cost of the base's layers up to the common depth, as `prefix_cost` of its report; null: no grafts"
    )
    own_cost: Measured | None = Field(description="the same at its own depth")
    forgone: int = Field(ge=0, description="blocks that it could freeze beyond the common depth")


class StudyFreezing(ReportModel):
    """How many blocks may be frozen for every task."""

    depth: int = Field(ge=0, description="the least of the members' own depths")
    members: list[FreezingMember]
    without_advice: list[str] = Field(description="members whose report advises nothing")


class LoraLayer(ReportModel):
    """How much of the weights' change a layer has, and what rank would hold it."""

    layer: int
    change: float = Field(ge=0, description="mean over members of the layer's largest relative Frobenius norm")
    rank: int | None = Field(
        description="8 or 16, if rank-8 or rank-16 updates hold 90 % of every member's change; null: more"
    )
    top8: float = Field(ge=0, le=1, description="least share, over members and parts, of the change that rank 8 holds")
    top16: float = Field(ge=0, le=1, description="the same of rank 16")


class StudyLora(ReportModel):
    """Which layers changed, from the weights of members that were tuned in full. Not tried by training."""

    members: list[str]
    layers: list[LoraLayer] = Field(description="by layer, those without attention or MLP weights left out")


class StudyCurve(ReportModel):
    """Drift over training of one run."""

    run: str
    task: str
    steps: list[int]
    drift: list[list[float]] = Field(description="[snapshot][layer]: 1 - CKA of the token view")


Matrix = list[list[float | None]]
"""A number of every two members; null: it has no meaning there."""


class SimilarityLayer(ReportModel):
    """How alike the tuned models are at a layer, as matrices in the order of `members`."""

    index: int = Field(ge=0)
    cka: Matrix = Field(description="debiased linear CKA of the tuned models' tokens, at most 1")
    cka_low: Matrix = Field(description="lower bounds of the 95 % intervals")
    cka_high: Matrix = Field(description="upper bounds")
    change_cosine: Matrix = Field(
        description="cosine of the changes that two fine-tunes make to the tokens, means taken off, -1 to 1; null: "
        "one of them changed nothing"
    )
    change_cosine_low: Matrix = Field(description="lower bounds of the 95 % intervals")
    change_cosine_high: Matrix = Field(description="upper bounds")
    overlap: Matrix = Field(
        description="overlap of the subspaces of the `rank` strongest directions of the changes, 0 to 1: mean squared "
        "cosine of their principal angles; on the diagonal, of one member's between two halves of the texts"
    )
    angle: Matrix = Field(description="smallest principal angle of these subspaces, degrees")


class TreeJoin(ReportModel):
    """Two branches of the tree that become one. Branches: members by place, then joins, from the first on."""

    left: int
    right: int
    distance: float = Field(description="1 - mean cosine of changes, mean over the members of both branches")


class StudySimilarity(ReportModel):
    """The tuned models beside one another, on texts of all data sets of the study."""

    members: list[str] = Field(description="those with a report, in the order of rows and columns")
    texts: int
    tokens: int = Field(description="tokens compared: those that count in every member's analysis")
    rank: int = Field(description="directions of a subspace")
    chance_overlap: float = Field(description="overlap of unrelated subspaces: rank / width")
    layers: list[SimilarityLayer]
    tree: list[TreeJoin] = Field(
        description="members joined by how alike their changes are (average linkage of 1 - cosine, mean over the "
        "layers above the embeddings that both changed); empty: two members changed no layer in common"
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
    warnings: list[ReportWarning]
