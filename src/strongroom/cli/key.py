"""`strongroom key`."""

from __future__ import annotations

from typing import Any, cast

import click

from strongroom.cli import output
from strongroom.cli.common import epilog, json_option, key_argument, owner
from strongroom.errors import InputError

__all__ = ["command"]


@click.group("key")
def command() -> None:
    """Named keys: versions, states, rotation, destruction."""


def _show(found: dict[str, object], as_json: bool) -> None:
    versions = cast(list[dict[str, Any]], found["versions"])
    text = output.facts({"key": found["name"], "exportable": "yes" if found["exportable"] else "no"})
    rows = [(v["version"], v["state"], v["created"][:19], v["destroy_at"] or "") for v in versions]
    output.data(found, as_json, [*text, "", *output.table(("version", "state", "created", "destroyed at"), rows)])


@command.command("create", epilog=epilog("strongroom key create sales"))
@key_argument("name")
@click.option(
    "--exportable",
    is_flag=True,
    help="Permit `key export`. Guards against accidents: `data open` gets the same bytes.",
)
@json_option
def create(name: str, exportable: bool, as_json: bool) -> None:
    """Create key NAME with version 1."""
    _show(owner().call("POST", "/v1/keys", {"name": name, "exportable": exportable}), as_json)


@command.command("list", epilog=epilog("strongroom key list --json"))
@json_option
def list_keys(as_json: bool) -> None:
    """List your keys."""
    found = owner().call("GET", "/v1/keys")
    keys = cast(list[dict[str, Any]], found["keys"])
    rows = [(k["name"], len(k["versions"]), sum(v["state"] == "enabled" for v in k["versions"])) for k in keys]
    output.data(found, as_json, output.table(("key", "versions", "enabled"), rows))


@command.command("show", epilog=epilog("strongroom key show sales"))
@key_argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a key's versions and states."""
    _show(owner().call("GET", f"/v1/keys/{name}"), as_json)


@command.command("rotate", epilog=epilog("strongroom key rotate sales", "strongroom data reseal sealed/sales"))
@key_argument("name")
@json_option
def rotate(name: str, as_json: bool) -> None:
    """Make a new version for new writes; older data stays readable."""
    _show(owner().call("POST", f"/v1/keys/{name}/rotate", {}), as_json)


def _version_command(verb: str, text: str) -> None:
    @command.command(verb, help=text, epilog=epilog(f"strongroom key {verb} sales 1"))
    @key_argument("name")
    @click.argument("version", type=int)
    @json_option
    def run(name: str, version: int, as_json: bool) -> None:
        _show(owner().call("POST", f"/v1/keys/{name}/versions/{version}/{verb}", {}), as_json)


_version_command("enable", "Enable a version again; cancels a destruction that is still waiting.")
_version_command("disable", "Disable a version: nobody receives it until it is enabled.")


@command.command("destroy", epilog=epilog("strongroom key destroy sales 1", "strongroom key destroy sales 1 --wait 0"))
@key_argument("name")
@click.argument("version", type=int)
@click.option("--wait", "wait_days", type=float, default=7.0, show_default=True, help="Days until its bytes are gone.")
@json_option
def destroy(name: str, version: int, wait_days: float, as_json: bool) -> None:
    """Disable a version now and destroy it after a waiting time; refused while data sets need it."""
    if not 0 <= wait_days <= 3650:  # neither is NaN
        raise InputError(f"--wait is a number of days from 0 to 3650, got {wait_days}")
    body = {"wait_s": int(wait_days * 86_400)}
    _show(owner().call("POST", f"/v1/keys/{name}/versions/{version}/destroy", body), as_json)


@command.command(
    "permit-export", epilog=epilog("strongroom key permit-export sales", "strongroom key permit-export sales --revoke")
)
@key_argument("name")
@click.option("--revoke", is_flag=True, help="Take the permission back.")
@json_option
def permit_export(name: str, revoke: bool, as_json: bool) -> None:
    """Permit `key export` for a key."""
    _show(owner().call("POST", f"/v1/keys/{name}/exportable", {"exportable": not revoke}), as_json)


@command.command("export", epilog=epilog("strongroom key export sales > sales-1.hex"))
@key_argument("name")
@click.option("--version", type=int, default=None, help="Default: the newest.")
def export(name: str, version: int | None) -> None:
    """Print a key's bytes in hex, to be kept outside; needs `permit-export`; audited."""
    ring = owner().key_ring(name, "export")
    number, secret = ring.current() if version is None else (version, ring.version(version))
    with secret as raw:
        output.lines([raw.hex()])
    output.say(
        f"version {number} of key {name!r} left the trust service in the clear: keep it as you would keep the data"
    )
