"""`strongroom audit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from strongroom._encoding import parse_json
from strongroom._unix import read_text, write_whole
from strongroom.cli import output
from strongroom.cli.common import PATH, epilog, json_option, owner, workspace
from strongroom.client.owner import verify_exported
from strongroom.errors import InputError

__all__ = ["command"]


@click.group("audit")
def command() -> None:
    """The audit log: who got which key, when and why."""


@command.command("show", epilog=epilog("strongroom audit show", "strongroom audit show sales --last 5"))
@click.argument("subject", required=False)
@click.option("--last", type=click.IntRange(min=1), default=None, help="Only the newest N.")
@json_option
def show(subject: str | None, last: int | None, as_json: bool) -> None:
    """Show your records, or those about SUBJECT (a key's name), of a log that `verify` would accept."""
    found = [r for r in owner().verified_audit()[1] if r["record"] is not None]
    records: list[dict[str, Any]] = [json.loads(str(r["record"])) for r in found]
    if subject:
        records = [r for r in records if subject in r["subject"].split()]
        if not records:
            raise InputError(f"no record of yours is about {subject!r}", hint="`strongroom audit show` shows all")
    records = records[-last:] if last else records
    rows = [
        (
            r["seq"],
            r["time"][:19],
            "allowed" if r["allowed"] else "DENIED",
            r["action"],
            r["subject"],
            r["actor"],
            _why(r),
        )
        for r in records
    ]
    output.data(records, as_json, output.table(("seq", "time", "decision", "action", "subject", "actor", "why"), rows))


def _why(record: dict[str, Any]) -> str:
    details = record["details"]
    if details.get("reasons"):
        more = f" (+{len(details['reasons']) - 1})" if len(details["reasons"]) > 1 else ""
        return _short(str(details["reasons"][0]), 100) + more
    if "uses" in details:
        # A signed value's id, or what the owner named in the policy, at the time that the revision is from.
        values = ", ".join(_short(r, r.find(" ") + 24) for r in details.get("references", ()))
        by = f", by reference values {values}" if values else ""
        since = f" of {details['policy_set'][:16]}" if "policy_set" in details else ""
        return f"policy revision {details['policy_revision']}{since} allows {', '.join(details['uses'])}{by}"
    if "epoch" in details:
        return f"epoch {details['epoch']}"
    return _short(", ".join(f"{k}={v}" for k, v in details.items() if isinstance(v, str | int)), 80)


def _short(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[:size]}..."


@command.command("export", epilog=epilog("strongroom audit export audit.jsonl"))
@click.argument("target", type=PATH)
def export(target: Path) -> None:
    """Write the log, once it is verified, as JSON lines, for a check elsewhere or another system."""
    records = owner().verified_audit()[1]
    write_whole(target, "".join(json.dumps(r, sort_keys=True) + "\n" for r in records))
    output.say(f"wrote {len(records)} records")


@command.command("verify", epilog=epilog("strongroom audit verify", "strongroom audit verify audit.jsonl"))
@click.argument("exported", required=False, type=PATH)
@json_option
def verify(exported: Path | None, as_json: bool) -> None:
    """Check hashes, chain and signatures of every record, against the newest head this owner saw.

    With EXPORTED, a log written by `audit export` is checked, without the trust service.
    """
    records = _read(exported) if exported else []
    head = verify_exported(workspace(), records) if exported else owner().verified_audit()[0]
    value = {"records": head.seq, "chain": head.chain}
    output.data(value, as_json, [f"{head.seq} records, each as it was written; chain {head.chain[:16]}"])


def _read(path: Path) -> list[dict[str, object]]:
    hint = "`strongroom audit export` writes it"
    lines = read_text(path, hint).splitlines()
    found = [parse_json(line, f"line {n} of {path}") for n, line in enumerate(lines, 1)]
    if not all(isinstance(record, dict) for record in found):
        raise InputError(f"{path} is not an exported audit log", hint=hint)
    return [record for record in found if isinstance(record, dict)]
