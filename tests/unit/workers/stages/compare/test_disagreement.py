from __future__ import annotations

from dataclasses import replace

from layerdrift.contract.names import ViewName
from workers.results.measured import Measured
from workers.results.similarity import Similarity
from workers.stages.compare.disagreement import similarity_warnings


def layer(**values: float) -> dict[ViewName, Similarity]:
    """The same numbers in every view, with intervals of +- 0.01."""

    def measured(value: float) -> Measured:
        return Measured(value=value, low=value - 0.01, high=value + 0.01)

    same = {
        "cosine": 1.0,
        "cosine_centred": 1.0,
        "relative_l2": 0.0,
        "relative_l2_centred": 0.0,
        "cka": 1.0,
        "cka_standardized": values.get("cka", 1.0),
        "procrustes": 0.0,
        "rsa": 1.0,
        "knn_jaccard": 1.0,
    }
    similarity = Similarity(**{name: measured(value) for name, value in (same | values).items()})
    return {"token": similarity, "cls": similarity, "mean": similarity}


def without_intervals(given: dict[ViewName, Similarity]) -> dict[ViewName, Similarity]:
    """The same without the lower ends of CKA and Procrustes."""
    return {
        view: replace(one, cka=replace(one.cka, low=None), procrustes=replace(one.procrustes, low=None))
        for view, one in given.items()
    }


def test_measures_that_order_the_layers_alike_raise_no_warning() -> None:
    layers = [layer(), layer(cka=0.8, cosine_centred=0.7, relative_l2=0.5), layer(cka=0.4, relative_l2=0.9)]
    assert similarity_warnings([layers[0], layers[2]]) == []


def test_a_few_features_that_outweigh_the_rest_are_warned_of_by_layer() -> None:
    layers = [layer(), layer(cka=0.9, cka_standardized=0.7), layer(cka=0.9, cka_standardized=0.85)]
    (warning,) = similarity_warnings(layers)
    assert warning.code == "outlier_features"
    assert "at layer 1 (0.90 vs 0.70) CKA" in warning.message


def test_a_contradiction_beyond_the_intervals_names_measures_and_layers() -> None:
    layers = [layer(cka=0.9, relative_l2=0.8), layer(cka=0.5, relative_l2=0.2)]
    (warning,) = similarity_warnings(layers)
    assert warning.code == "measures_disagree"
    assert "cka and relative_l2 on layers 0 and 1 (token view)" in warning.message


def test_small_contradictions_and_unknown_intervals_are_no_warning() -> None:
    small = [layer(cka=0.9, relative_l2=0.24), layer(cka=0.85, relative_l2=0.2)]
    assert similarity_warnings(small) == []
    unknown = [without_intervals(layer(cka=cka, relative_l2=moved)) for cka, moved in ((0.9, 0.8), (0.5, 0.2))]
    assert similarity_warnings(unknown) == []
