"""Metadata in, caller out."""

from __future__ import annotations

import pytest

from cluster.identity import CallerInterceptor, IdentityConfig, TenantLimits
from model.errors import InvalidRequest


def test_without_configuration_everyone_is_local() -> None:
    interceptor = CallerInterceptor(IdentityConfig())
    assert interceptor.resolve((("x-tenant", "anna"), ("", "odd"))).tenant == "local"


def test_the_configured_entry_names_the_tenant() -> None:
    interceptor = CallerInterceptor(IdentityConfig("X-Tenant", TenantLimits(max_open_requests=3)))
    caller = interceptor.resolve((("user-agent", "test"), ("x-tenant", "anna")))
    assert (caller.tenant, caller.limits.max_open_requests) == ("anna", 3)


def test_a_call_without_the_entry_is_local() -> None:
    assert CallerInterceptor(IdentityConfig("x-tenant")).resolve(()).tenant == "local"


@pytest.mark.parametrize("name", ["", "a" * 129, "two\nlines", b"bytes"])
def test_a_name_that_cannot_be_one_is_refused(name: object) -> None:
    with pytest.raises(InvalidRequest, match="x-tenant"):
        CallerInterceptor(IdentityConfig("x-tenant")).resolve((("x-tenant", name),))
