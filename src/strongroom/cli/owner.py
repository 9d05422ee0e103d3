"""`strongroom owner`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click

from strongroom._unix import read_text
from strongroom.cli import output
from strongroom.cli.common import PATH, epilog, json_option, owner, workspace
from strongroom.client.petnames import Petnames
from strongroom.errors import InputError

__all__ = ["command"]


@click.group("owner")
def command() -> None:
    """Owners: a trust service serves several, each with own keys, policies and records."""


@command.command(
    "request",
    epilog=epilog(
        "strongroom owner request bank --name bank --service ../shop",
        "strongroom owner request --name bank --service shop.example:8700 --identity shop-identity.pem",
        "strongroom owner request --name shop --service shop.example:8700 --first",
    ),
)
@click.argument("folder", default=".", type=PATH)
@click.option("--name", required=True, help="What you are called.")
@click.option("--service", required=True, help="The service's workspace on this machine, or HOST:PORT.")
@click.option("--identity", type=PATH, help="The service's identity.pem, from its administrator.")
@click.option("--first", is_flag=True, help="There is no service yet: it is made in its TEE, and administered by you.")
@json_option
def request(folder: Path, name: str, service: str, identity: Path | None, first: bool, as_json: bool) -> None:
    """Make a workspace in FOLDER with an own key, for a trust service that another owner administers.

    The request, FOLDER/NAME.pem, goes to the administrator. Your key stays in the workspace.
    """
    from strongroom.client.setup import request_workspace

    made, file = request_workspace(folder, name=name, service=service, identity=identity, first=first)
    value = {"workspace": str(made.folder), "owner": made.owner, "identity": made.identity, "request": str(file)}
    output.data(
        value,
        as_json,
        output.facts({"workspace": made.folder, "owner": made.owner, "service": made.identity, "request": file}),
    )
    if first:
        output.hint(
            f"who runs the TEE: `strongroom service run --enclave KIND --listen {service} --admin {file.name}`; "
            "then here: `strongroom service verify --identity FILE`, with what it has to be"
        )
    elif not as_json:
        output.hint(
            f"the administrator: `strongroom owner admit {name} {file}`. Compare both lines above with what is seen "
            "there: owner with `admit`, service with `strongroom service status`."
        )


@command.command("admit", epilog=epilog("strongroom owner admit bank ../bank/bank.pem"))
@click.argument("name")
@click.argument("request_file", metavar="REQUEST", type=PATH)
@json_option
def admit(name: str, request_file: Path, as_json: bool) -> None:
    """Admit the owner who made REQUEST to your trust service, and call them NAME.

    An admitted owner has keys, policies and records of their own, and sees nothing of yours.
    """
    from strongroom.crypto import x509

    certificate = x509.certificate_from_pem(read_text(request_file, "`strongroom owner request` writes it"))
    names = Petnames.load(workspace())
    names.check_free(name, x509.fingerprint(certificate))
    body = {"name": name, "certificate": x509.certificate_pem(certificate)}
    found = owner().call("POST", "/v1/owners", body)
    names.add(name, str(found["owner"]))
    output.data(found, as_json, output.facts({"admitted": name, "owner": found["owner"]}))
    if not as_json:
        output.say(f"compare with the line `owner` that {name} saw; if it differs: `strongroom owner revoke {name}`")


@command.command("name", epilog=epilog(f"strongroom owner name shop {'a1b2c3d4' * 8}"))
@click.argument("name")
@click.argument("fingerprint", metavar="OWNER")
@json_option
def name_(name: str, fingerprint: str, as_json: bool) -> None:
    """Call the owner with the fingerprint OWNER by NAME in this workspace, as in KEY@NAME."""
    Petnames.load(workspace()).add(name, fingerprint)
    output.data({"name": name, "owner": fingerprint}, as_json, [f"{name} is owner {fingerprint}"])


@command.command("list", epilog=epilog("strongroom owner list"))
@json_option
def list_(as_json: bool) -> None:
    """List the owners that have a name here, and all that your trust service knows if it is yours."""
    here = workspace()
    called = {here.owner: here.name} | {found: name for name, found in Petnames.load(here).owners.items()}
    states = {found: ("you" if found == here.owner else "named") for found in called}
    if here.embedded:
        for known in cast(list[dict[str, Any]], owner().call("GET", "/v1/owners")["owners"]):
            called.setdefault(known["owner"], known["name"])
            if known["owner"] != here.owner:
                states[known["owner"]] = "revoked" if known["revoked"] else "admitted"
    rows = [(called[found], state, found) for found, state in states.items()]
    value = [{"name": name, "state": state, "owner": found} for name, state, found in rows]
    output.data({"owners": value}, as_json, output.table(("name", "state", "owner"), rows))


@command.command("revoke", epilog=epilog("strongroom owner revoke bank"))
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def revoke(name: str, yes: bool, as_json: bool) -> None:
    """Let an owner of your trust service in no more, for good.

    No job gets a key of theirs from then on; running ones stop at their lease's end. What is sealed under their keys
    opens for nobody.
    """
    client = owner()
    found = cast(list[dict[str, Any]], client.call("GET", "/v1/owners")["owners"])
    chosen = next((o["owner"] for o in found if o["name"] == name), None)
    if chosen is None:
        raise InputError(f"your trust service has no owner {name!r}", hint="`strongroom owner list`")
    if not yes:
        click.confirm(f"Is owner {name} to be revoked for good, with all their keys?", abort=True, err=True)
    done = client.call("DELETE", f"/v1/owners/{chosen}")
    output.data(done, as_json, [f"revoked {name}, owner {chosen}"])
