"""Names and thresholds that a report uses: of views, measures, parts, zones, runs, fates and strategies."""

from __future__ import annotations

from typing import Final, Literal

RoleName = Literal["template", "system", "user", "tool", "assistant"]
"""Whose words a token of a chat is; `template`: nobody's."""

ViewName = Literal["token", "cls", "mean", "template", "system", "user", "tool", "assistant"]
"""Rows that are compared: tokens, the first or last of each text, means of texts, and the tokens of a role."""

MeasureName = Literal[
    "cosine",
    "cosine_centred",
    "relative_l2",
    "relative_l2_centred",
    "cka",
    "cka_standardized",
    "procrustes",
    "rsa",
    "knn_jaccard",
]
PartName = Literal["embeddings", "attention", "mlp", "norm"]
ZoneName = Literal["general", "transitional", "specialised", "ramp"]
SaeRunName = Literal["training", "warm_start", "crosscoder", "random_weights"]
StrategyName = Literal["recommended", "nothing", "half", "gradient_norm"]
Fate = Literal["new", "shifted", "lost"]

MUCH_MOVED: Final = 0.5
"""Relative L2 after centring beyond which a layer of little drift is not called unchanged, as in the starter policy."""

DENSITY_EDGES: Final = (3.16e-5, 1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2, 3.16e-2, 0.1, 0.316)
"""Between the bins of `SaeQuality.density`: shares of the tokens that a latent fires on, half a decade apart."""
