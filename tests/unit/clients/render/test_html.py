"""The page of a report: whole in itself, and true to the report."""

from __future__ import annotations

import json
import re
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest

from layerdrift.contract.report import (
    Causal,
    ChangedLatent,
    Crosscoder,
    LatentAblation,
    Measured,
    SaeRun,
    TokenLatents,
    TokenText,
    WarmStart,
)
from layerdrift.render import html
from tests.builders.reports import FATES, FLOOR_FATES, preliminary, report, turned_over
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


@cache
def usual_page() -> str:
    """The page of the report as its builder makes it."""
    return html.render(report())


def test_the_page_refers_to_nothing_outside_itself() -> None:
    assert Page(usual_page()).references == []


def test_every_figure_has_its_place_and_its_data() -> None:
    specs = specs_of(usual_page())
    assert set(specs) == {*FIGURES}
    assert set(specs) <= Page(usual_page()).ids


def test_intervals_are_written_out() -> None:
    assert "0.9900 to 1.0100" in Page(usual_page()).text


def test_the_layer_that_drifted_most_is_picked_first() -> None:
    data = data_of(usual_page())
    assert data["picked"] == 3
    assert [layer["name"] for layer in data["layers"]] == ["embeddings", "block 1", "block 2", "block 3"]
    assert '<input type="range" id="layer" min="0" max="3" value="3">' in usual_page()


def test_the_panel_says_of_each_layer_what_its_table_says() -> None:
    last = data_of(usual_page())["layers"][3]
    assert (last["drift"], last["relative_l2"], last["fvu"], last["transfer"]) == (1.0, 1.3, 0.2, 0.1)
    assert (last["graft"], last["probe"], last["interval"]) == (pytest.approx(0.6), 0.9, "-0.0100 to 0.0100")
    assert (last["of_scale"], last["latents"]) == ("—", None)


def test_turnover_is_shown_beside_its_floor() -> None:
    source = html.render(turned_over())
    assert "turnover" in specs_of(source)
    cells = (90, 7, 3, "+4 ± 3", 5, 1, "+4 ± 2", 4, 1, "+3 ± 2", "25.0 %", "50.0 %")
    assert "".join(f"<td>{cell}</td>" for cell in cells) in source
    assert data_of(source)["layers"][0]["latents"] == "+3 ± 2 new, +4 ± 2 lost, +4 ± 3 shifted"


def test_turnover_that_is_withheld_has_its_reason_and_no_difference() -> None:
    found = turned_over()
    for layer in found.layers:
        assert layer.sae is not None
        layer.sae.warm_start = WarmStart.model_validate({"tuned": FATES, "floor": FLOOR_FATES})
        layer.sae.withheld = "only 1.0% of the base model's latents come again"
    source = html.render(found)
    said = "Not reported (differences, changed features, ablations) at 4 of 4 layers. Layer 0: only 1.0%"
    assert said in Page(source).text
    assert "<td>7</td><td>3</td><td>—</td>" in source
    assert "none is shown" not in Page(source).text
    assert {layer["latents"] for layer in data_of(source)["layers"]} == {None}


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


def test_crosscoders_and_a_training_that_stopped_early_are_shown() -> None:
    found = report()
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
    assert "sae-training" in specs_of(source)
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
    assert "starter policy: failed" in usual_page()
    few = report()
    for layer in few.layers:
        token = layer.similarity["token"]
        token.cka.low = token.cka_standardized.low = None
    few.outputs, few.warnings = None, []
    for layer in few.layers[-1:]:
        layer.similarity["mean"].cka.high = 0.9
    assert "starter policy: could not be evaluated" in html.render(few)


def test_a_number_without_meaning_is_a_dash_and_never_nan() -> None:
    page = Page(html.render(report(constant_views=("cls", "token")))).text
    assert "0 embeddingsgeneral0.00000.00100—no————0.000" in page
    assert not re.search(r"\bnan\b", page.lower())


def test_a_preliminary_report_says_so_and_has_no_verdict() -> None:
    text = Page(html.render(preliminary(("sae", 120)))).text
    assert "Preliminary report: the analysis is still running." in text
    assert "starter policy:" not in text


def test_estimates_stand_beside_what_was_used() -> None:
    found = report()
    assert "estimated" not in html.render(found).split("<footer")[-1]
    found.timings.estimated_stages = {"extract": 2.4}
    found.timings.estimated_memory_bytes = 3 * 2**30
    page = html.render(found)
    assert "peak memory 1.00 GiB (estimated 3.00)" in page
    assert "extract 1.5 (estimated 2)" in page


def test_equal_reports_give_equal_pages() -> None:
    assert html.render(report()) == usual_page()


BARE: dict[str, Any] = {
    "noise_floors": [],
    "outputs": None,
    "finetune": None,
    "trajectory": None,
    "probes": None,
    "causal": {},
}


def test_what_was_not_computed_is_not_drawn() -> None:
    bare = report(**BARE)
    for layer in bare.layers:
        layer.noise_floors, layer.task_consistency, layer.probe, layer.graft = {}, None, None, None
    source = html.render(bare)
    assert set(specs_of(source)) == {"drift", "measures", "cka", "weights", "sae"}
    assert Page(source).ids & set(FIGURES) == set(specs_of(source))
