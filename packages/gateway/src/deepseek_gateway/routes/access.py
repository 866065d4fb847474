"""Who may enter: the key of a request, its state, its address, its scope; in this order, before any body is read."""

from starlette.types import Scope

from deepseek_gateway.auth.netlist import Address, caller_address
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.auth.records import Scope as KeyScope
from deepseek_gateway.edge.context import context_of, credential
from deepseek_gateway.errors import ApiError
from deepseek_gateway.gateway import Gateway


async def authenticate(gateway: Gateway, scope: Scope, needed: KeyScope) -> KeyRecord:
    """The caller's key.

    Raises:
        ApiError: 401, there is no good key; 403, it is for something else, or not for use from this address.
    """
    key = context_of(scope).lent_key or await gateway.directory.authenticate(credential(scope))
    context = context_of(scope)
    context.key_id, context.org_id = key.public_id, key.org_id
    if key.cidrs is not None:
        _check_address(key, address_of(gateway, scope))
    if needed not in key.scopes:
        has = ", ".join(sorted(key.scopes))
        message = f"the key {key.public_id} has the scope {has}; this needs a key with {needed.value}"
        raise ApiError(403, message, code="wrong_scope")
    gateway.last_used.seen(key.public_id)
    return key


async def administrator(gateway: Gateway, scope: Scope, needed: KeyScope) -> Principal:
    """Who asks for an administrative act.

    Raises:
        ApiError: see `authenticate`.
    """
    return Principal.of_key(await authenticate(gateway, scope, needed), context_of(scope).request_id)


def address_of(gateway: Gateway, scope: Scope) -> Address | None:
    """The caller's address, seen through our own proxies; None when it cannot be told."""
    peer = scope.get("client")
    forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
    return caller_address(peer[0] if peer else None, forwarded, gateway.settings.proxies)


def _check_address(key: KeyRecord, address: Address | None) -> None:
    if not key.allows_address(address):
        where = "an address that cannot be told" if address is None else str(address)
        # The list itself stays out of the answer: who holds a stolen key must not learn where to use it.
        message = f"the key {key.public_id} may not be used from {where}: ask its administrator for this address"
        raise ApiError(403, message, code="address_not_allowed")
