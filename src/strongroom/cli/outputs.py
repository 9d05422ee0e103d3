"""`strongroom output`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import click

from strongroom.cli import output
from strongroom.cli.common import epilog, json_option, owner
from strongroom.cli.datasets import held, owned, show_result
from strongroom.errors import InputError
from strongroom.storage.dataset import Head, load_manifest, remove_stale_manifests
from strongroom.storage.leftovers import end_changes, restore
from strongroom.storage.places import LocalPlace
from strongroom.storage.trees import open_tree, verify_tree

if TYPE_CHECKING:
    from strongroom.client.owner import OwnerClient

__all__ = ["command"]


@click.group("output")
def command() -> None:
    """What jobs wrote and its owner has to approve: list, show, open, approve, reject."""


@command.command("list", epilog=epilog("strongroom output list"))
@json_option
def list_outputs(as_json: bool) -> None:
    """List the outputs that wait for you."""
    found = owner().call("GET", "/v1/outputs")
    waiting = cast(list[dict[str, Any]], found["outputs"])
    rows = [(o["dataset"], o["key"], o["epoch"], o["job"][7:23], o["since"][:19]) for o in waiting]
    output.data(found, as_json, output.table(("data set", "key", "epoch", "job", "since"), rows))


@command.command("show", epilog=epilog("strongroom output show sealed/report"))
@click.argument("folder")
@json_option
def show(folder: str, as_json: bool) -> None:
    """Show which job wrote the output in FOLDER, from what, and its files."""
    client = owner()
    head, found = _waiting(folder, client)
    ring = client.key_ring(head.key)
    before = client.current(head.dataset)
    old = {} if before.manifest is None else {e.path: e for e in load_manifest(folder, before, ring).entries}
    entries = load_manifest(folder, head, ring).entries
    rows = [(e.path, e.size, "as before" if old.get(e.path) == e else "written") for e in entries]
    gone = sorted(old.keys() - {e.path for e in entries})
    claims = found["claims"]
    facts = output.facts(
        {
            "data set": head.dataset,
            "key": head.key,
            "job": found["job"],
            "measurement": f"{claims['measurement']}{' (SIMULATED)' if claims['simulated'] else ''}",
            "made from": ", ".join(str(one["volume"]) for one in found["inputs"]),
            "removed": ", ".join(gone) or "nothing",
        }
    )
    files = [{"path": p, "size": s, "state": w} for p, s, w in rows]
    value = {**found, "files": files, "removed": gone}
    output.data(value, as_json, [*facts, "", *output.table(("file", "bytes", ""), rows)])


@command.command("open", epilog=epilog("strongroom output open sealed/report looked-at/"))
@click.argument("folder")
@click.argument("target")
@json_option
def open_(folder: str, target: str, as_json: bool) -> None:
    """Open the output in FOLDER into the folder TARGET, to look at it before you decide."""
    client = owner()
    head, _ = _waiting(folder, client)
    result = open_tree(folder, target, client.key_ring(head.key), head, waiting=True)
    show_result("opened", result, as_json, target=target)


@command.command(
    "approve", epilog=epilog("strongroom output show sealed/report", "strongroom output approve sealed/report")
)
@click.argument("folder")
@json_option
def approve(folder: str, as_json: bool) -> None:
    """Make the output in FOLDER the data set's newest state, after checking every chunk of it."""
    with _held(folder) as (client, head, at):
        verify_tree(at.root, client.key_ring(head.key), head, waiting=True)
        _decide(client, head, "approved")
        end_changes(at)
        remove_stale_manifests(at, head)
    value = {"dataset": head.dataset, "epoch": head.epoch}
    output.data(value, as_json, [f"approved: data set {head.dataset} is at epoch {head.epoch}"])


@command.command("reject", epilog=epilog("strongroom output reject sealed/report"))
@click.argument("folder")
@json_option
def reject(folder: str, as_json: bool) -> None:
    """Remove the output in FOLDER: back to what the data set was."""
    with _held(folder) as (client, head, at):
        before = load_manifest(at, client.current(head.dataset), client.key_ring(head.key))
        _decide(client, head, "rejected")
        done = restore(at, before)
    value = {"dataset": head.dataset, "put_back": done.put_back, "removed": done.removed}
    output.data(value, as_json, [f"rejected: {done.removed} files removed, {done.put_back} put back"])


@contextmanager
def _held(folder: str) -> Iterator[tuple[OwnerClient, Head, LocalPlace]]:
    client = owner()
    head, _ = _waiting(folder, client)
    with held(folder, client) as at:
        yield client, head, at


def _decide(client: OwnerClient, head: Head, state: str) -> None:
    client.call("POST", f"/v1/outputs/{head.dataset}", {"manifest": head.manifest, "state": state})


def _waiting(folder: str, client: OwnerClient) -> tuple[Head, dict[str, Any]]:
    info = owned(folder, client)
    listed = cast(list[dict[str, Any]], client.call("GET", "/v1/outputs")["outputs"])
    found = next((o for o in listed if o["dataset"] == info.dataset), None)
    if found is None:
        raise InputError(f"no output in {folder} waits for you", hint="`strongroom output list`")
    head = Head(
        dataset=info.dataset, epoch=found["epoch"], key=found["key"], manifest=found["manifest"], owner=client.owner
    )
    return head, found
