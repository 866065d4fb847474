"""The flags of what a key may do, for `key create` and `key change`."""

import argparse
from dataclasses import asdict
from typing import Any, Final

from deepseek_gateway.auth.records import KeyRecord, parse_scopes
from deepseek_gateway.cli.common import Administration, parse_moment, words
from deepseek_gateway.cli.people import owner_id
from deepseek_gateway.people.records import OwnerKind

NONE: Final = "none"
_LIMITS: Final = {
    "requests_per_minute": ("--requests-per-minute", "--rpm"),
    "tokens_per_minute": ("--tokens-per-minute", "--tpm"),
    "concurrent_requests": ("--concurrent-requests", "--concurrent"),
    "tokens_per_month": ("--tokens-per-month",),
}


def add_field_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "--team", metavar="TEAM", help="team that it belongs to, by id, or by name within the org; none"
    )
    parser.add_argument(
        "--user", metavar="USER", help="user that it belongs to, by id, or by name within the org; none"
    )
    parser.add_argument(
        "--scope", type=_scopes, metavar="A,B", help="inference, admin-read, admin-write; admin is both (inference)"
    )
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--models", type=words, metavar="A,B", help="models that it may use: names, or prefix*")
    models.add_argument("--restricted", action="store_true", help="it may use no model until --models gives some")
    models.add_argument("--all-models", action="store_true", help="it may use every model (the default)")
    parser.add_argument(
        "--cidrs", type=_cidrs, metavar="A,B", help="networks that it may be used from: 10.0.0.0/8, one address; any"
    )
    parser.add_argument("--tags", type=words, metavar="A,B", help="words to find it by")
    parser.add_argument("--expires", type=_expires, help="2027-01-31 in UTC, or 30d from now; never (never)")
    for name, flags in _LIMITS.items():
        parser.add_argument(*flags, type=_limit, dest=name, metavar="N", help="N, or none")


def given_fields(parsed: argparse.Namespace, admin: Administration, before: KeyRecord | None) -> dict[str, Any]:
    """The fields of a draft that flags were given for; `before` is the key that they change."""
    fields: dict[str, Any] = {}
    org = getattr(parsed, "org", None)
    org_id = before.org_id if before is not None else None if org is None else owner_id(admin, OwnerKind.ORG, org)
    for kind, name in ((OwnerKind.TEAM, parsed.team), (OwnerKind.USER, parsed.user)):
        if name is not None:
            fields[kind.field] = None if name == NONE else owner_id(admin, kind, name, org_id)
    for name in ("models", "tags"):
        if getattr(parsed, name) is not None:
            fields[name] = getattr(parsed, name)
    if parsed.scope is not None:
        fields["scopes"] = parsed.scope
    if parsed.restricted:
        fields["models"] = []
    if parsed.all_models:
        fields["models"] = None
    if parsed.cidrs is not None:
        fields["cidrs"] = parsed.cidrs or None
    if parsed.expires is not None:
        fields["expires"] = parsed.expires or None
    given = {name: getattr(parsed, name) for name in _LIMITS if getattr(parsed, name) is not None}
    if given:
        kept = {} if before is None else asdict(before.limits)
        fields["limits"] = {**kept, **{name: limit or None for name, limit in given.items()}}
    return fields


def _scopes(text: str) -> list[str]:
    try:
        return sorted(parse_scopes(words(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _cidrs(text: str) -> list[str]:
    return [] if text == "any" else words(text)


def _expires(text: str) -> float:
    return 0.0 if text == "never" else parse_moment(text)


def _limit(text: str) -> int:
    if text == NONE:
        return 0
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no limit: a whole number from 1, or none")
    return int(text)
