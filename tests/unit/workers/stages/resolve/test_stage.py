"""Stage `resolve` on files of this machine: rows, tokenizer, length and reference together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.settings import Settings
from backends.sources.pinning import Sources
from backends.storage.blobs import BlobStore
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest
from tests.builders.models import save_model, tiny_bert
from tests.builders.stages import stage_context
from tests.builders.texts import make_texts
from workers.stages.common.inputs import Resolved
from workers.stages.resolve.stage import resolve

TEXTS = make_texts(40)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair of models."""
    folder = tmp_path_factory.mktemp("roots").resolve()
    save_model(tiny_bert(0, blocks=1), folder / "base")
    save_model(tiny_bert(1, blocks=1), folder / "tuned")
    return folder


def resolved_from(root: Path, folder: Path, dataset: dict[str, Any], **analysis: Any) -> Resolved:
    body: dict[str, Any] = {
        "base": {"uri": (root / "base").as_uri()},
        "tuned": {"uri": (root / "tuned").as_uri()},
        "dataset": dataset,
        "analysis": {"sae": None, **analysis},
    }
    request = AnalysisRequest.model_validate(body)
    settings = Settings(model_roots=[root])
    sources = Sources(settings, BlobStore(None, settings.s3_bucket))
    return resolve(stage_context(folder, request), sources.pin(request), sources, settings.max_parameters)


def test_usable_rows_are_split_and_what_was_skipped_is_said(root: Path, tmp_path: Path) -> None:
    inline = {"texts": [*TEXTS, " ", TEXTS[0]], "groups": [*(number // 2 for number in range(40)), 99, 98]}
    found = resolved_from(root, tmp_path, {"inline": inline, "max_examples": 30})
    assert found.usable_rows == 40
    assert len(found.split.analysed) == 30
    assert {row.text for part in (found.split.analysed, found.split.spare) for row in part} == set(TEXTS)
    assert [warning.code for warning in found.warnings] == ["blank_texts", "repeated_texts"]
    assert found.units is not None
    assert len(set(found.units)) == 15
    assert found.reference is None
    assert found.tuned is not None


def test_the_length_is_what_was_asked_for_or_what_most_texts_need(root: Path, tmp_path: Path) -> None:
    lengths = sorted(len(text.split()) + 2 for text in TEXTS)
    found = resolved_from(root, tmp_path / "own", {"inline": {"texts": TEXTS}})
    assert found.length == lengths[38]
    assert resolved_from(root, tmp_path / "asked", {"inline": {"texts": TEXTS}}, max_length=5000).length == 5000


def test_a_reference_is_a_sample_of_the_texts_that_the_data_set_does_not_have(root: Path, tmp_path: Path) -> None:
    general = make_texts(60, seed=7)
    reference = {"inline": {"texts": [*TEXTS[:10], *general, general[0], ""]}, "max_examples": 25}
    found = resolved_from(root, tmp_path, {"inline": {"texts": TEXTS}, "reference": reference})
    assert found.reference is not None
    read = [row.text for row in found.reference.rows]
    assert len(read) == len(set(read)) == 25
    assert set(read) <= set(general) - set(TEXTS)
    assert read != general[:25]


def test_a_reference_with_too_little_that_is_new_is_refused_at_its_place(root: Path, tmp_path: Path) -> None:
    reference = {"inline": {"texts": [*TEXTS, *make_texts(19, seed=7)]}}
    with pytest.raises(InputError, match="19 texts of the reference are not also in dataset") as raised:
        resolved_from(root, tmp_path, {"inline": {"texts": TEXTS}, "reference": reference})
    assert [one.pointer for one in raised.value.errors] == ["/dataset/reference"]


@pytest.mark.parametrize("own", [None, "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"])
def test_chats_of_the_reference_are_rendered_as_the_others_or_by_a_template_of_their_own(
    root: Path, tmp_path: Path, own: str | None
) -> None:
    chatty = root / "chatty"
    save_model(tiny_bert(1, blocks=1), chatty)
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    (chatty / "chat_template.jinja").write_text(template)
    places = dict[str, str]()
    for name, seed in (("data", 0), ("general", 7)):
        path = root / f"{name}.jsonl"
        asked = {"role": "user", "content": "why?"}
        rows = [
            {"prompt": [asked], "completion": [{"role": "assistant", "content": text}]}
            for text in make_texts(40, seed=seed)
        ]
        rows += [{"prompt": [asked]}] if name == "data" else []
        path.write_text("\n".join(json.dumps(row) for row in rows))
        places[name] = path.as_uri()
    dataset = {"uri": places["data"], "reference": {"uri": places["general"], "chat_template": own}}
    body = {"base": {"uri": (root / "base").as_uri()}, "tuned": {"uri": chatty.as_uri()}, "dataset": dataset}
    request = AnalysisRequest.model_validate(body | {"analysis": {"sae": None}})
    settings = Settings(model_roots=[root])
    sources = Sources(settings, BlobStore(None, settings.s3_bucket))
    found = resolve(stage_context(tmp_path, request), sources.pin(request), sources, settings.max_parameters)
    assert found.usable_rows == 40
    assert found.reference is not None
    for row in found.split.analysed:
        assert row.text.startswith("[user] why? [assistant] ")
    for row in found.reference.rows:
        assert row.text.startswith("<user>why?<assistant>" if own else "[user] why? [assistant] ")
    assert [warning.code for warning in found.warnings] == ["unusable_chats", "chats_rendered", "never_stops"]
    assert "line 41" in found.warnings[0].message


def test_a_template_of_the_reference_that_renders_nothing_is_named_there(root: Path, tmp_path: Path) -> None:
    asked, said = {"role": "user", "content": "why?"}, [{"role": "assistant", "content": "so"}]
    for name in ("data", "general"):
        rows = [{"prompt": [asked | {"content": f"{name} {number}"}], "completion": said} for number in range(40)]
        (root / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    dataset = {
        "uri": (root / "data.jsonl").as_uri(),
        "chat_template": template,
        "reference": {"uri": (root / "general.jsonl").as_uri(), "chat_template": "{{ raise_exception('no') }}"},
    }
    with pytest.raises(InputError, match="cannot render 40 of 40 chats") as raised:
        resolved_from(root, tmp_path, dataset)
    assert raised.value.errors[0].pointer == "/dataset/reference/chat_template"
