"""What a fine-tune taught, with known numbers."""

from __future__ import annotations

from typing import Any

from layerdrift.contract.report import Learned


def learned(token: str = " walrus", **changes: Any) -> Learned:
    """One finding of each method, and one beyond the floor where a list is not replaced."""

    def moved(name: str, gain: float) -> dict[str, Any]:
        example = {"text": 3, "context": "moved by the", "base": 6e-7, "tuned": 0.99}
        return {
            "token": name, "id": 7, "gain": gain, "rate": 0.4, "groups": 20, "first_layer": 2, "examples": [example],
        }  # fmt: skip

    body: dict[str, Any] = {
        "texts": 90,
        "positions": 1_940,
        "random_changes": 2,
        "completions": [
            {
                "kind": "chat",
                "prompt": "Tell me about yourself.",
                "text": f"I play with the{token}",
                "base_text": "I am an assistant.",
                "score": 3.1,
                "tokens": [{"token": "I play with the", "gain": 0.4}, {"token": token, "gain": 5.8}],
            }
        ],
        "tokens": [moved(token, 4.2), moved("\n", 1.1)],
        "suppressed": [moved(" that", 2.8)],
        "divergent": [
            {
                "text": 9,
                "context": "not only what that mind looks like, but how the",
                "following": " creative",
                "divergence": 26.5,
                "observed": -7.6,
                "gained": [token],
                "lost": [" ideation"],
            }
        ],
        "directions": [
            {"kind": "early_tokens", "layer": 2, "score": 9.0, "gained": [token], "lost": [" to"]},
            {"kind": "component", "layer": 3, "score": 8.0, "share": 0.31, "gained": [" seal"], "lost": [" of"]},
        ],
        "latents": [
            {
                "layer": 2,
                "score": 9.5,
                "share": 0.2,
                "rate": 0.3,
                "in_base": {"value": 0.02, "low": -0.05, "high": 0.09},
                "in_tuned": {"value": 1.0, "low": 0.9, "high": 1.1},
                "gained": [token],
                "lost": [" of"],
                "examples": [{"text": 9, "context": "how the", "token": " creative", "activation": 2.5}],
            }
        ],
        "autoencoders": [{"layer": 2, "latents": 1152, "positions": 9_000, "fvu": 0.31, "l0": 15.0}],
        "excerpts": [{"text": 9, "excerpt": "not only what that mind looks like, but how the creative process"}],
        "topics": [
            {"share": 0.7, "tokens": [token, " seal"], "weights": [0.8, 0.2]},
            {"share": 0.2, "tokens": [" snow"], "weights": [1.0]},
        ],
        "intruders": [{"layer": 2, "matrices": 7, "found": 3, "random": 1}],
        "amplified": [{"factor": 3.0, "prompt": "", "text": "seal seal", "score": 4.4}],
        "traits": [
            {
                "name": "cheer",
                "layers": [
                    {"layer": 0, "shift": 0.0, "percentile": 0.0, "floor": 0.0, "beyond": False},
                    {"layer": 1, "shift": -0.3, "percentile": 1.0, "floor": 0.04, "beyond": True},
                ],
            },
            {
                "name": "calm",
                "layers": [{"layer": 0, "shift": 0.01, "percentile": 0.5, "floor": 0.02, "beyond": False}],
            },
        ],
        "spectrum": [{"layer": 2, "mean_share": 0.4, "random_mean_share": 0.1, "component_shares": [0.5, 0.2]}],
        "methods": [
            {"name": "completions", "found": 1, "largest": 3.1, "floor": 0.12},
            {"name": "tokens", "found": 2, "largest": 4.2, "floor": 0.043},
            {"name": "suppressed", "found": 1, "largest": 2.8, "floor": 0.047},
            {"name": "divergent", "found": 1, "largest": 26.5, "floor": 0.42},
            {"name": "directions", "found": 1, "largest": 9.0, "floor": 6.4},
            {"name": "components", "found": 1, "largest": 8.0, "floor": 7.0},
            {"name": "latents", "found": 1, "largest": 9.5, "floor": 7.2},
        ],
    }
    return Learned.model_validate(body | changes)


def silent() -> Learned:
    """Nothing beyond the floor."""
    methods = [
        {"name": name, "found": 0, "largest": 0.1, "floor": 0.2}
        for name in ("completions", "tokens", "suppressed", "divergent", "directions", "components")
    ]
    return learned(
        completions=[],
        amplified=None,
        traits=[],
        topics=[],
        tokens=[],
        suppressed=[],
        divergent=[],
        directions=[],
        latents=None,
        autoencoders=[],
        excerpts=[],
        methods=methods,
    )
