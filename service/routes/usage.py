"""What a tenant has used."""

from __future__ import annotations

from fastapi import APIRouter

from layerdrift.contract.errors import ForbiddenError
from layerdrift.contract.key import Scope, Tenant
from layerdrift.contract.usage import Usage
from service.http.access import CurrentDeployment, Reader
from service.http.problems import documented
from service.use_cases.quotas import usage_of

router = APIRouter(tags=["usage"])


@router.get("/v1/usage", summary="Get usage and quota", responses=documented(401, 403, 422, 429, 503))
def get_usage(deployment: CurrentDeployment, key: Reader, tenant: Tenant | None = None) -> Usage:
    """Get what the tenant has used this month, and its quota. `tenant`: another one, for operators."""
    if tenant not in (None, key.tenant) and Scope.OPERATOR not in key.scopes:
        raise ForbiddenError("only the operator scope can read the usage of another tenant")
    return usage_of(deployment, tenant or key.tenant)
