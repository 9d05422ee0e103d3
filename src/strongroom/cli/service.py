"""`strongroom service`."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import click

from strongroom.cli import output
from strongroom.cli.common import PATH, epilog, json_option, owner, passphrase, read_shares, workspace
from strongroom.cli.endorsements import anchor_option, read_anchor, snp_settings, state
from strongroom.cli.service_verify import build, measure, verify
from strongroom.client.workspace import FOLDER, Workspace
from strongroom.errors import InputError, UnavailableError

__all__ = ["command"]


@click.group("service")
def command() -> None:
    """The workspace's trust service. It starts by itself when it is needed."""


command.add_command(build)
command.add_command(measure)
command.add_command(verify)


def _own(enclave: str | None = None, *, alone: bool = False) -> Workspace:
    here = workspace()
    if not here.embedded:
        raise InputError("this workspace has no trust service of its own", hint=f"its administrator, at {here.service}")
    if (enclave is not None or alone) and here.is_running():
        raise InputError("the trust service is running already", hint="`strongroom service stop` first")
    return here if enclave is None else here.in_enclave(enclave)


def _prepare(kind: str, folder: Path) -> None:
    if kind == "sim":
        from strongroom.client.endorsements import refresh_endorsements

        refresh_endorsements(folder, now=datetime.now(UTC))
        output.say("SIMULATED: evidence will be made, and no hardware protects the trust service")


_enclave_option = click.option(
    "--enclave",
    type=click.Choice(["sim", "gramine", "cvm", "none"]),
    callback=lambda _context, _option, kind: "" if kind == "none" else kind,
    help="The TEE that this command runs in, from now on; `sim`: a SIMULATED one, which protects nothing.",
)


@command.command("start", epilog=epilog("strongroom service start", "strongroom service start --enclave sim"))
@_enclave_option
def start(enclave: str | None) -> None:
    """Start the service in the background."""
    here = _own(enclave)
    if here.is_running():
        output.say("the trust service is running already")
        return
    _prepare(here.enclave, here.folder)
    here.start()
    output.say(f"the trust service is running, log in {here.run_folder}/service.log")


@command.command(
    "run",
    epilog=epilog(
        "strongroom service run --listen 127.0.0.1:8700",
        "strongroom service run --listen 0.0.0.0:8700 --enclave gramine --admin shop.pem",
    ),
)
@click.option("--listen", default="", help="host:port for owners; guests get the next port.")
@_enclave_option
@click.option(
    "--admin",
    type=PATH,
    help="Make the service here, in its TEE, if there is none yet: for the owner of this `owner request --first`.",
)
def run(listen: str, enclave: str | None, admin: Path | None) -> None:
    """Run the service in the foreground."""
    from strongroom.service.main import main as serve
    from strongroom.service.server import host_and_port

    if listen:
        host_and_port(listen)
    if admin is None:
        here = _own(enclave, alone=True)
        folder, kind, more = here.folder, here.enclave, []
    else:
        folder, kind, more = Path.cwd() / FOLDER, enclave or "", [str(admin)]
    _prepare(kind, folder)
    sys.argv = ["strongroom-service", str(folder), listen, kind, *more]
    raise SystemExit(serve())


@command.command("stop", epilog=epilog("strongroom service stop"))
def stop() -> None:
    """Stop the service."""
    here = _own()
    pid = here.pid()
    if pid is None or not here.is_running():
        output.say("the trust service is not running")
        return
    os.kill(pid, signal.SIGTERM)
    limit = time.monotonic() + 15
    while here.pid() is not None:
        if time.monotonic() > limit:
            raise UnavailableError(f"the trust service (process {pid}) does not stop", hint=f"kill -9 {pid}")
        time.sleep(0.05)
    output.say("the trust service has stopped")


@command.command("status", epilog=epilog("strongroom service status --json"))
@json_option
def status(as_json: bool) -> None:
    """Show what the service is, trusts, and whether it is locked."""
    from strongroom.attest.makers import MAKERS

    client = owner()
    here, found = client.workspace, client.call("GET", "/v1/status")
    anchors, locked = cast(list[dict[str, str]], found["anchors"]), bool(found["locked"])
    ends = state(here.service_folder / "endorsements", datetime.now(UTC)) if here.embedded else None
    mark = "WARNING: " if ends and ends[0] == "WARNING" else ""
    text = output.facts(
        {
            "version": found["version"],
            "state": "LOCKED" if locked else "unlocked",
            "root key": found["root_kind"],
            "trusts": "; ".join(
                f"{f[:16]} ({'SIMULATED' if a['kind'] == 'simulated' else MAKERS.get(f, 'own, no maker')})"
                for a in anchors
                for f in [a["fingerprint"]]
            )
            or ("not known while it is locked" if locked else "nothing"),
            **({"endorsements": mark + ends[1]} if ends else {}),
            "lease": "not known while it is locked" if locked else f"{found['lease_s']} s",
            "identity": here.identity,
            "you": f"{here.name} ({here.owner[:16]})" + (", who administers it" if found["admin"] else ""),
            "note": found["note"],
        }
    )
    output.data({**found, "endorsements": ends[1] if ends else None}, as_json, text)


@command.command("unlock", epilog=epilog("strongroom service unlock", "strongroom service unlock < shares.txt"))
def unlock() -> None:
    """Unlock the root key with its passphrase, or with shares, one a line, from standard input."""
    from strongroom.client.evidence import Pin

    client = owner()
    found = client.call("GET", "/v1/status")
    if not found["locked"]:
        output.say("the trust service is unlocked already")
        return
    if (found["attested"] or not client.workspace.embedded) and not Pin.load(client.workspace.folder):
        output.say(
            "WARNING: no pin here, so what you type goes to whoever has the TLS key on that machine's disk: "
            "`strongroom service verify --pin` first"
        )
    client.unlock([passphrase()] if found["root_kind"] == "passphrase" else read_shares())
    output.say("the trust service is unlocked")


@command.command(
    "rotate-root",
    epilog=epilog("strongroom service rotate-root", "strongroom service rotate-root --kind tee"),
)
@click.option(
    "--kind",
    type=click.Choice(["keyfile", "passphrase", "shares", "tee"]),
    help="Where the root key rests; default: keyfile, and none in a TEE, which refuses that.",
)
@click.option("--threshold", type=int, default=3, show_default=True)
@click.option("--shares", type=int, default=5, show_default=True)
@click.option("--yes", is_flag=True, help="Do not ask whether the shares were handed out.")
@json_option
def rotate_root(kind: str | None, threshold: int, shares: int, yes: bool, as_json: bool) -> None:
    """Wrap every key under a new root key, in one transaction.

    Kind `tee` is sealed to the code and the machine that the service runs in, which unlock it at each start; its shares
    unlock it on another machine, or in a new version of the service.
    """
    client = owner()
    if kind is None and client.call("GET", "/v1/status")["attested"]:
        raise InputError("say where the root key is to rest: the trust service runs in a TEE", hint="--kind tee")
    kind = kind or "keyfile"
    split = kind in ("shares", "tee")
    options = {"threshold": str(threshold), "shares": str(shares)} if split else {}
    if kind == "passphrase":
        options = {"passphrase": passphrase(new=True)}
    body: dict[str, object] = {"kind": kind, "sealed": client.sealed(options)}
    if split:
        # Shares first, rotation second: if anything fails in between, the old root key is still in force.
        prepared = client.call("POST", "/v1/root/rotate", {**body, "prepare": True})
        shares_made = cast(list[str], prepared["handout"])
        output.data(prepared, as_json, [f"share {n}: {s}" for n, s in enumerate(shares_made, 1)])
        if not yes:
            click.confirm("Does each person hold a share, so that the root key may be rotated?", abort=True, err=True)
        body["prepared"] = prepared["prepared"]
    client.call("POST", "/v1/root/rotate", body)
    output.say("the root key is rotated")


@command.command("lease", epilog=epilog("strongroom service lease 120"))
@click.argument("seconds", type=click.IntRange(120, 3600))
def lease(seconds: int) -> None:
    """Set after how many SECONDS (120 to 3600) a running job has to attest again.

    A job whose policy was revoked, or whose key was disabled, stops at its lease's end at the latest. Jobs that run
    keep the lease they have until they renew it.
    """
    owner().call("PUT", "/v1/lease", {"lease_s": seconds})
    output.say(f"jobs attest again within {seconds} s from now on")


@command.command(
    "trust",
    epilog=epilog(
        "strongroom service trust sgx-00906ed50000.json",
        "strongroom service trust snp-sev-milan.json --minimum-tcb 19-01-1=4.0.23.213",
    ),
)
@click.argument("bundle", type=PATH)
@snp_settings
@anchor_option
def trust(bundle: Path, settings: dict[str, str], anchor_file: Path | None) -> None:
    """Believe evidence under the root in BUNDLE from now on (`strongroom attest endorsements fetch` writes one).

    The root is Intel's or AMD's, whatever BUNDLE says, or the one whose certificate --anchor names.
    """
    from strongroom.attest.endorsement_files import anchor_of, read_bundle, title
    from strongroom.attest.endorsement_snp import SNPEndorsements
    from strongroom.attest.makers import MAKERS

    anchor, found = read_bundle(bundle)
    if anchor.kind != "hardware":
        raise InputError("a SIMULATED root is trusted by its own workspace's service alone")
    if not found or any(anchor_of(one, read_anchor(anchor_file)) != anchor for one in found):
        raise InputError(f"{bundle}: expected endorsements under the root that it names, got none or another's")
    if any(isinstance(one, SNPEndorsements) for one in found) and "minimum_tcb" not in settings:
        raise InputError(
            "AMD publishes no signed list of current versions, so the floor is yours to name: --minimum-tcb",
            hint="AMD's security bulletins name current versions; what a machine says of itself is no floor",
        )
    client, own = owner(), anchor.fingerprint not in MAKERS
    anchors = cast(list[dict[str, str]], client.call("GET", "/v1/status")["anchors"])
    client.call("PUT", "/v1/anchors", {"fingerprint": anchor.fingerprint, "settings": settings, "own_root": own})
    before = next((a for a in anchors if a["fingerprint"] == anchor.fingerprint), settings)
    for name in sorted((before.keys() | settings.keys()) - {"kind", "fingerprint"}):
        if (was := before.get(name, "not set")) != (now := settings.get(name, "not set")):
            output.say(f"WARNING: {name} was {was}, is {now}")
    output.say(f"evidence under {MAKERS.get(anchor.fingerprint, 'the root')} {anchor.fingerprint[:16]} is believed")
    if own:
        output.say(
            f"no maker's root: policies have to name it (`strongroom policy set ... --root {anchor.fingerprint}`)"
        )
    if any(isinstance(one, SNPEndorsements) and title(one).endswith("-Milan") for one in found):
        output.say(
            "WARNING: whoever has a Milan chip can read the seed of its keys (arXiv 2605.12990) and sign any report in "
            "its name: let policies name machines whose operator you trust (`machine`)"
        )


@command.command("openapi", epilog=epilog("strongroom service openapi > openapi.json"))
def openapi() -> None:
    """Print what owners and guests may ask of the service as an OpenAPI document."""
    from strongroom.service.openapi import openapi as document

    output.data(document(), True, [])


@command.command("distrust", epilog=epilog("strongroom service distrust 44a0196b2b99f889"))
@click.argument("root")
def distrust(root: str) -> None:
    """Believe nothing under ROOT any more: its fingerprint, or how it begins, as `strongroom service status` shows it.

    Jobs that attested under it get no more keys. What they hold, they keep until their lease ends.
    """
    client = owner()
    anchors = cast(list[dict[str, str]], client.call("GET", "/v1/status")["anchors"])
    found = [a["fingerprint"] for a in anchors if a["fingerprint"].startswith(root.lower())]
    if len(found) != 1 or len(root) < 8:
        raise InputError(f"{root} names {len(found)} of the trusted roots", hint="8 digits or more of its fingerprint")
    client.call("DELETE", f"/v1/anchors/{found[0]}")
    output.say(f"evidence under {found[0][:16]} is not believed any more")


@command.command("refresh-endorsements", epilog=epilog("strongroom service refresh-endorsements"))
def refresh() -> None:
    """Renew the simulated platform's endorsements; jobs do it once a day by themselves. SIMULATED."""
    from strongroom.client.endorsements import refresh_endorsements

    refresh_endorsements(_own().folder, now=datetime.now(UTC))
    output.say("renewed the SIMULATED platform's endorsements for 30 days")
