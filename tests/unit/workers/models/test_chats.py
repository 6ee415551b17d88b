"""Whose words each part of a rendered chat is, under templates that treat messages each in a way of its own."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from backends.tables.chats import Chat, Turn
from tests.builders.models import tiny_tokenizer
from workers.models.chats import ASSISTANT, TOKEN_ROLES, ChatText, Renderer, TemplateError
from workers.models.texts import batches, encode

PLAIN = "{% for m in messages %}[CLS]{{ m.role }}: {{ m.content }}[SEP]\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}[CLS]assistant: {% endif %}"
TRIMMED = "{% for m in messages %}[CLS]{{ m.role }}\n\n{{ m.content | trim }}[SEP]{% endfor %}"
SYSTEM_INSIDE = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}[CLS]{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if loop.first %}{{ first }}{% endif %}{{ m.content | trim }}[SEP]\n{% endfor %}"
)
THINKING = (
    "{% for m in messages %}[CLS]{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}[SEP]\n{% endfor %}"
    "{% if add_generation_prompt %}[CLS]assistant\n{% endif %}"
)
CALLED = "{% if m.tool_calls %}<call>{{ m.tool_calls | tojson }}{% endif %}"
CALLS = PLAIN.replace("{{ m.content }}", "{{ m.content }}" + CALLED)
WORDS = "{% for m in messages %}[CLS] plot {{ m.content }} [SEP] {% endfor %}"
SYSTEM_LAST = (  # the system message stands in the last message of the user, as in Mistral's templates
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'user' %}[CLS]"
    "{% if loop.index0 == ns.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "{{ m.content }}[MASK]{% elif m.role == 'assistant' %} {{ m.content }}[SEP]{% endif %}{% endfor %}"
)
SYSTEM_ASKED = (  # the system message is shown where the user speaks last alone
    "{% for m in messages %}{% if m.role == 'user' %}[CLS]"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}{{ m.content }}[MASK]"
    "{% elif m.role == 'assistant' %} {{ m.content }}[SEP]{% endif %}{% endfor %}"
)
TEMPLATES = {"plain": PLAIN + PROMPT, "trimmed": TRIMMED, "system inside": SYSTEM_INSIDE, "thinking": THINKING}

TURNS = (
    Turn("system", "Be kind."),
    Turn("user", " assistant: user? "),
    Turn("assistant", "user "),
    Turn("user", "user"),
    Turn("assistant", "user: [SEP] said"),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def renderer(tokenizer: Any, template: str) -> Renderer:
    tokenizer.chat_template = template
    return Renderer(tokenizer)


def parts(text: ChatText, role: str) -> list[str]:
    return [text[span.start : span.end] for span in text.spans if span.role == role]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_message_is_found_where_it_stands(tokenizer: Any, name: str) -> None:
    text, _ = renderer(tokenizer, TEMPLATES[name]).rendered(Chat(TURNS))
    assert [one.strip() for one in parts(text, "user")] == ["assistant: user?", "user"]
    assert parts(text, "system") == ["Be kind."]
    first, last = parts(text, "assistant")
    assert first.endswith("[SEP]")  # the model is to end its answers too
    assert first.removesuffix("[SEP]").strip() == "user"
    assert last == ("<think>\n\n</think>\n\n" if name == "thinking" else "") + "user: [SEP] said[SEP]"


def test_every_answer_is_found_where_a_message_stands_after_its_turn(tokenizer: Any) -> None:
    turns = (Turn("system", "Be kind."), Turn("user", "one"), Turn("assistant", "two"), Turn("user", "three"))
    text, _ = renderer(tokenizer, SYSTEM_LAST).rendered(Chat((*turns, Turn("assistant", "four"))))
    assert parts(text, "user") == ["one", "three"]
    assert [one.strip() for one in parts(text, "assistant")] == ["two[SEP]", "four[SEP]"]
    assert parts(text, "system") == ["Be kind."]


@pytest.mark.parametrize("template", [SYSTEM_ASKED, SYSTEM_LAST], ids=["system left out", "system moved"])
def test_a_completion_begins_with_its_answer_where_the_prompt_alone_is_rendered_otherwise(
    tokenizer: Any, template: str
) -> None:
    turns = (Turn("system", "Be kind."), Turn("user", "one"), Turn("assistant", "two"), Turn("user", "three"))
    for chat in (Chat(turns[:3], 2), Chat((*turns, Turn("assistant", "four")), 4)):
        text, _ = renderer(tokenizer, template).rendered(chat)
        assert text.completion is not None
        assert text[text.completion :].strip() == chat.turns[-1].content + "[SEP]"


def test_what_a_template_takes_out_of_an_answer_is_not_looked_for(tokenizer: Any) -> None:
    turns = (*TURNS[:2], Turn("assistant", "<think>hm</think>\n\nyes"), *TURNS[3:])
    text, _ = renderer(tokenizer, THINKING).rendered(Chat(turns))
    assert parts(text, "assistant") == ["yes[SEP]", "<think>\n\n</think>\n\nuser: [SEP] said[SEP]"]


def test_a_call_of_a_tool_is_the_assistants(tokenizer: Any) -> None:
    call = Turn("assistant", "", '{"tool_calls": [{"name": "add"}]}')
    turns = (Turn("user", "2+2?"), call, Turn("tool", "4"), Turn("assistant", "It is 4."))
    text, _ = renderer(tokenizer, CALLS + PROMPT).rendered(Chat(turns))
    assert parts(text, "assistant") == ['<call>[{"name": "add"}][SEP]', "It is 4.[SEP]"]
    assert parts(text, "tool") == ["4"]


def test_a_completion_begins_after_the_generation_prompt(tokenizer: Any) -> None:
    text, others = renderer(tokenizer, PLAIN + PROMPT).rendered(Chat(TURNS, 4, ((Turn("assistant", "no"),),)))
    assert text[text.completion :] == "user: [SEP] said[SEP]\n"
    assert others[0][others[0].completion :] == "no[SEP]\n"
    assert others[0][: others[0].completion] == text[: text.completion]


def test_a_template_may_mark_the_answers_itself(tokenizer: Any) -> None:
    marks = (
        "{% for m in messages %}[CLS]{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}[SEP]\n"
        "{% endgeneration %}{% else %}{{ m.content }}[SEP]\n{% endif %}{% endfor %}"
    )
    text, _ = renderer(tokenizer, marks).rendered(Chat(TURNS))
    assert parts(text, "assistant") == ["user [SEP]\n", "user: [SEP] said[SEP]\n"]
    assert parts(text, "user") == [" assistant: user? ", "user"]


def test_an_answer_may_end_with_several_special_tokens(tokenizer: Any) -> None:
    ends = "{% for m in messages %}{{ m.content }}[SEP] {% if loop.last %}[CLS]{% endif %}{% endfor %}"
    text, _ = renderer(tokenizer, ends).rendered(Chat(TURNS))
    assert parts(text, "assistant") == ["user [SEP]", "user: [SEP] said[SEP] [CLS]"]


@pytest.mark.parametrize(
    ("template", "stops", "expected"),
    [
        (PLAIN, {"[SEP]"}, True),
        (PLAIN, {"[CLS]"}, False),  # answers end, with a token at which generation goes on
        (PLAIN, set(), False),
        ("{% for m in messages %}[CLS]{{ m.content }}{% endfor %}", {"[SEP]"}, False),
        ("{% for m in messages %}[CLS]{{ m.content }}{% endfor %}", {"[CLS]"}, True),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", {"[SEP]"}, False),
    ],
)
def test_a_template_ends_answers_with_a_token_at_which_generation_stops(
    tokenizer: Any, template: str, stops: set[str], expected: bool
) -> None:
    assert renderer(tokenizer, template).ends_answers(stops) is expected


def test_a_template_that_hides_answers_is_an_error(tokenizer: Any) -> None:
    hides = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(TemplateError, match="shows nothing of the assistant's answers"):
        renderer(tokenizer, hides).rendered(Chat(TURNS))


def test_every_token_has_the_role_of_its_characters(tokenizer: Any) -> None:
    turns = (Turn("user", "the film was good"), Turn("assistant", "very good"))
    text, _ = renderer(tokenizer, WORDS).rendered(Chat(turns))
    (found,) = encode(tokenizer, [text], None)
    told = [TOKEN_ROLES[role] for role in found.roles or []]
    words = tokenizer.convert_ids_to_tokens(found.ids)
    assert [word for word, role in zip(words, told, strict=True) if role == "user"] == "the film was good".split()
    assert [word for word, role in zip(words, told, strict=True) if role == "assistant"] == ["very", "good", "[SEP]"]
    assert words.count("[CLS]") == 2  # a template's own alone


def test_roles_are_the_same_without_offsets(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = (Turn("user", "the film was good"), Turn("assistant", "very good"))
    text, _ = renderer(tokenizer, WORDS).rendered(Chat(turns))
    (expected,) = encode(tokenizer, [text], None)
    monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda self: False))
    assert encode(tokenizer, [text], None) == [expected]


def test_a_batch_knows_roles_and_texts_have_none(tokenizer: Any) -> None:
    text, _ = renderer(tokenizer, PLAIN).rendered(Chat((Turn("user", "good"), Turn("assistant", "bad"))))
    (batch,) = batches(tokenizer, [text, "the film was good and bad and good"], 4, 16)
    assert batch.roles is not None
    of_chat, of_text = (batch.roles[batch.indices.index(number)] for number in (0, 1))
    assert set(of_chat.tolist()) == {0, 2, 4}
    assert not of_text.any()
    assert torch.equal(batch.rows(torch.tensor([1]), 3).roles, batch.roles[1:2, :3])  # type: ignore[arg-type]


def test_strings_get_the_tokens_that_texts_get(tokenizer: Any) -> None:
    chat = Chat((Turn("user", "the film was"), Turn("assistant", " good")), 1, plain=True)
    text, _ = Renderer(tokenizer).rendered(chat)
    (found,) = encode(tokenizer, [text], None)
    assert found.ids == encode(tokenizer, ["the film was good"], None)[0].ids
    assert [TOKEN_ROLES[role] for role in found.roles or []] == ["template", *["user"] * 3, "assistant", "template"]


def test_a_chat_that_is_stored_keeps_its_parts(tmp_path: Path, tokenizer: Any) -> None:
    text, _ = renderer(tokenizer, PLAIN).rendered(Chat(TURNS, 4))
    copy = pickle.loads(pickle.dumps(text))
    assert (copy, copy.spans, copy.completion, copy.plain) == (text, text.spans, text.completion, False)


@pytest.mark.parametrize("trim", [True, False])
def test_white_space_in_an_answer_is_the_assistants_also_where_its_tokens_tell_no_characters(trim: bool) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.post_processor, own.decoder = processors.ByteLevel(trim_offsets=trim), decoders.ByteLevel()
    found: Any = PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<end>", bos_token="<s>")
    found.chat_template = "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    text, _ = Renderer(found).rendered(Chat((Turn("user", "q"), Turn("assistant", "if x:\n    y \n\n z"))))
    (encoded,) = encode(found, [text], None)
    answer = [token for token, role in zip(encoded.ids, encoded.roles or [], strict=True) if role == ASSISTANT]
    assert found.decode(answer) == "if x:\n    y \n\n z<end>"
