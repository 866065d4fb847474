"""`deepseek-gateway words`: import, activate, try and export word lists, and decide on reviews."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from deepseek_gateway.cli.common import Administration, Commands, add_action, administering, checked, date_text, table
from deepseek_gateway.cli.people import owner_id
from deepseek_gateway.errors import ApiError
from deepseek_gateway.guard.lists import demonstration, format_of, write_list
from deepseek_gateway.guard.service import (
    ImportDraft,
    PhraseDraft,
    PolicyDraft,
    PolicyLevel,
    PolicyScope,
    PolicyTarget,
    ReviewState,
    TestDraft,
    WordService,
)
from deepseek_gateway.people.records import OwnerKind

FORMATS = ("csv", "jsonl", "text")


def add_parser(commands: Commands) -> None:
    """Add the commands."""
    actions = commands.add_parser("words", help="word lists and the review queue").add_subparsers(
        metavar="ACTION", required=True
    )
    _add_import(actions)
    add_action(actions, "list", run_list, "show all lists and policies")
    versions = add_action(actions, "versions", run_versions, "show the versions of a list, the newest first")
    versions.add_argument("name")
    activate = add_action(actions, "activate", run_activate, "put a version in force, or switch a list off")
    activate.add_argument("name")
    activate.add_argument("version", type=_version, help="a number, or off")
    _add_policy(actions)
    _add_test(actions)
    export = add_action(actions, "export", run_export, "write a version to the terminal")
    export.add_argument("name")
    export.add_argument("--version", type=int, metavar="N", help="which (the active one, else the newest)")
    export.add_argument("--format", choices=FORMATS, default="csv")
    _add_review(actions)


def run_import(parsed: argparse.Namespace) -> int:
    """Keep a new version."""
    with administering(parsed) as admin:
        service = WordService(admin.store)
        if parsed.demonstration:
            entries = demonstration()
            version = service.add_version(
                admin.by, parsed.name, entries, note="the demonstration list", activate=parsed.activate
            )
        else:
            text = _read(parsed.file)
            fields = {
                "text": text,
                "format": parsed.format or format_of(parsed.file or "", text),
                "level": parsed.level,
                "note": parsed.note,
                "activate": parsed.activate,
            }
            version = service.import_file(admin.by, parsed.name, checked(ImportDraft, fields))
    state = "in force" if parsed.activate else f"`words activate {version.list} {version.version}` puts it in force"
    _show(parsed, asdict(version), f"{version.list}@{version.version}: {version.entries} entries; {state}")
    return 0


def run_list(parsed: argparse.Namespace) -> int:
    """Show lists, then policies."""
    with administering(parsed) as admin:
        service = WordService(admin.store)
        lists, policies = service.lists(admin.by), service.policies(admin.by)
    if parsed.json:
        print(json.dumps({"lists": [asdict(row) for row in lists], "policies": [asdict(row) for row in policies]}))
        return 0
    print(
        table(
            ("list", "version", "created"), [(x.name, x.active_version or "off", date_text(x.created)) for x in lists]
        )
    )
    if policies:
        print()
        rows = [(row.list, row.scope, row.scope_id or "-", row.level, row.on_failure) for row in policies]
        print(table(("list", "scope", "id", "level", "on failure"), rows))
    return 0


def run_versions(parsed: argparse.Namespace) -> int:
    """Show versions."""
    with administering(parsed) as admin:
        rows = WordService(admin.store).versions(admin.by, parsed.name)
    shown = [(row.version, row.entries, date_text(row.created), row.created_by, row.note or "-") for row in rows]
    titles = ("version", "entries", "created", "by", "note")
    _show(parsed, [asdict(row) for row in rows], table(titles, shown))
    return 0


def run_activate(parsed: argparse.Namespace) -> int:
    """Switch."""
    with administering(parsed) as admin:
        row = WordService(admin.store).activate(admin.by, parsed.name, parsed.version)
    state = "off" if row.active_version is None else f"at version {row.active_version}"
    _show(parsed, asdict(row), f"{row.name} is {state}; gateways follow within two seconds")
    return 0


def run_policy(parsed: argparse.Namespace) -> int:
    """Say what a list does for whom."""
    with administering(parsed) as admin:
        service = WordService(admin.store)
        is_drop = parsed.level == "drop"  # what is gone has no name any more
        named = parsed.id if is_drop or parsed.scope != "org" else owner_id(admin, OwnerKind.ORG, parsed.id)
        target = {"scope": parsed.scope, "scope_id": named}
        if is_drop:
            service.drop_policy(admin.by, parsed.name, checked(PolicyTarget, target))
            _show(
                parsed, {"dropped": True}, f"nothing is said about {parsed.name} for {parsed.scope} {parsed.id}".strip()
            )
            return 0
        draft = checked(PolicyDraft, {**target, "level": parsed.level, "on_failure": parsed.on_failure})
        row = service.set_policy(admin.by, parsed.name, draft)
    _show(parsed, asdict(row), f"{row.list} is {row.level} for {row.scope} {row.scope_id}".strip())
    return 0


def run_test(parsed: argparse.Namespace) -> int:
    """Show what becomes of a text; 1 when it is blocked."""
    name, _, version = (parsed.list or "").partition("@")
    fields = {
        "text": sys.stdin.read() if parsed.text is None else parsed.text,
        "direction": parsed.direction,
        "key_id": parsed.key,
        "org_id": parsed.org,
        "model": parsed.model,
        "list": name or None,
        "version": int(version) if version.isdigit() else None,
    }
    with administering(parsed) as admin:
        result = WordService(admin.store).test(admin.by, checked(TestDraft, fields))
    rows = [
        (hit["level"], hit["rule"], hit["pattern"], f"{hit['start']}-{hit['end']}", hit["text"])
        for hit in result["hits"]
    ]
    parts = [table(("level", "rule", "pattern", "at", "text"), rows)] if rows else ["no hits"]
    parts.append(f"{'blocked after' if result['is_blocked'] else 'passes as'}: {result['text']}")
    _show(parsed, result, "\n".join(parts))
    return int(result["is_blocked"])


def run_export(parsed: argparse.Namespace) -> int:
    """Write a list."""
    with administering(parsed) as admin:
        _, entries = WordService(admin.store).entries(admin.by, parsed.name, parsed.version)
    sys.stdout.write(write_list(entries, "jsonl" if parsed.json else parsed.format))
    return 0


def run_review(parsed: argparse.Namespace) -> int:
    """Show hits, or decide on one."""
    with administering(parsed) as admin:
        service = WordService(admin.store)
        if parsed.confirm is not None:
            row = service.confirm(admin.by, parsed.confirm, parsed.note)
            _show(parsed, asdict(row), f"{row.id} is confirmed")
        elif parsed.dismiss is not None:
            return _dismiss(parsed, admin, service)
        else:
            rows, _ = service.reviews(admin.by, None if parsed.show == "all" else parsed.show, limit=parsed.limit)
            shown = [
                (
                    row.id,
                    date_text(row.created),
                    row.request_id,
                    row.key_id,
                    row.direction,
                    row.field,
                    row.rule,
                    row.state,
                )
                for row in rows
            ]
            titles = ("id", "at", "request", "key", "in", "field", "rule", "state")
            _show(parsed, [asdict(row) for row in rows], table(titles, shown))
    return 0


def _dismiss(parsed: argparse.Namespace, admin: Administration, service: WordService) -> int:
    row, proposal = service.dismiss(admin.by, parsed.dismiss, parsed.note)
    name = row.rule.partition("@")[0]
    if parsed.allow is None:
        hint = f"\nto allow a phrase: words review --dismiss {row.id} --allow {proposal!r}, or a longer one"
        _show(parsed, {**asdict(row), "proposal": proposal}, f"{row.id} is dismissed{hint if proposal else ''}")
        return 0
    version = service.allow(admin.by, name, checked(PhraseDraft, {"phrase": parsed.allow, "note": parsed.note}))
    shown = {**asdict(row), "version": asdict(version)}
    _show(parsed, shown, f"{row.id} is dismissed; {version.list}@{version.version} allows the phrase")
    return 0


def _add_import(actions: Commands) -> None:
    parser = add_action(actions, "import", run_import, "keep a new version of a list")
    parser.add_argument("name", help="letters, digits, _ and -")
    parser.add_argument("file", nargs="?", help="CSV, JSON lines or a pattern a line; - or none: standard input")
    parser.add_argument("--format", choices=FORMATS, help="(by the file's name or first line)")
    parser.add_argument(
        "--level", choices=("block", "mask", "review", "allow"), default="block", help="of entries without"
    )
    parser.add_argument("--note", default="", help="what changed, for the list of versions")
    parser.add_argument("--activate", action="store_true", help="put it in force at once")
    parser.add_argument("--demonstration", action="store_true", help="the small list that comes with the gateway")


def _add_policy(actions: Commands) -> None:
    parser = add_action(actions, "policy", run_policy, "say what a list does, for everybody or for some")
    parser.add_argument("name")
    parser.add_argument("level", choices=(*get_args(PolicyLevel), "drop"), help="listed: what its entries say")
    parser.add_argument("--scope", choices=get_args(PolicyScope), default="all")
    parser.add_argument("--id", default="", help="the organisation, the model's name or the key's public id")
    parser.add_argument("--on-failure", choices=("closed", "open"), default="closed", help="when it cannot be checked")


def _add_test(actions: Commands) -> None:
    parser = add_action(actions, "test", run_test, "show what becomes of a text; exit status 1 when it is blocked")
    parser.add_argument("text", nargs="?", help="(standard input)")
    parser.add_argument("--list", metavar="NAME[@VERSION]", help="one list only, in force or not (all in force)")
    parser.add_argument("--direction", choices=("in", "out"), default="in")
    parser.add_argument("--key", default="", metavar="ID", help="as for this key")
    parser.add_argument("--org", metavar="ID", help="as for this organisation")
    parser.add_argument("--model", metavar="NAME", help="as for this model")


def _add_review(actions: Commands) -> None:
    parser = add_action(actions, "review", run_review, "show hits that wait for a person, or decide on one")
    parser.add_argument(
        "--show", choices=(*get_args(ReviewState), "all"), default="new", help="hits in this state (new)"
    )
    parser.add_argument("--limit", type=int, default=50, metavar="N")
    parser.add_argument("--confirm", metavar="ID", help="the hit was right")
    parser.add_argument("--dismiss", metavar="ID", help="the hit was wrong")
    parser.add_argument("--allow", metavar="PHRASE", help="with --dismiss: a phrase in which the words are harmless")
    parser.add_argument("--note", default="", help="why")


def _version(text: str) -> int | None:
    if text == "off":
        return None
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no version: a number, or off")
    return int(text)


def _read(file: str | None) -> str:
    try:
        return sys.stdin.read() if file in {None, "-"} else Path(str(file)).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ApiError(422, f"{file} cannot be read: {error}") from None


def _show(parsed: argparse.Namespace, value: dict[str, Any] | Sequence[dict[str, Any]], text: str) -> None:
    print(json.dumps(value) if parsed.json else text)
