"""Two reports side by side: what a review asks when a new fine-tune is to replace one that was let through."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from layerdrift.contract.errors import InputError
from layerdrift.contract.names import ZoneName
from layerdrift.contract.report import Layer, Measured, Report


class Difference(BaseModel):
    """A number in both reports. `difference` is other - one; null if either is null or they are not comparable."""

    model_config = ConfigDict(allow_inf_nan=False)

    one: float | None
    other: float | None
    difference: float | None
    incomparable: str | None = Field(default=None, description="why the two numbers are not comparable; null: they are")

    @classmethod
    def of(cls, one: float | None, other: float | None, incomparable: str | None = None) -> Difference:
        """Both numbers and their difference."""
        known = one is not None and other is not None and incomparable is None
        return cls(
            one=one,
            other=other,
            difference=other - one if known and one is not None and other is not None else None,
            incomparable=incomparable,
        )


class LayerComparison(BaseModel):
    """One layer in both reports."""

    index: int
    name: str
    zones: tuple[ZoneName, ZoneName]
    drifted: tuple[bool, bool]
    drift: Difference = Field(description="1 - CKA of the token view")
    excess_drift: Difference
    relative_l2: Difference = Field(description="relative L2 of the token view")
    probe: Difference = Field(description="accuracy of a linear probe in the tuned model")
    graft: Difference = Field(description="the tuned model with the base model's layers up to this one")
    transfer_excess: Difference = Field(description="excess FVU of the base model's features in the tuned model")
    new_latents: Difference = Field(description="new latents above the noise floor")


class Comparison(BaseModel):
    """Two reports of models with the same number of layers."""

    one: str = Field(description="id of the first analysis")
    other: str = Field(description="id of the second analysis")
    same_base: bool = Field(description="whether both were tuned from the same weights")
    same_dataset: bool = Field(description="whether both were measured on the same rows of the same data")
    same_settings: bool = Field(
        description="whether both used the same settings; if not, that alone can change the numbers"
    )
    unlike_settings: list[str] = Field(
        default=[], description="settings that differ, as paths of the request or the report"
    )
    accuracy: Difference = Field(description="accuracy of the tuned models")
    freeze_first: Difference
    layers: list[LayerComparison]


def compare(one: Report, other: Report) -> Comparison:
    """The reports' difference, layer by layer; InputError for other depths or a preliminary report."""
    one.require_complete()
    other.require_complete()
    if len(one.layers) != len(other.layers):
        raise InputError(
            f"{one.analysis_id} has {len(one.layers)} layers and {other.analysis_id} {len(other.layers)}; only models "
            "of one depth can be compared layer by layer"
        )
    return Comparison(
        one=one.analysis_id,
        other=other.analysis_id,
        same_base=one.models["base"].fingerprint == other.models["base"].fingerprint,
        same_dataset=_same_dataset(one, other),
        same_settings=not unlike_settings(one, other),
        unlike_settings=unlike_settings(one, other),
        accuracy=Difference.of(_accuracy(one), _accuracy(other), incomparable("outputs", one, other)),
        freeze_first=Difference.of(
            one.recommendation.freeze_first,
            other.recommendation.freeze_first,
            incomparable("recommendation", one, other),
        ),
        layers=[_layer(number, one, other) for number in range(len(one.layers))],
    )


_DEFAULTS = {"label_column": "label"}
"""What is read where the request names nothing."""


def unlike_settings(one: Report, other: Report) -> list[str]:
    """What the two were measured with otherwise: paths of the request, and what followed from the data."""
    found = [
        f"analysis.{name}"
        for name in type(one.request.analysis).model_fields
        if name not in ("texts", "max_length") and _setting(one, name) != _setting(other, name)
    ]
    if one.dataset.max_length != other.dataset.max_length:
        found.append("analysis.max_length")
    found += [
        f"dataset.{name}"
        for name in ("text_column", "text_pair_column", "label_column", "group_column", "max_examples", "reference")
        if (getattr(one.request.dataset, name) or _DEFAULTS.get(name))
        != (getattr(other.request.dataset, name) or _DEFAULTS.get(name))
    ]
    if one.request.seed != other.request.seed:
        found.append("seed")
    if (one.request.finetune is None) != (other.request.finetune is None):
        found.append("finetune")
    if one.engine.version != other.engine.version:
        found.append("engine.version")
    return found


def _setting(report: Report, name: str) -> object:
    value = getattr(report.request.analysis, name)
    return sorted(set(value)) if isinstance(value, list) else value


def _same_dataset(one: Report, other: Report) -> bool:
    """Whether both read the same rows of the same data."""
    alike = ("sha256", "rows", "analysed_texts")
    return all(getattr(one.dataset, name) == getattr(other.dataset, name) for name in alike)


def incomparable(quantity: str, one: Report, other: Report) -> str | None:
    """Why a quantity of two reports is not the same thing in both; None where it is.

    Args:
        quantity: the first name of its path below a layer (`graft`, `probe`, `sae`) or the report (`outputs`, ...).
    """
    if quantity in ("graft", "causal"):
        return _unlike_grafts(one, other)
    if quantity == "excess_drift":
        known = [any(null.name == "numerical" for null in report.noise_floors) for report in (one, other)]
        return None if known[0] == known[1] else "the numerical resolution of one of the two is not known"
    if quantity == "reference" and one.reference and other.reference:
        return None if one.reference.sha256 == other.reference.sha256 else "other reference texts"
    if quantity == "probe":
        classes = [(report.probes.classes, report.probes.folds) if report.probes else None for report in (one, other)]
        return None if classes[0] == classes[1] or None in classes else "probes of other classes"
    if quantity == "sae":
        same = one.request.analysis.sae == other.request.analysis.sae
        return None if same else "autoencoders of other settings"
    if quantity == "outputs" and one.outputs and other.outputs:
        same = one.outputs.kind == other.outputs.kind and sorted(one.outputs.labels) == sorted(other.outputs.labels)
        return None if same else "answers of another kind or other classes"
    if quantity == "recommendation" and "none" in (one.recommendation.basis, other.recommendation.basis):
        return "one of the two gives no advice"
    return None


def _unlike_grafts(one: Report, other: Report) -> str | None:
    grafts = one.causal.graft, other.causal.graft
    if grafts[0] is None or grafts[1] is None:
        return None
    if grafts[0].measure != grafts[1].measure:
        return f"measured as {grafts[0].measure} and as {grafts[1].measure}"
    classes = [sorted(report.outputs.labels) if report.outputs else [] for report in (one, other)]
    return None if classes[0] == classes[1] else "answers of other classes"


def _layer(number: int, one_report: Report, other_report: Report) -> LayerComparison:
    one, other = one_report.layers[number], other_report.layers[number]

    def both(read: str) -> Difference:
        reason = incomparable(read.split(".")[0], one_report, other_report)
        return Difference.of(_read(one, read), _read(other, read), reason)

    return LayerComparison(
        index=one.index,
        name=one.name,
        zones=(one.zone, other.zone),
        drifted=(one.drifted, other.drifted),
        drift=both("drift"),
        excess_drift=both("excess_drift"),
        relative_l2=Difference.of(
            one.similarity["token"].relative_l2.value, other.similarity["token"].relative_l2.value
        ),
        probe=both("probe.tuned"),
        graft=both("graft.prefix"),
        transfer_excess=both("sae.transfer_excess"),
        new_latents=both("sae.warm_start.new_excess"),
    )


def _read(layer: Layer, path: str) -> float | None:
    """A number at a dotted path below a layer; None where anything on the way is."""
    found: object = layer
    for name in path.split("."):
        found = getattr(found, name, None)
    value = found.value if isinstance(found, Measured) else found
    return value if isinstance(value, int | float) else None


def _accuracy(report: Report) -> float | None:
    tuned = report.outputs.tuned if report.outputs else None
    return tuned.accuracy.value if tuned and tuned.accuracy else None
