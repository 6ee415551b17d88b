"""Documents of version 1 are read under the names of today."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from layerdrift.contract.plain import STORED
from layerdrift.contract.renamed import FIELDS, WARNING_CODES
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from tests.builders.reports import report

OLD_FIELDS = {new: old for old, new in FIELDS.items()}
OLD_CODES = {new: old for old, new in WARNING_CODES.items()}


def of_version_1(document: Any) -> Any:
    """The document as version 1 wrote it."""
    if isinstance(document, list):
        return [of_version_1(one) for one in document]
    if not isinstance(document, dict):
        return document
    old = {OLD_FIELDS.get(name, name): of_version_1(value) for name, value in document.items()}
    if "noise_floor" in old:
        old["null"] = old.pop("noise_floor")
    if old.get("code") in OLD_CODES:
        old["code"] = OLD_CODES[old["code"]]
    return old


def test_a_report_of_version_1_reads_as_today() -> None:
    codes = [{"code": code, "message": "x"} for code in OLD_CODES]
    given = report(warnings=codes)
    old = of_version_1(given.model_dump(mode="json")) | {"schema_version": 1}
    assert "nulls" in old["layers"][0]
    assert "null" in old["layers"][0]["similarity"]["token"]["cka"]
    assert [one["code"] for one in old["warnings"]] == list(WARNING_CODES)
    assert Report.model_validate_json(json.dumps(old)) == given


def test_a_stored_request_of_version_1_is_read_and_a_new_one_is_refused() -> None:
    body = {"base": {"uri": "s3://m/a"}, "tuned": {"uri": "s3://m/b"}, "dataset": {"uri": "s3://d/x.csv"}}
    request = AnalysisRequest.model_validate({**body, "tags": {"nulls": "mine"}})
    old = of_version_1(request.model_dump(mode="json"))
    assert AnalysisRequest.model_validate_json(json.dumps(old), context=STORED) == request
    with pytest.raises(ValidationError, match="nulls"):
        AnalysisRequest.model_validate(old)
