"""`make bench-finetune`: our training of a language model beside TRL's, SFT and DPO, by LoRA and whole.

Both in processes of their own that take turns, on the same rows, model, adapters and precision. The last line printed
is JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import logging

from deploy.embedded.demo_inputs import fetch_chat
from tests.benchmarks.document import publish

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
HOME = Path("var") / "demo-llm"
STEPS, WARM, REPEATS, BATCH = 10, 2, 2, 8
"""Steps of a run, the first of them that do not count, runs of each side, and rows of a step."""

CASES = (("sft", "lora"), ("sft", "full"), ("dpo", "lora"))

TRL = """
import json, sys, time
from pathlib import Path
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

asked = json.loads(Path(sys.argv[1]).read_text())
model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32)
lora = None
if asked["method"] == "lora":
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
common = dict(output_dir=asked["out"], per_device_train_batch_size=asked["batch"], max_steps=asked["steps"],
              learning_rate=1e-5, bf16=False, use_cpu=True, report_to=[], save_strategy="no", logging_steps=1,
              gradient_checkpointing=False, max_length=128, seed=0, disable_tqdm=True)

class Clock(TrainerCallback):
    seconds = []
    def on_step_begin(self, *_args, **_options):
        self.started = time.perf_counter()
    def on_step_end(self, *_args, **_options):
        self.seconds.append(time.perf_counter() - self.started)

data, clock = Dataset.from_list(asked["rows"]), Clock()
tokenizer = AutoTokenizer.from_pretrained(asked["model"])
kind, config = (DPOTrainer, DPOConfig) if asked["objective"] == "dpo" else (SFTTrainer, SFTConfig)
trainer = kind(model, args=config(**common), train_dataset=data, processing_class=tokenizer, peft_config=lora,
               callbacks=[clock])
trainer.train()
print("FOUND " + json.dumps(clock.seconds))
"""


def main() -> None:
    """Prints and publishes the figures; with a file as an argument, runs our side of one case instead."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if sys.argv[1:]:
        print("FOUND " + json.dumps(_ours(json.loads(Path(sys.argv[1]).read_text()))))
        return
    found = list[dict[str, Any]]()
    for objective, method in CASES:
        ours, theirs = list[float](), list[float]()
        for _ in range(REPEATS):
            ours += _run([sys.executable, "-m", "tests.benchmarks.finetune"], objective, method)
            theirs += _run([str(PEERS), "-c", TRL], objective, method)
        one, other = statistics.median(ours), statistics.median(theirs)
        case = {"objective": objective, "method": method, "ours_s": round(one, 3), "trl_s": round(other, 3)}
        found.append({**case, "ratio": other / one})
        print(
            f"{objective} {method}: {one:.2f} s a step, TRL {other:.2f} s, {other / one:.2f} times as fast", flush=True
        )
    rows = "\n".join(
        f"| {one['objective']}, {one['method']} | {one['ours_s']:.2f} s | {one['trl_s']:.2f} s | {one['ratio']:.2f} |"
        for one in found
    )
    publish(
        "Fine-tuning a language model (`make bench-finetune`)",
        f"""
SmolLM2-135M-Instruct on the demo's chats: {BATCH} rows (of preferences, pairs) a step, at most 128 tokens, float32,
LoRA of rank 16 on every linear layer. Median of the steps of {REPEATS} runs of each side, which take turns; the first
{WARM} steps of a run do not count. TRL 1.16.0 asks the reference of a preference at every step, we before the first.

| | ours, a step | TRL, a step | times as fast |
|---|---|---|---|
{rows}
""",
    )
    print(
        json.dumps(
            {"cases": [{**one, "ours_s": round(one["ours_s"], 3), "trl_s": round(one["trl_s"], 3)} for one in found]}
        )
    )


def _run(command: list[str], objective: str, method: str) -> list[float]:
    """Seconds of the steps that count."""
    inputs = fetch_chat(HOME.resolve())
    with tempfile.TemporaryDirectory() as name:
        asked = {
            "model": str(inputs.model),
            "objective": objective,
            "method": method,
            "rows": _rows(inputs.chats, objective),
            "steps": STEPS,
            "batch": BATCH,
            "out": name,
        }
        path = Path(name) / "asked.json"
        path.write_text(json.dumps(asked))
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    line = next((one for one in done.stdout.splitlines() if one.startswith("FOUND ")), None)
    if line is None:
        raise SystemExit(done.stderr[-2000:])
    seconds: list[float] = json.loads(line.removeprefix("FOUND "))
    return seconds[WARM:]


def _rows(chats: Path, objective: str) -> list[dict[str, Any]]:
    """Prompts with their answers, or with the answer of another chat as the rejected one."""
    lines = chats.read_text(encoding="utf-8").splitlines()[: STEPS * BATCH + 1]
    messages = [json.loads(line)["messages"] for line in lines]
    rows = []
    for (asked, said), (_, other) in pairwise(messages):
        rows.append(
            {"prompt": [asked], "chosen": [said], "rejected": [{**other, "content": f"{other['content']} Or not."}]}
            if objective == "dpo"
            else {"prompt": [asked], "completion": [said]}
        )
    return rows


def _ours(asked: dict[str, Any]) -> list[float]:
    from backends.tables.chats import chat_of
    from backends.tables.reading import Row
    from layerdrift.contract.request import FineTune
    from tests.builders.stages import on_progress, resolved
    from workers.models.chats import Renderer
    from workers.stages.common.inputs import Split
    from workers.stages.common.training import Recipe, train
    from workers.stages.finetune.language import language_data
    from workers.stages.finetune.stage import _fresh

    settings = FineTune.model_validate(
        {"objective": asked["objective"], "method": asked["method"], "batch_size": asked["batch"], "max_length": 128,
         "max_steps": asked["steps"], "learning_rate": 1e-5, "precision": "float32", "keep": "last"}
    )  # fmt: skip
    given = resolved(Path(asked["model"]))
    renderer, rows = Renderer(given.tokenizer), []
    for record in asked["rows"]:
        kind: Any = "preference" if "chosen" in record else "prompt_completion"
        text, others = renderer.rendered(chat_of(record, kind))
        rows.append(Row(text, None, others=others))
    data = language_data(given.tokenizer, Split([], rows, []), settings)
    with _fresh(given, data, Recipe.of(settings, 0)) as (model, prepared):
        return train(model, prepared, Recipe.of(settings, 0), on_progress).step_seconds


if __name__ == "__main__":
    main()
