"""Inline data that become an upload are read back as what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from backends.storage.uploads import UploadStore
from backends.tables.reading import Columns, Row, RowReader, check_head, read_rows, table_encoding
from layerdrift.contract.request import DatasetRef
from service.use_cases.submit import _upload_inline


class Kept:
    """An upload store that remembers the bytes it is given."""

    body: bytes
    name: str

    def keep_inline(self, tenant: str, body: bytes, filename: str) -> Any:
        self.body, self.name = body, filename
        return type("Upload", (), {"uri": "upload://up_x"})


@pytest.mark.parametrize(
    ("inline", "rows"),
    [
        ({"texts": ["a", "b"]}, [Row("a", None), Row("b", None)]),
        ({"texts": ["a", ""], "labels": [1, "x"]}, [Row("a", "1"), Row("", "x")]),
        ({"texts": ["a", "b"], "pairs": ["c", ""]}, [Row("a", None, "c"), Row("b", None, "")]),
        ({"texts": ["a"], "labels": [0], "pairs": ["naïve"]}, [Row("a", "0", "naïve")]),
    ],
)
def test_inline_data_survive_as_an_upload(tmp_path: Path, inline: dict[str, Any], rows: list[Row]) -> None:
    kept, given = Kept(), DatasetRef.model_validate({"inline": inline, "max_examples": 50})
    _, dataset = _upload_inline(cast("UploadStore", kept), "tenant", given)
    assert (dataset.uri, dataset.max_examples, dataset.label_column) == ("upload://up_x", 50, None)
    columns, encoding, path = Columns.of(dataset, labelled=False), table_encoding(kept.name), tmp_path / "x"
    path.write_bytes(kept.body)
    check_head(kept.body, True, encoding, columns, "inline")
    assert list(read_rows(path, encoding, 10**6, RowReader(columns, "inline"))) == rows
