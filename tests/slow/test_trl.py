"""Our language-model training beside TRL's own trainers: an interpreter of its own, since it needs other packages."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from backends.tables.chats import Chat, Turn, chat_of
from backends.tables.reading import Row
from layerdrift.contract.request import FineTune
from tests.builders.stages import on_progress, resolved
from workers.models.chats import Renderer
from workers.stages.common.inputs import Split
from workers.stages.common.training import Recipe, Training, train
from workers.stages.finetune.language import language_data
from workers.stages.finetune.stage import _fresh

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
TEMPLATES = next((Path(__file__).parents[2] / ".venv-peers" / "lib").glob("*/site-packages/trl/chat_templates"), None)
pytestmark = pytest.mark.slow  # imports TRL in an environment of its own

STEPS = 20
TARGETS = ["q_proj", "down_proj"]
WORDS = "the a film plot actor was is very good bad great dull slow why who says so yes no it what think you do".split()
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }} {% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)
TRAIN = """
import json, sys
from pathlib import Path
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

asked = json.loads(Path(sys.argv[1]).read_text())
model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32)
if asked["adapters"]:
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=asked["targets"], task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    begun = load_file(asked["adapters"])
    for name, one in model.named_parameters():
        if "lora_A" in name:
            one.data.copy_(begun[name.removeprefix("base_model.model.")])
common = dict(output_dir=asked["out"], per_device_train_batch_size=8, num_train_epochs=asked["steps"], logging_steps=1,
              learning_rate=asked["learning_rate"], bf16=False, use_cpu=True, report_to=[], save_strategy="no",
              gradient_checkpointing=False, max_length=64, seed=0)
data = Dataset.from_list(asked["rows"])
tokenizer = AutoTokenizer.from_pretrained(asked["model"])
if asked["objective"] == "dpo":
    trainer = DPOTrainer(model, args=DPOConfig(**common), train_dataset=data, processing_class=tokenizer)
else:
    args = SFTConfig(**common, assistant_only_loss=asked["assistant_only"])
    trainer = SFTTrainer(model, args=args, train_dataset=data, processing_class=tokenizer)
trainer.train()
logs = [(one["loss"], one["grad_norm"]) for one in trainer.state.log_history if "grad_norm" in one]
print("FOUND " + json.dumps(logs))
"""


def said(words: torch.Tensor) -> str:
    return " ".join(WORDS[index] for index in words.tolist())


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def rows_of(kind: str) -> list[dict[str, Any]]:
    """Eight rows of a kind, of different lengths."""
    generator = torch.Generator().manual_seed(3)
    rows = list[dict[str, Any]]()
    for number in range(8):
        question, answer, other, more = (
            said(torch.randint(len(WORDS), (2 + number % 4 + part,), generator=generator)) for part in range(4)
        )
        every: dict[str, dict[str, Any]] = {
            "text": {"text": f"{question} {answer}"},
            "messages": {"messages": [user(question), assistant(answer), user(more), assistant(other)]},
            "completion": {"prompt": [user(question)], "completion": [assistant(answer)]},
            "strings": {"prompt": question, "completion": f" {answer}"},
            "preference": {
                "prompt": [user(question)],
                "chosen": [assistant(answer)],
                "rejected": [assistant(other)],
            },
        }
        rows.append(every[kind])
    return rows


FORMATS: dict[str, Any] = {
    "messages": "messages",
    "completion": "prompt_completion",
    "strings": "prompt_completion",
    "preference": "preference",
}


class Given(NamedTuple):
    folder: Path
    tokenizer: Any


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """A tiny language model with a tokenizer of words and a chat template that marks the answers."""
    folder = tmp_path_factory.mktemp("model")
    names = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant", *WORDS]
    words = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(names),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attention_dropout=0.0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return Given(folder, tokenizer)


def ours(given: Given, kind: str, settings: FineTune) -> tuple[Training, dict[str, torch.Tensor]]:
    """Our run, and the adapters that it began with."""
    renderer, rows = Renderer(given.tokenizer), []
    for record in rows_of(kind):
        if kind == "text":
            rows.append(Row(record["text"], None))
            continue
        text, others = renderer.rendered(chat_of(record, FORMATS[kind]))
        rows.append(Row(text, None, others=others))
    data = language_data(given.tokenizer, Split([], rows, []), settings)
    with _fresh(resolved(given.folder), data, Recipe.of(settings, 0)) as (model, prepared):
        adapters = {name: value.detach().clone() for name, value in model.named_parameters() if "lora_A" in name}
        return train(model, prepared, Recipe.of(settings, 0), on_progress), adapters


def theirs(given: Given, kind: str, settings: FineTune, adapters: dict[str, torch.Tensor], folder: Path) -> Any:
    """The losses and gradient norms of TRL's trainer, by step."""
    if adapters:
        save_file(adapters, folder / "adapters.safetensors")
    asked = {
        "model": str(given.folder),
        "targets": TARGETS,
        "adapters": str(folder / "adapters.safetensors") if adapters else None,
        "out": str(folder / "out"),
        "rows": rows_of(kind),
        "steps": STEPS,
        "learning_rate": settings.learning_rate,
        "objective": settings.objective,
        "assistant_only": kind == "messages" and settings.loss_on == "answers",
    }
    (folder / "asked.json").write_text(json.dumps(asked))
    done = subprocess.run(
        [str(PEERS), "-c", TRAIN, str(folder / "asked.json")], capture_output=True, text=True, check=False
    )
    line = next((one for one in done.stdout.splitlines() if one.startswith("FOUND ")), None)
    assert line is not None, done.stderr[-3000:]
    return json.loads(line.removeprefix("FOUND "))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("objective", "kind", "loss_on"),
    [
        ("sft", "completion", "answers"),
        ("sft", "messages", "answers"),
        ("sft", "strings", "answers"),
        ("sft", "messages", "all"),
        ("sft", "text", "answers"),
        ("dpo", "preference", "answers"),
    ],
)
def test_losses_and_gradients_are_those_of_trl(
    given: Given, objective: str, kind: str, loss_on: str, method: str, tmp_path: Path
) -> None:
    body: dict[str, Any] = {
        "objective": objective,
        "method": method,
        "loss_on": loss_on,
        "epochs": STEPS,
        "learning_rate": 3e-3,
        "precision": "float32",
        "keep": "last",
    }
    if method == "lora":
        body["lora"] = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": TARGETS}
        body["learning_rate"] = 3e-2
    settings = FineTune.model_validate(body)
    run, adapters = ours(given, kind, settings)
    found = theirs(given, kind, settings, adapters, tmp_path)
    assert len(found) == run.steps == STEPS
    assert run.losses[0] == pytest.approx(found[0][0], abs=1e-4)
    assert run.gradient_norms[0] == pytest.approx(found[0][1], rel=1e-3)
    assert run.losses[-1] == pytest.approx(found[-1][0], abs=1e-2)
    assert run.losses[-1] < run.losses[0] - 0.05  # it was training at all


MARKED_BY_OTHER_RULES = {
    # the template's own opening of an answer counts as the answer there, or the empty thoughts that it writes do
    "deepseek_r1_distill", "deepseekv3", "gptoss", "muse_glimmer", "nemotron_3_5_lightning", "nemotron_3_nano",
    "nemotron_3_super", "nemotron_3_ultra", "qwen3_8", "glm4moe",
    # the training variant writes another text
    "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6",
    # for images, whose messages are no strings
    "idefics3", "llava_next", "smolvlm",
}  # fmt: skip
TURNS = (
    Turn("system", "Be kind."),
    Turn("user", " What? "),
    Turn("assistant", "It is so. "),
    Turn("user", "Why?"),
    Turn("assistant", "Because it is."),
)


def _named() -> list[str]:
    if TEMPLATES is None:
        return []
    names = [path.name.removesuffix("_training.jinja") for path in TEMPLATES.glob("*_training.jinja")]
    return sorted(set(names) - MARKED_BY_OTHER_RULES)


@pytest.mark.parametrize("name", _named())
def test_answers_are_found_where_trl_marks_them(given: Given, name: str) -> None:
    """Of templates as models have them, beside the variants that TRL made to mark the answers; line breaks aside."""
    assert TEMPLATES is not None
    plain, training = ((TEMPLATES / f"{name}{end}.jinja").read_text() for end in ("", "_training"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(given.folder)
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(_specials_in(plain))})
    tokenizer.chat_template = plain
    turns = TURNS[1:] if "system" not in plain or "raise_exception" in plain else TURNS
    text, _ = Renderer(tokenizer).rendered(Chat(turns))
    rendered: Any = render_jinja_template(
        [[turn.as_message() for turn in turns]],
        chat_template=training,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    told = "".join(rendered[0][0][start:end] for start, end in rendered[1][0])
    found = "".join(text[span.start : span.end] for span in text.spans if span.role == "assistant")
    assert rendered[0][0] == text
    assert _without_ends(found) == _without_ends(told)


def _without_ends(answers: str) -> str:
    """White space aside, and the last token of all, which ends the text and no answer."""
    return re.sub(r"\s+", "", answers).removesuffix("</s>")


def _specials_in(template: str) -> set[str]:
    shapes = r"<[|｜][^<>|｜\s]+[|｜]>|<end_of_turn>|<start_of_turn>|<turn\|>|<\|turn>|\[/?INST\]"
    return set(re.findall(shapes, template))
