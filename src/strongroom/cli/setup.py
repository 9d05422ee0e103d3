"""`strongroom init`."""

from __future__ import annotations

from pathlib import Path

import click

from strongroom.cli import output
from strongroom.cli.common import PATH, epilog, json_option, passphrase
from strongroom.errors import InputError

__all__ = ["command"]


@click.command(
    "init",
    epilog=epilog(
        "strongroom init                       a workspace here, root key in a file",
        "strongroom init --root passphrase     the service starts locked until the passphrase is given",
        "strongroom init --root shares --threshold 3 --shares 5",
    ),
)
@click.argument("folder", default=".", type=PATH)
@click.option("--owner", "owner_name", default="owner", show_default=True, help="The first owner's name.")
@click.option(
    "--root",
    "root_kind",
    type=click.Choice(["keyfile", "passphrase", "shares"]),
    default="keyfile",
    show_default=True,
    help="Where the root key rests while the service is down.",
)
@click.option("--threshold", type=int, help="Shares needed to unlock; 3 unless said.")
@click.option("--shares", type=int, help="Shares made; 5 unless said.")
@json_option
def command(
    folder: Path, owner_name: str, root_kind: str, threshold: int | None, shares: int | None, as_json: bool
) -> None:
    """Make a workspace in FOLDER: an owner, an embedded trust service, a SIMULATED platform."""
    from strongroom.client.setup import create_workspace

    options = {}
    if root_kind != "shares" and (threshold is not None or shares is not None):
        raise InputError("--threshold and --shares make shares of the root key", hint="add --root shares")
    if root_kind == "passphrase":
        options = {"passphrase": passphrase(new=True)}
    elif root_kind == "shares":
        options = {name: str(n) for name, n in (("threshold", threshold), ("shares", shares)) if n is not None}
    created = create_workspace(folder, owner=owner_name, root_kind=root_kind, root_options=options)
    made = created.workspace
    value = {"workspace": str(made.folder), "owner": made.owner, "identity": made.identity, "shares": created.handout}
    text = output.facts(
        {
            "workspace": made.folder,
            "owner": made.owner,
            "service": made.identity,
            "enclave": "sim (SIMULATED: no hardware protects it)",
        }
    )
    output.data(value, as_json, text)
    if created.handout and not as_json:
        output.say("\nGive one share to each person. They are shown once and stored nowhere:")
        for number, share in enumerate(created.handout, 1):
            output.lines([f"share {number}: {share}"])
    if not as_json:
        output.hint("`strongroom key create NAME`, then `strongroom data seal FOLDER SEALED --key NAME`")
