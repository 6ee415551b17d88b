"""A whole report with known numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from layerdrift.contract.report import Match, Measured, PendingStage, Report, WarmStart


def report(
    name: str = "demo",
    layers: int = 4,
    with_sae: bool = True,
    constant_views: tuple[str, ...] = ("cls",),
    intervals: bool = True,
    **changes: Any,
) -> Report:
    """A report of made-up numbers, whole in every part."""

    def measured(value: float | None) -> dict[str, Any]:
        ends = {} if value is None or not intervals else {"low": value - 0.01, "high": value + 0.01}
        return {"value": value, **ends, "undefined": "the rows have no variance here" if value is None else None}

    def similarity(layer: int, view: str) -> dict[str, Any]:
        drift = layer / (layers - 1)
        constant = layer == 0 and view in constant_views
        return {
            "cosine": measured(1 - drift / 2),
            "cosine_centred": measured(None if constant else 1 - drift),
            "relative_l2": measured(drift * 1.3),
            "cka": measured(None if constant else 1 - drift),
            "cka_standardized": measured(None if constant else 1 - drift),
            "procrustes": measured(None if constant else drift),
            "rsa": measured(1 - drift) if view == "mean" else None,
            "knn_jaccard": measured(1 - drift) if view == "mean" else None,
        }

    quality = {"fvu": 0.2, "l0": 32.0, "dead_fraction": 0.01}
    sae = {"base": quality, "tuned": quality, "transfer_fvu": 0.3, "transfer_excess": 0.1}
    body: dict[str, Any] = {
        "analysis_id": "an_" + "a" * 26,
        "name": name,
        "created_at": datetime(2026, 1, 2, tzinfo=UTC),
        "engine": {"version": "0", "python": "3.11", "packages": {"torch": "2"}, "device": "cpu", "threads": 2},
        "request": {
            "base": {"uri": "file:///a"},
            "tuned": {"uri": "file:///b"},
            "dataset": {"uri": "s3://d/x.csv"},
        },
        "models": {
            role: {
                "uri": f"file:///{role}",
                "fingerprint": "f" * 64,
                "architecture": "BertModel",
                "parameters": 1000,
                "blocks": layers - 1,
                "hidden_size": 8,
            }
            for role in ("base", "tuned")
        },
        "dataset": {
            "source": "s3://d/x.csv",
            "sha256": "d" * 64,
            "rows": 100,
            "analysed_texts": 50,
            "analysed_tokens": 500,
            "train_texts": 0,
            "sae_texts": 50,
            "sae_distinct_tokens": 500,
        },
        "layers": [
            {
                "index": index,
                "name": "embeddings" if index == 0 else f"block {index}",
                "zone": "general" if index < 2 else "specialised",
                "drift": index / (layers - 1),
                "noise_floors": {"numerical": 0.001, "reseed": 0.02},
                "excess_drift": max(0.0, index / (layers - 1) - 0.02),
                "drifted": index > 0,
                "task_consistency": measured(0.8),
                "probe": {"base": measured(0.7), "tuned": measured(0.9), "base_control": 0.5, "tuned_control": 0.5},
                "graft": {
                    "prefix": measured(0.9 - index / 10),
                    "prefix_cost": measured(index / 10),
                    "block": measured(0.85),
                },
                "similarity": {view: similarity(index, view) for view in ("token", "cls", "mean")},
                "weights": {
                    "mlp": {"relative_frobenius": 0.1, "effective_rank": 5.5, "top8_share": 0.9, "top16_share": 0.95},
                    "norm": {
                        "relative_frobenius": 0.0,
                        "effective_rank": None,
                        "top8_share": None,
                        "top16_share": None,
                    },
                },
                "sae": sae if with_sae else None,
            }
            for index in range(layers)
        ],
        "cross_layer_cka": {
            "values": [[None if i == j == 0 else 0.5 for j in range(layers)] for i in range(layers)],
            "rows": 400,
        },
        "zones": [
            {"name": "general", "first": 0, "last": 1, "level": 0.1},
            {"name": "specialised", "first": 2, "last": layers - 1, "level": 0.8},
        ],
        "noise_floors": [
            {"name": "numerical", "description": "the base against itself", "tokens": 500},
            {"name": "reseed", "description": "another seed", "tokens": 500},
        ],
        "outputs": {
            "kind": "classifier",
            "examples": 50,
            "labels": ["a", "b"],
            "tuned": {"accuracy": measured(0.9)},
            "majority_accuracy": 0.5,
        },
        "finetune": {
            "method": "full",
            "precision": "float32",
            "trainable_parameters": 1000,
            "steps": 20,
            "kept_step": 10,
            "final_loss": 0.3,
            "losses": [{"step": 10, "loss": 0.6}, {"step": 20, "loss": 0.3}],
            "held_out_texts": 20,
            "held_out": [{"step": 10, "loss": 0.5, "accuracy": 0.8}, {"step": 20, "loss": 0.6, "accuracy": 0.7}],
        },
        "trajectory": {
            "steps": [5, 10],
            "drift": [[0.1 * index for index in range(layers)]] * 2,
            "relative_l2": [[0.1 * index for index in range(layers)]] * 2,
            "tokens": 500,
        },
        "probes": {"examples": 50, "classes": 2, "folds": 5, "majority_accuracy": 0.5},
        "causal": {
            "graft": {"measure": "accuracy", "ungrafted": 0.9, "examples": 50},
            "sweep": {
                "epsilon_points": 0.5,
                "seeds": [0, 1],
                "examples": 50,
                "points": [
                    {
                        "freeze_first": depth,
                        "accuracy": 0.9 - depth / 100,
                        "by_seed": [0.9, 0.9 - depth / 50],
                        "loss_points": float(depth),
                        "loss_bound_points": depth + 0.2,
                        "validated": depth == 0,
                        "step_seconds": 0.02,
                        "training_bytes": 2**20,
                        "cached": depth > 0,
                    }
                    for depth in (0, 2)
                ],
                "strategies": [
                    {"name": "half", "frozen_blocks": [1, 2], "accuracy": 0.88, "regret_points": 2.0},
                    {"name": "nothing", "frozen_blocks": [], "accuracy": 0.9, "regret_points": 0.0},
                ],
            },
        },
        "recommendation": {"freeze_first": 1, "basis": "predicted", "evidence": "Because of the curve."},
        "tokens": {
            "source": "request",
            "texts": [
                {
                    "text": "it's </script> <b>bold</b>",
                    "tokens": ["[CLS]", "it", "'", "\\", "</script>"],
                    "special": [True, False, False, False, False],
                    "drift": [[0.0, 0.1, 0.2, 0.3, 2.0]] * layers,
                }
            ],
        },
        "warnings": [],
        "timings": {"stages": {"extract": 1.5}, "peak_memory_bytes": 2**30},
    }
    return Report.model_validate(body | changes)


def changed(path: str, value: Any, of: Report | None = None) -> Report:
    """A sound report with something else at one place: names with dots between, numbers of list entries."""
    body = (of or sound()).model_dump()
    at: Any = body
    *names, last = path.split(".")
    for name in names:
        at = at[int(name) if name.lstrip("-").isdecimal() else name]
    at[last] = value
    return Report.model_validate(body)


def sound() -> Report:
    """A report that the starter policy passes."""
    made = report(layers=7)
    for layer in made.layers[:3]:
        token = layer.similarity["token"]
        token.cka.low = token.cka_standardized.low = 0.95
        token.relative_l2_centred = Measured(value=0.1)
    body = made.model_dump()
    right = {"value": 0.8, "low": 0.75, "high": 0.85}
    tuned = {"accuracy": right, "mcc": {"value": 0.6, "noise_floor": 0.28}}
    body["outputs"] = {
        "kind": "classifier",
        "examples": 50,
        "tuned": tuned,
        "majority_accuracy": 0.5,
        "majority_change": {"value": 0.3, "low": 0.15, "high": 0.45},
        "accuracy_change": {"value": 0.0, "low": -0.04, "high": 0.04},
    }
    body["warnings"] = []
    return Report.model_validate(body)


def sound_language() -> Report:
    """A report of a chat model that the starter policy for language models passes."""
    body = sound().model_dump()
    quality = {"perplexity": {"value": 3.0}, "log_prob": {"value": -1.1}, "end_probability": {"value": 0.9}}
    body["outputs"] = {
        "kind": "causal_lm",
        "examples": 5_000,
        "tuned": {"perplexity": {"value": 5.0}},
        "perplexity_ratio": {"value": 0.9, "low": 0.85, "high": 0.95},
        "answers": {
            "texts": 200,
            "tokens": 3_000,
            "base": quality,
            "tuned": quality,
            "perplexity_ratio": {"value": 0.7, "low": 0.6, "high": 0.8},
            "log_prob_change": {"value": 0.35, "low": 0.2, "high": 0.5},
            "disagreement": {"value": 0.2, "low": 0.1, "high": 0.3},
        },
        "preferences": {
            "pairs": 100,
            "skipped": 2,
            "beta": 0.1,
            "base_accuracy": {"value": 0.5},
            "tuned_accuracy": {"value": 0.8},
            "accuracy_change": {"value": 0.3, "low": 0.2, "high": 0.4},
            "reward_margin": {"value": 0.4, "low": 0.3, "high": 0.5},
            "reward_accuracy": {"value": 0.85},
        },
        "choices": {
            "questions": 90,
            "skipped": 0,
            "chance": 0.25,
            "base": {"accuracy": {"value": 0.5}, "accuracy_by_length": {"value": 0.5}},
            "tuned": {"accuracy": {"value": 0.52}, "accuracy_by_length": {"value": 0.5}},
            "accuracy_change": {"value": 0.02, "low": -0.05, "high": 0.09},
            "changed": {"value": 0.1},
            "mcnemar_p": 0.7,
        },
    }
    for layer in body["layers"]:
        layer["similarity"]["assistant"] = layer["similarity"]["user"] = layer["similarity"]["token"]
    body["dataset"]["role_tokens"] = {"user": 1_500, "assistant": 1_200}
    return Report.model_validate(body)


def undefined(why: str = "the rows have no variance here") -> Measured:
    """A number that has no value, and why."""
    return Measured(value=None, undefined=why)


def preliminary(*pending: tuple[str, float | None]) -> Report:
    """A report of an analysis that still runs: its stages to come, with the seconds that they are expected to take."""
    stages = [PendingStage(stage=name, fields=[], expected_seconds=seconds) for name, seconds in pending]
    return report().model_copy(update={"status": "preliminary", "pending": stages})


FATES = {"retained": 90, "shifted": 7, "lost": 5, "new": 4}
FLOOR_FATES = {"retained": 97, "shifted": 3, "lost": 1, "new": 1}


def turned_over() -> Report:
    """A report whose autoencoders were trained further: FATES on the tuned model, FLOOR_FATES on the base again."""
    made = report()
    excess = {"new_excess": 3, "lost_excess": 4, "shifted_excess": 4}
    errors = {"new_error": 2.2, "lost_error": 2.4, "shifted_error": 3.2}
    match = {"matched_share": 0.25, "floor_share": 0.5, "mean_cosine": 0.6, "floor_mean_cosine": 0.7}
    for layer in made.layers:
        assert layer.sae is not None
        layer.sae.warm_start = WarmStart.model_validate({"tuned": FATES, "floor": FLOOR_FATES, **excess, **errors})
        layer.sae.match = Match.model_validate(match | {"unmatched_excess": 0.25})
    return made
