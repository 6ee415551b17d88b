from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from layerdrift.contract.report import (
    Causal,
    ChangedLatent,
    Crosscoder,
    LatentAblation,
    Match,
    Measured,
    SaeRun,
    TokenLatents,
    TokenText,
    WarmStart,
)
from layerdrift.render import html, markdown, words
from tests.builders.reports import report
from workers.stages.sae.token_latents import budget

FIGURES = [
    "drift",
    "measures",
    "trajectory",
    "consistency",
    "grafts",
    "sweep",
    "probes",
    "training",
    "cka",
    "weights",
    "sae",
]


def drift_rows(specs: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the drift curve itself, without those of the nulls."""
    found = [layer["data"]["values"] for layer in specs["drift"]["layer"] if "drift" in layer["data"]["values"][0]]
    rows: list[dict[str, Any]] = found[0]
    return rows


class Page(HTMLParser):
    """Collects what a page refers to, its element ids and its visible text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self._in_script = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_script = tag in ("script", "style")
        for name, value in attrs:
            if name in ("src", "href", "action"):
                self.references.append(f"{tag} {value}")
            if name == "id" and value:
                self.ids.add(value)

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if not self._in_script:
            self.text += data


def data_of(source: str) -> dict[str, Any]:
    """What the page's script reads."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', source, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found.group(1))
    return data


def specs_of(source: str) -> dict[str, Any]:
    specs: dict[str, Any] = data_of(source)["specs"]
    return specs


def test_the_page_refers_to_nothing_outside_itself() -> None:
    page = Page(html.render(report()))
    assert page.references == []


def test_every_figure_has_its_place_and_its_data() -> None:
    source = html.render(report())
    specs = specs_of(source)
    assert set(specs) == {*FIGURES}
    assert set(specs) <= Page(source).ids
    drawn = {row["layer"]: row["drift"] for row in drift_rows(specs)}
    assert drawn == {index: layer.drift for index, layer in enumerate(report().layers)}


def test_intervals_are_drawn_the_right_way_up_and_written_out() -> None:
    source = html.render(report())
    for row in drift_rows(specs_of(source)):
        assert row["low"] == pytest.approx(row["drift"] - 0.01)
        assert row["high"] == pytest.approx(row["drift"] + 0.01)
    assert "0.9900 to 1.0100" in Page(source).text
    assert "| 0.9900 to 1.0100 |" in markdown.render(report())
    without = drift_rows(specs_of(html.render(report(intervals=False))))
    assert {row["low"] for row in without} == {None}


def test_turnover_is_drawn_beside_its_floor() -> None:
    found = report()
    fates = {"retained": 90, "shifted": 7, "lost": 5, "new": 4}
    warm = {
        "tuned": fates,
        "floor": {"retained": 97, "shifted": 3, "lost": 1, "new": 1},
        "new_excess": 3,
        "new_error": 2.2,
        "lost_excess": 4,
        "lost_error": 2.4,
        "shifted_excess": 4,
        "shifted_error": 3.2,
    }
    match = {"matched_share": 0.25, "floor_share": 0.5, "mean_cosine": 0.6, "floor_mean_cosine": 0.7}
    for layer in found.layers:
        assert layer.sae is not None
        layer.sae.warm_start = WarmStart.model_validate(warm)
        layer.sae.match = Match.model_validate(match | {"unmatched_excess": 0.25})
    source = html.render(found)
    rows = specs_of(source)["turnover"]["data"]["values"]
    assert len(rows) == len(found.layers) * 2 * 3
    shown = {(row["trained on"].split("'")[0], row["fate"]): row["latents"] for row in rows if row["layer"] == 1}
    assert shown[("the tuned model", "new")] == 4
    assert shown[("the base model", "new")] == 1
    cells = (90, 7, 3, "+4 ± 3", 5, 1, "+4 ± 2", 4, 1, "+3 ± 2", "25.0 %", "50.0 %")
    assert "".join(f"<td>{cell}</td>" for cell in cells) in source
    assert "| latents beyond the floor: new | lost | shifted |" in markdown.render(found)
    assert "| +3 ± 2 | +4 ± 2 | +4 ± 3 |" in markdown.render(found)
    for layer in found.layers:
        assert layer.sae is not None
        layer.sae.warm_start = WarmStart.model_validate({"tuned": fates, "floor": warm["floor"]})
        layer.sae.withheld = "only 1.0% of the base model's latents come again"
    source = html.render(found)
    said = "Not reported (differences, changed features, ablations) at 4 of 4 layers. Layer 0: only 1.0%"
    assert said in Page(source).text
    assert "<td>7</td><td>3</td><td>—</td>" in source
    assert "none is shown" not in Page(source).text
    assert "turnover" not in specs_of(html.render(report()))


def latent(layer: int, fate: str, **changes: Any) -> ChangedLatent:
    example = {"before": "a <b>very</b>", "token": "<bad>", "after": "film", "activation": 0.5, "label": "neg"}
    body = {"layer": layer, "index": 7, "fate": fate, "cosine": 0.3, "base_rate": 0.001, "tuned_rate": 0.02}
    return ChangedLatent.model_validate({**body, "base": [], "tuned": [example], **changes})


def test_changed_latents_are_shown_with_their_tokens_and_what_chance_gives() -> None:
    found = report(layers=4)
    counts = {"retained": 90, "shifted": 7, "lost": 5, "new": 4}
    excess = {"new_excess": 3, "lost_excess": 0, "shifted_excess": 0}
    for layer in found.layers:
        assert layer.sae is not None
        layer.sae.warm_start = WarmStart.model_validate({"tuned": counts, "floor": counts | {"new": 1}, **excess})
    assert "none is shown" in Page(html.render(found)).text
    lean = {"label": "neg", "share": 0.8, "expected": 0.5}
    found.latents = [
        latent(2, "new", label_association=lean, probe={"label": "neg", "cosine": 0.25}),
        latent(3, "new"),
    ]
    source = html.render(found)
    assert '<mark style="--strength:75%" title="activation 0.500">&lt;bad&gt;</mark> film' in source
    assert "Do they matter to the answers?" not in source
    text = Page(source).text
    assert "a <b>very</b>" in text
    assert "Layer 2, latent 7: new (one of 4 in this layer; floor 1)" in " ".join(text.split())
    assert "80% of its activation is on texts labelled “neg”, which hold 50% of the tokens" in text
    assert text.count("It does not fire on these texts") == 2
    assert "none is shown" not in text


def test_a_random_model_and_the_firing_rates_are_drawn_where_they_were_counted() -> None:
    found = report()
    assert {"sae", "density"} & set(specs_of(html.render(found))) == {"sae"}
    density = [0, 0, 0, 10, 30, 40, 15, 5, 0, 0]
    for layer in found.layers:
        assert layer.sae is not None
        for side in (layer.sae.base, layer.sae.tuned):
            side.density = density
        layer.sae.random_weights = layer.sae.base.model_copy(update={"fvu": 0.4})
    specs = specs_of(html.render(found))
    assert [row["fvu"] for row in specs["sae"]["data"]["values"] if row["autoencoder"] == "SAE on random weights"] == [
        0.4
    ] * 4
    rows = [row for row in specs["density"]["data"]["values"] if row["layer"] == 1 and row["model"] == "tuned"]
    assert [row["share"] for row in rows] == [count / 100 for count in density]
    assert [row["fires on"] for row in rows][:2] == ["none", "0.00316 to 0.01 %"]
    assert rows[-1]["fires on"] == "31.6 to 100 %"


def test_what_the_answers_say_of_the_autoencoders_is_shown() -> None:
    found = report()
    found.causal = Causal.model_validate({"splice": {"loss": "cross_entropy", "examples": 123}})
    for layer in found.layers:
        assert layer.sae is not None
        undefined = "the mean costs too little" if layer.index == 3 else None
        value = {"value": None if undefined else 0.875, "low": 0.8, "high": 0.95, "undefined": undefined}
        layer.sae.tuned.loss_recovered = Measured.model_validate(value)
    assert found.layers[2].sae is not None
    cost = {"value": 0.25, "low": 0.2, "high": 0.3, "noise_floor": 0.125}
    found.layers[2].sae.ablation = LatentAblation.model_validate({"latents": 17, "cost": cost, "draws": 20, "p": 0.048})
    source = html.render(found)
    assert source.count("<td>0.88 (0.80 to 0.95)</td>") == 3
    cells = ("2 block 2", "17", "0.250", "0.200 to 0.300", "0.125", "20", "0.05")
    assert '<tr data-layer="2">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" in source
    assert source.count("123 texts") == 1


def test_crosscoders_and_the_course_of_the_training_are_shown() -> None:
    found = report()
    assert {"sae-training"} & set(specs_of(html.render(found))) == set()
    counts = {"tuned_only": 31, "tuned_only_confirmed": 29, "base_only": 7, "base_only_confirmed": 5, "shared": 400}
    counts |= {"tuned_more": 17, "base_more": 18}
    crosscoder = {"base_fvu": 0.21, "tuned_fvu": 0.22, "l0": 32, "dead_fraction": 0, "pair": counts}
    crosscoder |= {
        "floor": counts | {"tuned_only_confirmed": 3, "shared": 402},
        "tuned_only_excess": 26,
        "base_only_excess": 0,
    }
    for layer in found.layers:
        assert layer.sae is not None
        layer.sae.crosscoder = Crosscoder.model_validate(crosscoder)
    curve = [{"step": 10, "unexplained": [0.6, 0.5, 0.9]}, {"step": 20, "unexplained": [0.3, 0.2, 0.4]}]
    run = {"name": "crosscoder", "steps": 20, "planned_steps": 40, "batch": 2048, "learning_rate": 3e-3}
    found.sae_runs.append(SaeRun.model_validate(run | {"autoencoders": ["a", "b", "c"], "curve": curve}))
    source = html.render(found)
    drawn = specs_of(source)["sae-training"]["data"]["values"]
    assert [(row["step"], row["least"], row["median"], row["most"]) for row in drawn] == [
        (10, 0.5, 0.6, 0.9),
        (20, 0.2, 0.3, 0.4),
    ]
    cells = "".join(f"<td>{cell}</td>" for cell in ("0.210, 0.220", 400, 402, 17, 18, 31, 29, 3, 7, 5, 5))
    assert source.count(cells) == len(found.layers)
    assert "The crosscoders&#39; training stopped early after 20 of 40 steps" in source
    assert f"{20 * 2048} with repetitions" in source


def test_a_report_without_autoencoders_has_no_empty_figure() -> None:
    source = html.render(report(with_sae=False))
    assert "sae" not in specs_of(source)
    assert "sae" not in Page(source).ids


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "{{ 7*7 }}"])
def test_text_of_the_users_never_becomes_markup(name: str) -> None:
    source = html.render(report(name=name))
    page = Page(source)
    assert page.references == []
    assert name in page.text
    assert "it's </script> <b>bold</b>" in [text.text for text in report().tokens.texts]
    assert "<b>bold" not in source


def test_tokens_come_as_they_are_with_their_drift_and_their_latents() -> None:
    given = report()
    text = given.tokens.texts[0]
    layers, tokens = len(text.drift), len(text.tokens)
    text.latents = TokenLatents(base=[[[(7, 0.5)]] * tokens] * layers, tuned=[[[]] * tokens] * layers)
    (shown,) = data_of(html.render(given))["texts"]
    assert shown["tokens"] == text.tokens
    assert shown["drift"] == [[round(value, 3) for value in layer] for layer in text.drift]
    assert shown["latents"]["base"][0][0] == [[7, 0.5]]


def test_the_page_stays_below_5_mb_for_24_layers_and_200_texts() -> None:
    given = report(layers=25)
    tokens = [f"token{number}" for number in range(26)]
    drift = [[0.1234] * len(tokens)] * 25
    whole = TokenText(text=" ".join(tokens), tokens=tokens, special=[False] * len(tokens), drift=drift)
    strongest, count = budget([len(tokens)] * 200, 25)
    one = [[[(12345, 0.123)] * strongest] * len(tokens)] * 25
    told = whole.model_copy(update={"latents": TokenLatents(base=one, tuned=one)})
    given.tokens.texts = [told] * count + [whole] * (200 - count)
    assert count > 100
    assert len(html.render(given)) < 5_000_000


def test_the_starter_policy_is_told_and_where_it_could_not_be_judged() -> None:
    assert "starter policy: failed" in html.render(report())
    few = report()
    for layer in few.layers:
        token = layer.similarity["token"]
        token.cka.low = token.cka_standardized.low = None
    few.outputs, few.warnings = None, []
    for layer in few.layers[-1:]:
        layer.similarity["mean"].cka.high = 0.9
    assert "starter policy: could not be evaluated" in html.render(few)


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_can_be_drawn(figure: str) -> None:
    import vl_convert

    svg = vl_convert.vegalite_to_svg(specs_of(html.render(report()))[figure])
    assert svg.startswith("<svg")
    assert "NaN" not in svg


def test_a_number_without_meaning_is_a_dash_and_never_nan() -> None:
    undefined = report(constant_views=("cls", "token"))
    page, text = Page(html.render(undefined)).text, markdown.render(undefined)
    assert "0 embeddingsgeneral0.00000.00100—no————0.000" in page
    assert "| 0 embeddings | general | 0.0000 | 0.00100 | — | no | — | — | — |" in text
    assert not re.search(r"\bnan\b", (page + text).lower())


def test_the_words_follow_the_numbers() -> None:
    found = report()
    assert words.headline(found).startswith("Drift (1 - CKA) goes from 0.000 at the embeddings to 1.000 at block 3")
    assert "layers 0 to 1 hardly changed" in words.headline(found)
    assert words.advice(found).startswith("Freeze the embeddings and the first 1 blocks next time (predicted).")
    assert not any("No intervals were computed" in limit for limit in words.limits(found))
    assert any("No intervals were computed" in limit for limit in words.limits(report(intervals=False)))
    identical = report(warnings=[{"code": "identical_models", "message": "same"}])
    assert words.headline(identical).startswith("The models are identical at every layer on these texts")


def test_markdown_is_a_table_that_no_name_can_break() -> None:
    lines = markdown.render(report(name="a | b\n# c `d` <e>")).splitlines()
    assert lines[0] == "# a \\| b \\# c \\`d\\` \\<e\\>"
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {15}
    assert len(table) == 2 + 4


def test_equal_reports_give_equal_pages() -> None:
    assert html.render(report()) == html.render(report())


BARE: dict[str, Any] = {
    "noise_floors": [],
    "outputs": None,
    "finetune": None,
    "trajectory": None,
    "probes": None,
    "causal": {},
}


def test_what_was_not_computed_is_neither_drawn_nor_mentioned() -> None:
    bare = report(**BARE)
    for layer in bare.layers:
        layer.noise_floors, layer.task_consistency, layer.probe, layer.graft = {}, None, None, None
    source = html.render(bare)
    assert set(specs_of(source)) == {"drift", "measures", "cka", "weights", "sae"}
    assert Page(source).ids & set(FIGURES) == set(specs_of(source))
    assert "graft" not in markdown.render(bare)
    assert any("The numerical resolution is not known" in limit for limit in words.limits(bare))
    assert words.outcome(bare) is None


def test_the_nulls_are_drawn_beside_the_drift() -> None:
    layers = specs_of(html.render(report()))["drift"]["layer"]
    nulls = next(layer["data"]["values"] for layer in layers if "reference" in layer["data"]["values"][0])
    assert {(row["reference"], row["level"]) for row in nulls} == {
        ("numerical resolution", 0.001),
        ("two seeds against each other", 0.02),
    }


def test_the_outcome_says_how_well_the_models_answer() -> None:
    assert words.outcome(report()) == (
        "Fine-tune after 10 steps: accuracy 90.0 % (95 %: 89.0 % to 91.0 %) on 50 texts (majority class 50.0 %)."
    )
    number = {"value": 3.5}
    outputs = {
        "kind": "causal_lm",
        "examples": 400,
        "base": {"perplexity": {"value": 4.0}},
        "tuned": {"perplexity": number},
        "disagreement": {"value": 0.1},
    }
    assert words.outcome(report(outputs=outputs, finetune=None)) == (
        "Tuned model: perplexity 3.50 over 400 tokens. Base model: perplexity 4.00 over 400 tokens. The two models "
        "disagree on 10.0 % of 400 outputs."
    )
