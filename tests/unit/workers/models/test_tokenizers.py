"""One tokenizer for both models: what may differ, what may not, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from layerdrift.contract.errors import InputError
from tests.builders.models import tiny_tokenizer
from workers.models.texts import Text
from workers.models.tokenizers import MAX_EXPANSION, TOKENIZER, common_tokenizer, load_tokenizer, pieces

TEXTS = ["the good film", "a bad plot", "the actor was sad"]


def saved(folder: Path, *added: str) -> Path:
    folder.mkdir()
    tokenizer = tiny_tokenizer(folder)
    tokenizer.add_tokens(list(added))
    tokenizer.save_pretrained(folder)
    (folder / "vocab.txt").unlink()
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved(tmp_path / "base")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return saved(tmp_path / "other")


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_vocabulary(folder: Path, **renamed: str) -> None:
    """Gives words of tokenizer.json other names, under their ids."""
    state = json.loads((folder / TOKENIZER).read_text())
    for old, new in renamed.items():
        state["model"]["vocab"][new] = state["model"]["vocab"].pop(old)
    (folder / TOKENIZER).write_text(json.dumps(state))


def tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    return list(tokenizer.tokenize(text))


def test_texts_are_padded_on_the_right_whatever_the_file_says(base: Path) -> None:
    edit(base, "tokenizer_config.json", padding_side="left")
    assert load_tokenizer(base, "/base/uri").padding_side == "right"


def test_a_tokenizer_that_cannot_be_read_is_an_error_at_its_place(base: Path) -> None:
    (base / TOKENIZER).write_text("{")
    with pytest.raises(InputError) as raised:
        load_tokenizer(base, "/tuned/uri")
    assert [one.pointer for one in raised.value.errors] == ["/tuned/uri"]


@pytest.mark.parametrize(("lower", "expected"), [(True, ["good", "film"]), (False, ["[UNK]", "film"])])
def test_what_the_configuration_says_by_name_counts_more_than_the_file(
    base: Path, lower: bool, expected: list[str]
) -> None:
    edit(base, "tokenizer_config.json", do_lower_case=lower)
    assert tokens(load_tokenizer(base, "/base/uri"), "Good film") == expected


def test_the_file_counts_where_transformers_would_build_another_normaliser_by_its_class(base: Path) -> None:
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("do_lower_case", None)
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    edit(base, TOKENIZER, normalizer={"type": "Replace", "pattern": {"String": "x"}, "content": "good"})
    (base / "chat_template.jinja").write_text("{{ messages }}")
    found = load_tokenizer(base, "/base/uri")
    assert tokens(found, "x film") == ["good", "film"]
    assert tokens(found, "Good film") == ["[UNK]", "film"]
    assert found.model_max_length == 64
    assert found.mask_token == "[MASK]"
    assert found.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    "step",
    [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * (MAX_EXPANSION + 1)},
        {"type": "Prepend", "prepend": "b" * MAX_EXPANSION},
        {
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 10},
                {"type": "Replace", "pattern": {"String": "b"}, "content": "c" * 10},
            ],
        },
    ],
    ids=["one step", "before every text", "steps that multiply"],
)
def test_a_normaliser_that_makes_much_longer_texts_is_refused(base: Path, step: dict[str, Any]) -> None:
    edit(base, TOKENIZER, normalizer=step)
    with pytest.raises(InputError, match="times longer; the limit is 64"):
        load_tokenizer(base, "/base/uri")


def test_a_normaliser_up_to_the_limit_is_read(base: Path) -> None:
    step = {"type": "Replace", "pattern": {"String": "ab"}, "content": "b" * 2 * MAX_EXPANSION}
    edit(base, TOKENIZER, normalizer=step)
    load_tokenizer(base, "/base/uri")


def test_without_a_tuned_checkpoint_or_its_tokenizer_the_base_models_is_taken(base: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for tuned in (None, empty):
        found = common_tokenizer(base, tuned, TEXTS)
        assert tokens(found.tokenizer, "good film") == ["good", "film"]
        assert (found.warnings, found.differing) == ([], frozenset())


def test_equal_tokenizers_are_no_warning_even_of_no_texts(base: Path, other: Path) -> None:
    given: list[list[Text]] = [[*TEXTS], [], [("a film", "a plot")], [("a film", "a plot"), *TEXTS, ("good", "bad")]]
    for texts in given:
        found = common_tokenizer(base, other, texts)
        assert (found.warnings, found.differing) == ([], frozenset())


def test_models_that_split_texts_otherwise_are_not_compared(base: Path, other: Path) -> None:
    edit_vocabulary(other, movie="movies")
    with pytest.raises(InputError, match="is 'movie' in the base model and 'movies' in the tuned model"):
        common_tokenizer(base, other, [])


def test_a_word_with_another_id_is_refused(base: Path, other: Path) -> None:
    edit_vocabulary(other, movie="?", film="movie")
    edit_vocabulary(other, **{"?": "film"})
    with pytest.raises(InputError, match=r"different vocabularies.*'film' has the ids"):
        common_tokenizer(base, other, [])


def test_an_added_token_is_a_warning_that_counts_the_texts_with_it(base: Path, tmp_path: Path) -> None:
    tuned = saved(tmp_path / "tuned", "<turn>")
    (warning,) = common_tokenizer(base, tuned, TEXTS).warnings
    assert warning.code == "added_tokens"
    assert "only one of the two tokenizers has <turn>" in warning.message
    assert "texts contain such tokens" not in warning.message
    found = common_tokenizer(base, tuned, [*TEXTS, "good <turn> film"])
    assert found.differing == frozenset()
    assert "1 of 4 texts contain such tokens" in found.warnings[0].message
    pairs = common_tokenizer(base, tuned, [("a film", "a plot"), ("a", "<turn>")])
    assert "1 of 2 texts contain such tokens" in pairs.warnings[0].message


def test_of_many_added_tokens_some_are_named(base: Path, tmp_path: Path) -> None:
    tuned = saved(tmp_path / "tuned", *(f"<t{number}>" for number in range(12)))
    (warning,) = common_tokenizer(base, tuned, []).warnings
    assert "<t0>, <t1>" in warning.message
    assert "<t9> and 2 more;" in warning.message


def test_a_few_texts_that_are_split_otherwise_are_passed_over_and_more_are_refused(base: Path, other: Path) -> None:
    edit(other, "tokenizer_config.json", do_lower_case=False)
    texts = [*TEXTS * 7, "Good film"]
    found = common_tokenizer(base, other, texts)
    assert found.differing == {21}
    assert [warning.message for warning in found.warnings] == [
        "1 of 22 texts are split differently by the two tokenizers and were skipped"
    ]
    with pytest.raises(InputError, match="split 2 of 22 texts differently") as raised:
        common_tokenizer(base, other, ["A bad plot", *texts[1:]])
    assert "base [CLS] a bad plot [SEP], tuned [CLS] [UNK] bad plot [SEP]" in raised.value.detail


@pytest.mark.parametrize("text", ["the film film was good", "bad", ""])
def test_pieces_of_a_text_keep_its_spaces(text: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == text


def test_a_character_of_several_tokens_is_told_with_the_last_of_them() -> None:
    class Bytes:
        def decode(self, ids: list[int], clean_up_tokenization_spaces: bool) -> str:
            return bytes(ids).decode(errors="replace")

    given = "a\N{EURO SIGN}b"
    assert pieces(Bytes(), list(given.encode())) == ["a", "", "", "\N{EURO SIGN}", "b"]  # type: ignore[arg-type]
