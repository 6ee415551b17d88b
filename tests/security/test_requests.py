"""No request stops the service: bodies, configurations, data, policies, records and connections have bounds."""

from __future__ import annotations

import io
import json
import random
import shutil
import socket
import threading
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import uvicorn
from safetensors.torch import save_file
from starlette.types import Receive, Scope, Send

from deploy.embedded.ports import LOOPBACK, choose
from deploy.embedded.stack import Stack
from layerdrift import gate, policies
from layerdrift.backends import checkpoint_configs, sources, uploads
from layerdrift.backends.deployment import Deployment
from layerdrift.backends.jobs import PAGE_BYTES
from layerdrift.backends.records import JobRecord
from layerdrift.backends.table_rows import Columns, Row, RowReader, within_limit
from layerdrift.cli import inputs
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import InputError, LateError, RateError, StageError
from layerdrift.contract.policy import Policy
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.upload import UploadRequest
from service import connections, limits
from service.concurrency import ConcurrencyLimit
from service.connections import BoundedProtocol
from service.json_structure import MAX_DEPTH, MAX_FIELDS, MAX_STRUCTURE_BYTES, JsonStructure
from tests.conftest import make_texts, save_model, tiny_bert
from tests.integration.test_pipeline import WatchedSources, submitted
from workers import pipeline
from workers.models.adapters import merge_adapter
from workers.models.staging import stage_checkpoint
from workers.models.texts import encode
from workers.models.tokenizers import load_tokenizer
from workers.stages import parquet_check
from workers.stages.parquet_rows import parquet_rows

MIB = 1 << 20
POST = "/v1/analyses"


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    "body",
    [
        nested(1_300_000),
        b"[" * 4_000_000,
        b"[" + b",".join([b"[" * 20 + b"]" * 20] * 5_000) + b"]",
        json.dumps({f"field{number}": 1 for number in range(400_000)}).encode(),
        b"[" + b"1," * 3_900_000 + b"1]",
        b'"' * 8_000_000,
        b'\\"\\\\"' * 1_600_000,
        b'"' + b'\\"' * 1_600_000 + b'"',
        b'{"seed": ' + b"9" * 7_000_000 + b"}",
        ('{"\u0122":[' + "1," * 1_000_000 + "1]}").encode("utf-16-le"),
        "{}".encode("utf-32"),
    ],
    ids=[
        "objects",
        "arrays",
        "many arrays",
        "fields",
        "numbers",
        "quotes",
        "escapes",
        "escaped quotes",
        "digits",
        "utf-16",
        "utf-32",
    ],
)
def test_bodies_that_are_long_to_read_are_refused_before_they_are(stack: Stack, body: bytes) -> None:
    with pytest.raises(InputError):
        JsonStructure().feed(body)
    said = httpx.post(stack.url + POST, content=body, headers={"Content-Type": "application/json"}, timeout=30)
    assert said.status_code == 422
    assert len(said.content) < 4_000


def structure(body: bytes) -> tuple[int, int]:
    """The naive count: bytes beside what stands in quotes, and the deepest level."""
    size = depth = deepest = 0
    in_string = escaped = False
    for byte in body:
        if in_string and escaped:
            escaped = False
        elif in_string and byte == 0x5C:
            escaped = True
        elif byte == 0x22:
            in_string = not in_string
            size += 1
        elif not in_string:
            size += 1
            depth += {0x5B: 1, 0x7B: 1, 0x5D: -1, 0x7D: -1}.get(byte, 0)
            deepest = max(deepest, depth)
    return size, deepest


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1_000_000])
def test_structure_is_counted_right_wherever_the_bytes_are_cut(piece: int) -> None:
    chosen = random.Random(piece)
    for _ in range(300):
        texts = ["".join(chosen.choices('\\"[]{}a,: é', k=chosen.randrange(12))) for _ in range(5)]
        levels = chosen.randrange(MAX_DEPTH - 3, MAX_DEPTH + 2)
        body = b"[" * levels + json.dumps({"x": texts, "y": [[1, None]]}, ensure_ascii=False).encode() + b"]" * levels
        _, deepest = structure(body)
        counted = JsonStructure()
        refused = False
        try:
            for start in range(0, len(body), piece):
                counted.feed(body[start : start + piece])
        except InputError:
            refused = True
        assert refused == (deepest > MAX_DEPTH)


def test_as_much_structure_as_may_be_is_taken_and_no_more() -> None:
    text = json.dumps(['a "quoted" \\ [{,:}] text ' * 1_000] * 100).encode()
    free = MAX_STRUCTURE_BYTES - structure(text)[0]
    JsonStructure().feed(text + b" " * free)
    with pytest.raises(InputError, match="characters of JSON"):
        JsonStructure().feed(text + b" " * (free + 1))
    JsonStructure().feed(json.dumps({f"f{number}": ":" for number in range(MAX_FIELDS)}).encode())
    with pytest.raises(InputError, match="fields"):
        JsonStructure().feed(json.dumps({f"f{number}": 1 for number in range(MAX_FIELDS + 1)}).encode())
    for odd in (b"", b'"', b'"\\', b"\\", b"]]]]", b"\xff"):
        JsonStructure().feed(odd)


def test_each_route_takes_no_more_than_it_needs(stack: Stack) -> None:
    for path, size in (
        ("/v1/keys", 65 << 10),
        ("/v1/uploads", 65 << 10),
        (POST, 8 * MIB + 1),
        ("/v1/inspect", 3 * MIB),
    ):
        said = httpx.post(stack.url + path, content=b" " * size, headers={"Content-Type": "application/json"})
        assert (path, said.status_code, said.json()["type"]) == (path, 413, "urn:layerdrift:too-large")


def test_a_body_with_many_mistakes_is_answered_with_few(stack: Stack) -> None:
    said = httpx.post(stack.url + POST, json={f"f{number}": 1 for number in range(2_500)})
    assert said.status_code == 422
    assert len(said.json()["errors"]) <= 100
    assert len(said.content) < 10_000


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
    with pytest.raises(InputError, match="up to 16384 are read"):
        checkpoint_configs.check_adapter_config(whole | changes, "/tuned/uri", "x")


def request(base: Path, tuned: Path, **more: Any) -> dict[str, Any]:
    return {
        "base": {"uri": base.as_uri()},
        "tuned": {"uri": tuned.as_uri()},
        "dataset": {"inline": {"texts": make_texts(60)}},
        "analysis": {"sae": None, "grafts": False},
        **more,
    }


def test_a_job_that_is_stuck_is_cancelled_with_its_process(
    deployment: Deployment, base_folder: Path, noised_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, go_on, stuck = threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr(pipeline, "_end_process", ended.set)

    def hang() -> None:
        stuck.set()
        go_on.wait(60)

    hanging = deployment.__class__(
        **{
            **deployment.__dict__,
            "settings": deployment.settings.model_copy(update={"cancel_seconds": 1}),
            "sources": WatchedSources(deployment, hang),
        }
    )
    job = submitted(deployment, AnalysisRequest.model_validate(request(base_folder, noised_folder)))
    thread = threading.Thread(target=pipeline.run_job, args=(hanging, job.id))
    thread.start()
    try:
        assert stuck.wait(60)
        deployment.jobs.cancel(job.id)
        assert ended.wait(20)
        assert deployment.jobs.get(job.id).status is Status.CANCELLED
        assert not deployment.jobs.leased(job.id)
    finally:
        go_on.set()
        thread.join()
    assert deployment.jobs.get(job.id).status is Status.CANCELLED


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
    with pytest.raises(InputError, match="a part of it expands to more than may be read"):
        list(parquet_rows(path, RowReader(Columns("text", None, False), "x"), 16 * MIB))


def test_a_file_that_ends_the_process_that_reads_it_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a"] * 10}), path)
    ends = tmp_path / "python"
    ends.write_text("#!/bin/sh\nkill -ABRT $$\n")  # as Arrow does on some damaged footers
    ends.chmod(0o700)
    monkeypatch.setattr("workers.stages.parquet_check.sys.executable", str(ends))
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


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "lzma"])
def test_a_zip_packed_without_a_bound_is_refused(deployment: Deployment, base_folder: Path, method: int) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.write(base_folder / "config.json", "config.json", compress_type=method)
    asked = {**request(base_folder, base_folder), "tuned": {"uri": zip_upload(deployment, made.getvalue())}}
    with pytest.raises(InputError, match="deflate"):
        deployment.sources.pin(AnalysisRequest.model_validate(asked))


def test_a_zip_with_a_long_directory_is_refused_before_it_is_read(deployment: Deployment, base_folder: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for number in range(20_000):
            file.writestr(f"{number:040d}", b"")
    asked = {**request(base_folder, base_folder), "tuned": {"uri": zip_upload(deployment, made.getvalue())}}
    with pytest.raises(InputError, match="directory"):
        deployment.sources.pin(AnalysisRequest.model_validate(asked))


def test_a_zip_with_a_file_without_a_name_is_an_error(deployment: Deployment, base_folder: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("QQQ", b"x")
    broken = made.getvalue().replace(b"QQQ", b"\0QQ")
    asked = {**request(base_folder, base_folder), "tuned": {"uri": zip_upload(deployment, broken)}}
    with pytest.raises(InputError):
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
        {"target_modules": "a" * 10_001},
    ],
    ids=str,
)
def test_expressions_of_adapters_that_match_for_ever_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expression"):
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


@pytest.mark.parametrize(
    "value", ["!!bool foo", "!!int ''", "!!float ''", "!!timestamp foo", "1" + ":0" * 600 + ".0", "2021-99-99", "!x 1"]
)
def test_values_of_yaml_that_have_no_value_are_errors(value: str, tmp_path: Path) -> None:
    with pytest.raises(policies.PolicyError):
        policies.load(f"rules: [{{id: a, message: m, path: layers.length, max: {value}}}]")
    with pytest.raises(policies.PolicyError):
        policies.load(f"{value}: 1\nrules: []")
    with pytest.raises(InputError, match="not YAML"):
        inputs._value(value, f"name={value}")
    path = tmp_path / "request.yaml"
    path.write_text(f"name: {value}")
    with pytest.raises(InputError, match="neither YAML nor JSON"):
        inputs._read(path)


def test_rows_are_counted_whatever_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerdrift.backends.table_rows.MAX_ROWS", 3)
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
    with pytest.raises(InputError, match=r"times those of the zip"):
        deployment.sources.pin(AnalysisRequest.model_validate(asked))


def test_a_copy_that_would_fill_the_disk_is_not_begun(tmp_path: Path) -> None:
    sources._check_room(tmp_path, 1, "x")
    with pytest.raises(StageError, match="No space left on device"):
        sources._check_room(tmp_path, 10**18, "x")


BOMB = "a: &a [x,x,x,x]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
)
RULE = "rules:\n  - id: a\n    message: m\n    path: layers[*].drift\n    max: {}\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (BOMB, 2, "aliases"),
        ("[" * 200_000, 1, "levels"),
        ("- " * 100_000, 1, "levels"),
        ("? [a]\n: 1\n", 1, "a name must be a word"),
        (RULE.format("9" * 5_000), 5, "5000 characters without quotes"),
        (RULE.format('"' + "9" * 5_000 + '"'), 5, "valid number"),
        ("rules: []\nx: !!python/object:os.system y\n", 2, "tags"),
        ("a: 1\n" * 90_000, 1, "policies have up to"),
        ("a: 2001-13-45\n", 1, "month"),
        ("".join(f"f{number}: 1\n" for number in range(4_000)), 1, "missing"),
    ],
    ids=["aliases", "arrays", "lists", "list key", "digits", "quoted digits", "object", "length", "date", "fields"],
)
def test_a_policy_that_is_none_is_an_error_with_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(policies.PolicyError, match=message) as raised:
        policies.load(text, "p.yaml")
    assert raised.value.errors[0].detail.startswith(f"p.yaml:{line}:") or f"p.yaml:{line}:" in raised.value.detail
    assert len(raised.value.errors) <= 100


def test_a_policy_over_every_token_is_bounded(pair_report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(number: int, path: str) -> dict[str, Any]:
        return {"id": f"r{number}", "message": "m", "path": path, "max": -1}

    every = "tokens.texts[*].drift[*][*]"
    verdict = gate.judge(Policy.model_validate({"rules": [rule(0, every)]}), pair_report)
    (check,) = verdict.checks
    assert len(check.findings) == 100 < check.matched
    assert f"{check.matched} of {check.matched} not" in check.detail
    monkeypatch.setattr(gate, "MAX_MATCHES_IN_ALL", 2 * check.matched)
    with pytest.raises(InputError, match="rules match more than") as raised:
        gate.judge(Policy.model_validate({"rules": [rule(number, every) for number in range(200)]}), pair_report)
    assert len(raised.value.errors) <= 101
    monkeypatch.setattr(gate, "MAX_MATCHES", 50)
    with pytest.raises(InputError, match="matches more than 50 numbers"):
        gate.judge(Policy.model_validate({"rules": [rule(0, every)]}), pair_report)


@pytest.fixture(scope="module")
def pair_report(stack: Stack, base_folder: Path, noised_folder: Path) -> Report:
    from layerdrift.sdk import Client

    with Client(stack.url) as client:
        asked = request(base_folder, noised_folder)
        asked["analysis"]["texts"] = make_texts(8, length=40)
        analysis = client.submit(AnalysisRequest.model_validate(asked))
        return client.wait(analysis.id, timeout=120)


def test_a_page_of_long_records_ends_early_and_goes_on(deployment: Deployment, base_folder: Path) -> None:
    long = request(base_folder, base_folder)
    long["analysis"]["texts"] = ["x" * 9_000] * 100
    made = {submitted(deployment, AnalysisRequest.model_validate(long | {"seed": seed})).id for seed in range(12)}
    seen: list[JobRecord] = []
    cursor: str | None = None
    pages = 0
    while pages == 0 or cursor:
        page, cursor = deployment.jobs.page("default", 100, cursor)
        assert sum(len(one.model_dump_json()) for one in page) < 2 * PAGE_BYTES
        seen, pages = seen + page, pages + 1
    assert pages > 1
    assert made == {one.id for one in seen}
    assert len(seen) == len(made)


@pytest.mark.parametrize(
    "changes",
    [
        {"tags": {"k": "x" * 501}},
        {"tags": {"k" * 101: "x"}},
        {"tags": {"": "x"}},
        {"tags": {str(number): "x" for number in range(51)}},
        {"name": "x" * 201},
        {"dataset": {"uri": "file:///x.csv", "text_column": "x" * 501}},
    ],
)
def test_strings_of_records_have_lengths(stack: Stack, base_folder: Path, changes: dict[str, Any]) -> None:
    said = httpx.post(stack.url + POST, json=request(base_folder, base_folder) | changes)
    assert said.status_code == 422


def test_long_requests_are_counted_for_each_tenant_and_given_back() -> None:
    limit = ConcurrencyLimit("streams", of_client=2, in_all=3)
    with limit.held("a"), limit.held("a"):
        with pytest.raises(RateError, match="2 streams of this client"), limit.held("a"):
            pass
        with limit.held("b"), pytest.raises(RateError, match="3 streams are open at this server"), limit.held("c"):
            pass
    with limit.held("a"), limit.held("c"):
        pass


def test_streams_of_events_are_bounded_for_each_client(stack: Stack, base_folder: Path) -> None:
    deployment = Deployment.connect(stack.settings)
    asked = AnalysisRequest.model_validate(request(base_folder, base_folder, seed=9))
    job = JobRecord(
        id="an_" + "b" * 26, created_at=datetime.now(UTC), request=asked, pins=deployment.sources.pin(asked)
    )
    deployment.jobs.submit(job)  # nobody is told of it yet
    path = f"{POST}/{job.id}/events"
    opened: list[httpx.Response] = []
    limit = httpx.Limits(max_connections=200)
    with httpx.Client(base_url=stack.url, limits=limit, timeout=30) as http:
        try:
            for _ in range(70):
                opened.append(http.send(http.build_request("GET", path), stream=True))
                if opened[-1].status_code != 200:
                    break
            assert [one.status_code for one in opened] == [200] * 64 + [429]
            assert opened[-1].headers["Retry-After"] == "5"
            assert int(deployment.jobs._redis.info("clients")["connected_clients"]) < 150
        finally:
            for one in opened:
                one.close()
        deadline = time.monotonic() + 30
        while http.send(http.build_request("GET", path), stream=True).status_code == 429:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    deployment.jobs.cancel(job.id)


def test_uploads_that_never_come_are_bounded_and_forgotten(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_WAITING", 3)
    waiting = deployment.waiting_uploads
    made = []
    for _ in range(3):
        waiting.admit("t")
        made.append(deployment.uploads.announce("t", UploadRequest(filename="x.csv")))
        waiting.put("t", made[-1].id)
    with pytest.raises(RateError, match="3 uploads wait"):
        waiting.admit("t")
    waiting.admit("other")
    receiver = deployment.uploads.receive("t", made[0].id)
    receiver.take(b"text\na\n")
    receiver.finish()
    waiting.forget("t", made[0].id)
    waiting.admit("t")
    monkeypatch.setattr(uploads, "WAITING_SECONDS", -1)
    waiting.admit("t")
    assert deployment.uploads.get("t", made[0].id).status == "complete"
    with pytest.raises(Exception, match="there is no upload"):
        deployment.uploads.get("t", made[1].id)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server with the product's protocol and body limits, which waits a second; its port."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    monkeypatch.setattr(limits, "BODY_SECONDS", 1.0)

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    port = choose({"x": 0})["x"]
    app = limits.BodyLimitMiddleware(answered)
    config = uvicorn.Config(app, port=port, http=connections.BoundedProtocol, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield port
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b"408"),
        (b"GET / HT", b"408"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ", b"408"),
        (b"GET / HTTP/1.1\r\nX-A: " + b"a" * 70_000, b"431"),
        (b"GET /" + b"a" * 70_000, b"431"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc", b"408"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT", b"200"),
    ],
    ids=[
        "nothing",
        "line",
        "headers",
        "long header",
        "long path",
        "body",
        "second",
    ],
)
def test_a_request_that_does_not_come_is_not_waited_for(impatient: int, sent: bytes, status: bytes) -> None:
    with socket.create_connection((LOOPBACK, impatient), timeout=10) as there:
        there.sendall(sent)
        said = answer_of(there)
    assert said.split(b" ")[1] == status
    if sent.count(b"HTTP/1.1") == 1 and sent.endswith(b"GET / HT"):
        assert b" 408 " in said


HALF = b"POST /v1/analyses HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b'"' + b"a" * 70_000


def answer_of(there: socket.socket) -> bytes:
    said = b""
    while chunk := there.recv(65_536):  # until the server hangs up
        said += chunk
    return said


def test_half_sent_bodies_are_bounded_for_each_client(impatient: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LARGE_BODIES", ConcurrencyLimit("bodies", of_client=3, in_all=9))
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_connection((LOOPBACK, impatient), timeout=10)) for _ in range(4)]
        for one in sockets:
            one.sendall(HALF)
        said = [answer_of(one) for one in sockets]
    assert sorted(one.split(b" ")[1] for one in said) == [b"408"] * 3 + [b"429"]
    (refused,) = (one for one in said if b" 429 " in one)
    assert b"retry-after: 5" in refused.lower()
    assert b"3 bodies of this client" in refused


def test_connections_are_bounded_for_each_client(impatient: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS_OF_CLIENT", 3)
    with ExitStack() as opened:
        for _ in range(3):
            opened.enter_context(socket.create_connection((LOOPBACK, impatient), timeout=10))
        more = opened.enter_context(socket.create_connection((LOOPBACK, impatient), timeout=10))
        said = answer_of(more)
        assert said.startswith(b"HTTP/1.1 429")
        assert b"Retry-After: 5" in said
    deadline = time.monotonic() + 10
    while httpx.get(f"http://{LOOPBACK}:{impatient}/").status_code == 429:  # those that hung up are forgotten
        assert time.monotonic() < deadline
    assert not BoundedProtocol._open[LOOPBACK] > 1


def test_an_upload_whose_bytes_stop_coming_is_let_go(impatient: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UPLOAD_IDLE_SECONDS", 0.5)
    with socket.create_connection((LOOPBACK, impatient), timeout=10) as there:
        there.sendall(b"PUT /v1/uploads/up_x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        started = time.monotonic()
        assert b" 200 " in there.recv(65_536)  # the app was told that the client has gone
        assert 0.4 < time.monotonic() - started < 5


@pytest.mark.parametrize(
    "beside", [b"0\r\n" + b"a: b\r\n" * 80_000, b"0\r\nx: " + b"a" * 400_000, b"1;" + b"a" * 400_000]
)
def test_what_stands_beside_a_body_has_a_size(impatient: int, monkeypatch: pytest.MonkeyPatch, beside: bytes) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 60.0)
    with socket.create_connection((LOOPBACK, impatient), timeout=10) as there:
        there.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            there.sendall(beside)
            assert there.recv(100) == b""  # hung up, long before the deadline of the body
        except ConnectionError:
            return


def test_requests_that_come_are_answered_one_after_another(impatient: int) -> None:
    with httpx.Client(base_url=f"http://{LOOPBACK}:{impatient}") as http:
        assert [http.get("/").status_code for _ in range(5)] == [200] * 5
        time.sleep(1.5)
        assert http.post("/", content=b"x" * 60_000).status_code == 200


def test_an_answer_before_the_body_has_come_does_not_keep_the_connection(stack: Stack, impatient: int) -> None:
    with socket.create_connection((LOOPBACK, impatient), timeout=10) as there:
        there.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n")
        said = b""
        while chunk := there.recv(65_536):  # until the server hangs up
            said += chunk
    assert said.startswith(b"HTTP/1.1 413")


def test_a_stream_resumes_after_an_id_that_there_may_be(stack: Stack, pair_report: Report) -> None:
    path = f"{stack.url}{POST}/{pair_report.analysis_id}/events"
    for last in ("9" * 20 + "-" + "9" * 20, "9" * 25 + "-0", "nonsense"):
        said = httpx.get(path, headers={"Last-Event-ID": last}, timeout=10).text
        assert said.rstrip().split("event: ")[-1].startswith("done")


def test_a_tokenizer_that_gives_up_fails_its_job_alone(tmp_path: Path) -> None:
    folder = save_model(tiny_bert(), tmp_path / "x")
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps(state | {"pre_tokenizer": split}))
    with pytest.raises(InputError, match="gives up on one of the texts"):
        encode(load_tokenizer(folder, "/base/uri"), ["x" * 200], None)
    longer = [{"type": "Replace", "pattern": {"String": "q"}, "content": "q" * 64}] * 3
    path.write_text(json.dumps(state | {"normalizer": {"type": "Sequence", "normalizers": longer}}))
    with pytest.raises(InputError, match="times longer"):
        load_tokenizer(folder, "/base/uri")


def test_a_late_body_is_a_problem() -> None:
    assert LateError("x").problem().status == 408
