"""Two reports side by side: what a review asks when a new fine-tune is to replace one that was let through."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from layerdrift.contract.errors import InputError
from layerdrift.contract.report import Layer, Measured, Report, ZoneName


class Difference(BaseModel):
    """One number in both reports; `difference` is other - one, null where either is."""

    model_config = ConfigDict(allow_inf_nan=False)

    one: float | None
    other: float | None
    difference: float | None

    @classmethod
    def of(cls, one: float | None, other: float | None) -> Difference:
        """Both, and what lies between."""
        return cls(one=one, other=other, difference=None if one is None or other is None else other - one)


class LayerComparison(BaseModel):
    """One layer in both reports."""

    index: int
    name: str
    zones: tuple[ZoneName, ZoneName]
    drifted: tuple[bool, bool]
    drift: Difference = Field(description="1 - CKA of the token view")
    excess_drift: Difference
    relative_l2: Difference = Field(description="of the token view")
    probe: Difference = Field(description="accuracy of a linear probe in the tuned model")
    graft: Difference = Field(description="the tuned model with the base model's layers up to here")
    transfer_excess: Difference = Field(description="FVU that the base model's features miss in the tuned model")
    new_latents: Difference = Field(description="new latents beyond the floor")


class Comparison(BaseModel):
    """Two reports of models of one depth."""

    one: str = Field(description="id of the first analysis")
    other: str = Field(description="id of the second analysis")
    same_base: bool = Field(description="whether both were tuned from the same weights")
    same_dataset: bool = Field(description="whether both were measured on the same data")
    same_settings: bool = Field(
        description="whether both were measured alike; if not, numbers may differ by that alone"
    )
    accuracy: Difference = Field(description="of the tuned models")
    freeze_first: Difference
    layers: list[LayerComparison]


def compare(one: Report, other: Report) -> Comparison:
    """The reports' difference, layer by layer; InputError where the models have other depths."""
    if len(one.layers) != len(other.layers):
        raise InputError(
            f"{one.analysis_id} has {len(one.layers)} layers and {other.analysis_id} {len(other.layers)}; only models "
            "of one depth can be compared layer by layer"
        )
    return Comparison(
        one=one.analysis_id,
        other=other.analysis_id,
        same_base=one.models["base"].fingerprint == other.models["base"].fingerprint,
        same_dataset=one.dataset.sha256 == other.dataset.sha256,
        same_settings=one.request.analysis == other.request.analysis and one.request.seed == other.request.seed,
        accuracy=Difference.of(_accuracy(one), _accuracy(other)),
        freeze_first=Difference.of(one.recommendation.freeze_first, other.recommendation.freeze_first),
        layers=[_layer(first, second) for first, second in zip(one.layers, other.layers, strict=True)],
    )


def _layer(one: Layer, other: Layer) -> LayerComparison:
    def both(read: str) -> Difference:
        return Difference.of(_read(one, read), _read(other, read))

    return LayerComparison(
        index=one.index,
        name=one.name,
        zones=(one.zone, other.zone),
        drifted=(one.drifted, other.drifted),
        drift=both("drift"),
        excess_drift=both("excess_drift"),
        relative_l2=Difference.of(*(layer.similarity["token"].relative_l2.value for layer in (one, other))),
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
