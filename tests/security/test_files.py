"""No file stops a worker: configurations, adapters, zips, Parquet files and tokenizers have bounds."""

from __future__ import annotations

import io
import json
import shutil
import time
import uuid
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from backends.deployment import Deployment
from backends.sources import checkpoint_configs, pinning
from backends.tables.rows import Columns, Row, RowReader, within_limit
from deploy.embedded.stack import Stack
from layerdrift.contract.errors import InputError, StageError
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.upload import UploadRequest
from tests.builders.models import save_model, tiny_bert
from tests.security.requested import MIB, POST, request
from workers.models.adapters import merge_adapter
from workers.models.staging import stage_checkpoint
from workers.models.texts import encode
from workers.models.tokenizers import load_tokenizer
from workers.stages.resolve import parquet_check
from workers.stages.resolve.parquet_rows import parquet_rows


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 30_000_000},
        {"num_hidden_layers": 900, "num_experts": 4_096},
        {"vision_config": {"depth": 10**9}},
        {"num_attention_heads": 10**7},
        {"anything": 10**4_000},
        {"deep": json.loads("[" * 40 + "]" * 40)},
    ],
    ids=["labels", "experts", "inside", "heads", "digits", "levels"],
)
def test_numbers_of_a_configuration_are_bounded_at_the_post(
    stack: Stack, base_folder: Path, roots: Path, changes: dict[str, Any]
) -> None:
    folder = save_model(tiny_bert(1), roots / f"numbers-{uuid.uuid4().hex}")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    asked = request(base_folder, folder)
    said = httpx.post(stack.url + POST, json=asked, timeout=30)
    assert said.status_code == 422, said.text
    assert said.json()["errors"][0]["pointer"] == "/tuned/uri"


def test_every_family_of_transformers_stays_within_the_bounds() -> None:
    from transformers import CONFIG_MAPPING

    refused = []
    for kind, config in CONFIG_MAPPING.items():
        try:
            found = config().to_dict() | {"model_type": kind}
        except Exception:
            continue
        try:
            checkpoint_configs._check_numbers(found, "/base/uri", kind)
        except InputError as error:
            refused.append(error.detail)
    assert refused == []


@pytest.mark.parametrize(
    "changes",
    [{"r": 10**9}, {"rank_pattern": {"query": 10**9}}, {"layer_replication": [[0, 3]] * 10_000}, {"r": 10**4_000}],
    ids=["rank", "pattern", "copies", "digits"],
)
def test_numbers_of_an_adapter_are_bounded(changes: dict[str, Any]) -> None:
    whole = {"peft_type": "LORA", "r": 8, "target_modules": ["query"], "layer_replication": None}
    checkpoint_configs.check_adapter_config(whole, "/tuned/uri", "x")
    with pytest.raises(InputError, match="the limit is 16384"):
        checkpoint_configs.check_adapter_config(whole | changes, "/tuned/uri", "x")


def shared(value: str, rows: int) -> pa.Array:
    """A column whose rows all have one value, which stands in the file once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (pa.table({"text": shared("x" * MIB, 5_700)}), "text"),
        (pa.table({"text": ["a"] * 5_000, "label": shared("x" * MIB, 5_000)}), "text"),
        (pa.table({"text": pa.nulls(5_000_001, pa.string())}), "text"),
        (pa.table({"text": ["x" * MIB] * 20}), "text"),
        (pa.table({"data": pa.StructArray.from_arrays([shared("x" * MIB, 5_700)], ["text"])}), "data.text"),
    ],
    ids=["texts", "labels", "nulls", "compressed", "nested"],
)
def test_a_small_parquet_file_does_not_become_a_large_one(tmp_path: Path, table: pa.Table, column: str) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, compression="zstd")
    assert path.stat().st_size < MIB
    before = pa.total_allocated_bytes()
    with pytest.raises(InputError, match="expands to more than"):
        list(parquet_rows(path, RowReader(Columns(column, None, False), "x"), 16 * MIB))
    assert pa.total_allocated_bytes() - before < 64 * MIB


def test_a_page_that_expands_without_measure_is_expanded_by_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_check, "BASE_BYTES", 512 * MIB)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["x" * (600 * MIB)]}), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < MIB
    with pytest.raises(InputError, match="a part of it expands to more than the limit"):
        list(parquet_rows(path, RowReader(Columns("text", None, False), "x"), 16 * MIB))


def test_a_file_that_ends_the_process_that_reads_it_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a"] * 10}), path)
    ends = tmp_path / "python"
    ends.write_text("#!/bin/sh\nkill -ABRT $$\n")  # as Arrow does on some damaged footers
    ends.chmod(0o700)
    monkeypatch.setattr("workers.stages.resolve.parquet_check.sys.executable", str(ends))
    with pytest.raises(InputError, match="damaged"):
        list(parquet_rows(path, RowReader(Columns("text", None, False), "x"), 64 * MIB))


def test_a_struct_with_two_fields_of_one_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    twice = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(pa.table({"data": twice}), path)
    with pytest.raises(InputError, match="duplicate"):
        list(parquet_rows(path, RowReader(Columns("data.text", None, False), "x"), 64 * MIB))


def zip_upload(deployment: Deployment, content: bytes) -> str:
    upload = deployment.uploads.announce("default", UploadRequest(filename="m.zip"))
    receiver = deployment.uploads.receive("default", upload.id)
    receiver.take(content)
    receiver.finish()
    return upload.uri


def made_zip(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return made.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (made_zip({"config.json": b"{}"}, zipfile.ZIP_BZIP2), "deflate"),
        (made_zip({"config.json": b"{}"}, zipfile.ZIP_LZMA), "deflate"),
        (made_zip({f"{number:040d}": b"" for number in range(20_000)}), "directory"),
        (made_zip({"QQQ": b"x"}).replace(b"QQQ", b"\0QQ"), "config.json"),
    ],
    ids=["bzip2", "lzma", "long directory", "no name"],
)
def test_a_zip_that_is_odd_is_refused_before_it_is_expanded(
    deployment: Deployment, base_folder: Path, content: bytes, message: str
) -> None:
    asked = {**request(base_folder, base_folder), "tuned": {"uri": zip_upload(deployment, content)}}
    with pytest.raises(InputError, match=message):
        deployment.sources.pin(AnalysisRequest.model_validate(asked))


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "(([a-z.0-9])+)+!"},
        {"target_modules": "(a|a)*b"},
        {"target_modules": "(?x)(a)  {2,}b"},
        {"exclude_modules": "(.*)*x"},
        {"layers_pattern": ["x", "(.*)+"]},
        {"rank_pattern": {"(([a-z.0-9])+)+!": 2}},
        {"alpha_pattern": {".*.*.*.*.*.*!": 2}},
        {"target_modules": "[a-z.]?" * 25 + "!"},
        {"target_modules": "a" * 10_001},
    ],
    ids=str,
)
def test_expressions_of_adapters_that_match_for_ever_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="pattern"):
        checkpoint_configs.check_adapter_config({"peft_type": "LORA"} | changes, "/tuned/uri", "x")


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q_proj|v_proj)",
        r"(.*\.)?layers\.\d+\.self_attn\.(q|k|v)_proj",
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.mlp)",
        "all-linear",
        ["q_proj", "v_proj"],
    ],
    ids=str,
)
def test_expressions_that_people_use_are_read(pattern: object) -> None:
    checkpoint_configs.check_adapter_config({"peft_type": "LORA", "target_modules": pattern}, "/tuned/uri", "x")


@pytest.mark.parametrize(
    "weight",
    [
        {"base_model.model.classifier.weight": torch.zeros(3_000_000, 0)},
        {"base_model.model.bert.embeddings.word_embeddings.weight": torch.zeros(2_000_000_000, 0)},
        {"base_model.model.bert.embeddings.word_embeddings.weight": torch.zeros(200_000, 1)},
        {"base_model.model.classifier.weight": torch.zeros(200_000, 1)},
        {"base_model.model.classifier.weight": torch.tensor(1.0)},
    ],
    ids=["empty head", "empty embeddings", "embeddings", "head", "scalar"],
)
def test_tensors_of_adapters_make_no_large_models(
    base_folder: Path, tmp_path: Path, weight: dict[str, torch.Tensor]
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["query"], "task_type": "SEQ_CLS"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file(weight, adapter / "adapter_model.safetensors")
    started = time.monotonic()
    with pytest.raises(InputError, match=r"empty|embeddings|matrix"):
        merge_adapter(base_folder, adapter, tmp_path / "merged", "/tuned/uri")
    assert time.monotonic() - started < 10


def test_weights_under_two_names_are_refused(base_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base_folder, folder)
    save_file({"module.a": torch.ones(1), "module._orig_mod.a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(InputError, match="several names, first a"):
        stage_checkpoint(folder, "/tuned/uri")


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "Prepend", "prepend": "a " * 1_000}},
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "[UNK]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"[UNK]": {"id": "[UNK]", "ids": [0] * 3_000, "tokens": ["[UNK]"] * 3_000}},
            }
        },
    ],
    ids=["prepend", "template"],
)
def test_a_tokenizer_adds_no_thousands_of_tokens(base_folder: Path, tmp_path: Path, part: dict[str, Any]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base_folder, folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | part))
    with pytest.raises(InputError, match="64"):
        load_tokenizer(folder, "/tuned/uri")


def test_rows_are_counted_whatever_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.tables.rows.MAX_ROWS", 3)
    assert len(list(within_limit([Row("a", None)] * 3, "x"))) == 3
    with pytest.raises(InputError, match="more than 3 rows"):
        list(within_limit([Row("a", None)] * 4, "x"))


def test_a_zip_that_expands_without_measure_is_refused(
    deployment: Deployment, base_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(base_folder / "config.json", "config.json")
        file.writestr("model.safetensors", bytes(200 * MIB))
    upload = deployment.uploads.announce("default", UploadRequest(filename="bomb.zip"))
    receiver = deployment.uploads.receive("default", upload.id)
    receiver.take(path.read_bytes())
    receiver.finish()
    asked = {**request(base_folder, base_folder), "tuned": {"uri": upload.uri}}
    with pytest.raises(InputError, match=r"times the size of the zip"):
        deployment.sources.pin(AnalysisRequest.model_validate(asked))


def test_a_copy_that_would_fill_the_disk_is_not_begun(tmp_path: Path) -> None:
    pinning._check_room(tmp_path, 1, "x")
    with pytest.raises(StageError, match="No space left on device"):
        pinning._check_room(tmp_path, 10**18, "x")


def test_a_tokenizer_that_gives_up_fails_its_job_alone(tmp_path: Path) -> None:
    folder = save_model(tiny_bert(), tmp_path / "x")
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps(state | {"pre_tokenizer": split}))
    with pytest.raises(InputError, match="failed on one of the texts"):
        encode(load_tokenizer(folder, "/base/uri"), ["x" * 200], None)
    longer = [{"type": "Replace", "pattern": {"String": "q"}, "content": "q" * 64}] * 3
    path.write_text(json.dumps(state | {"normalizer": {"type": "Sequence", "normalizers": longer}}))
    with pytest.raises(InputError, match="times longer"):
        load_tokenizer(folder, "/base/uri")
