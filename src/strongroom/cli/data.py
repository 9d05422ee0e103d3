"""`strongroom data`."""

from __future__ import annotations

import re
from typing import Any, cast

import click

from strongroom._stores import is_url
from strongroom.cli import output
from strongroom.cli.common import epilog, json_option, owner
from strongroom.cli.datasets import held, owned, seal_into, show_result
from strongroom.client.new_datasets import new_dataset
from strongroom.errors import InputError, StrongroomError
from strongroom.storage.dataset import Head, Manifest, load_manifest, read_info, write_info
from strongroom.storage.leftovers import Restored, restore, was_interrupted
from strongroom.storage.places import place
from strongroom.storage.trees import open_tree, reseal_tree, verify_tree

__all__ = ["command"]

_workers = click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=None,
    help="Files at a time; default one a core, more of small ones.",
)


@click.group("data")
def command() -> None:
    """Data sets: folders of sealed files with a signed, versioned head."""


@command.command(
    "seal",
    epilog=epilog(
        "strongroom data seal plain/ sealed/ --key sales",
        "strongroom data seal orders.csv s3://bucket/orders --key sales",
    ),
)
@click.argument("source")
@click.argument("target")
@click.option("--key", "key_name", required=True, help="The named key.")
@_workers
@json_option
def seal(source: str, target: str, key_name: str, workers: int | None, as_json: bool) -> None:
    """Seal every file of SOURCE into the data set TARGET.

    Run again after an interruption, it goes on where it stopped. Files that TARGET has and SOURCE has no more stay: to
    leave some out, seal into a new folder.
    """
    client = owner()
    result = seal_into(client, source, target, key_name, workers=workers)
    show_result("sealed", result, as_json, target=target)


@command.command("create", epilog=epilog("strongroom data create sealed/result --key results"))
@click.argument("target")
@click.option("--key", "key_name", required=True, help="The named key.")
@json_option
def create(target: str, key_name: str, as_json: bool) -> None:
    """Make TARGET an empty data set of yours, for a job that another owner runs to write into."""
    folder = place(target, single=False)
    if not folder.is_empty():
        raise InputError(f"{target} is not an empty folder", hint="choose another")
    with new_dataset(owner(), key_name, folder) as info:
        write_info(folder, info)
    value = {"dataset": info.dataset, "epoch": 0, "key": key_name, "target": target}
    output.data(value, as_json, [f"created data set {info.dataset}, empty, key {key_name}"])


@command.command("open", epilog=epilog("strongroom data open sealed/report report/"))
@click.argument("folder")
@click.argument("target")
@click.option("--overwrite", is_flag=True, help="Replace files that are there with another content.")
@_workers
@json_option
def open_(folder: str, target: str, overwrite: bool, workers: int | None, as_json: bool) -> None:
    """Open the data set FOLDER into the folder TARGET; each file appears once all of it has been verified."""
    client = owner()
    info = owned(folder, client)
    ring, head = client.key_ring(info.key), client.current(info.dataset)
    with output.ProgressLine("opening") as progress:
        result = open_tree(folder, target, ring, head, overwrite=overwrite, workers=workers, progress=progress)
    show_result("opened", result, as_json, target=target)


@command.command("verify", epilog=epilog("strongroom data verify sealed/sales"))
@click.argument("folder")
@json_option
def verify(folder: str, as_json: bool) -> None:
    """Check every chunk of every file against the data set's head; write nothing."""
    client = owner()
    info = owned(folder, client)
    ring, head = client.key_ring(info.key), client.current(info.dataset)
    with output.ProgressLine("verifying") as progress:
        result = verify_tree(folder, ring, head, progress=progress)
    show_result("verified", result, as_json)


@command.command("reseal", epilog=epilog("strongroom key rotate sales", "strongroom data reseal sealed/sales"))
@click.argument("folder")
@json_option
def reseal(folder: str, as_json: bool) -> None:
    """Move a data set to the key's newest version."""
    client = owner()
    info = owned(folder, client)
    with output.ProgressLine("resealing") as progress:
        result = reseal_tree(folder, client.key_ring(info.key), client, dataset=info.dataset, progress=progress)
    show_result("resealed", result, as_json)


@command.command("restore", epilog=epilog("strongroom data restore sealed/results"))
@click.argument("folder")
@json_option
def restore_data(folder: str, as_json: bool) -> None:
    """Undo a job that died while it changed a data set: back to the last commit. The next job does the same."""
    client = owner()
    info = owned(folder, client)
    with held(folder, client) as at:
        # Asked now: a job that had it until now may have handed in what it wrote.
        waiting = cast(list[dict[str, Any]], client.call("GET", "/v1/outputs")["outputs"])
        if info.dataset in {o["dataset"] for o in waiting}:
            hint = f"`strongroom output reject {folder}` undoes it"
            raise InputError(f"an output in {folder} waits for you", hint=hint)
        manifest = load_manifest(at, client.current(info.dataset), client.key_ring(info.key))
        found = restore(at, manifest) if was_interrupted(at) else Restored(put_back=0, removed=0)
    value = {"dataset": info.dataset, "put_back": found.put_back, "removed": found.removed}
    output.data(value, as_json, [f"restored: {found.put_back} files put back, {found.removed} removed"])


@command.command("list", epilog=epilog("strongroom data list"))
@json_option
def list_data(as_json: bool) -> None:
    """List your data sets as the trust service knows them, and where commands of this workspace met them last."""
    client = owner()
    found = cast(list[dict[str, Any]], client.call("GET", "/v1/datasets")["datasets"])
    for one in found:
        one["folder"] = _where(client.seen.folders.get(one["dataset"], ""), one["dataset"])
    rows = [
        (d["folder"] or "-", d["key"], d["epoch"], d["updated"][:19] if d["epoch"] else "-", d["dataset"])
        for d in found
    ]
    table = output.table(("folder", "key", "epoch", "last commit", "data set"), rows)
    output.data({"datasets": found}, as_json, table)


def _where(folder: str, dataset: str) -> str:
    # It may have been moved, or another be there.
    if not folder or is_url(folder):
        return folder
    try:
        info = read_info(folder)
    except (StrongroomError, OSError):
        return ""
    return folder if info is not None and info.dataset == dataset else ""


@command.command("show", epilog=epilog("strongroom data show sealed/sales"))
@click.argument("folder")
@json_option
def show(folder: str, as_json: bool) -> None:
    """List a data set's files, sizes and key versions from its sealed manifest."""
    client = owner()
    info = owned(folder, client)
    head = client.current(info.dataset)
    manifest = load_manifest(folder, head, client.key_ring(info.key))
    rows = [(e.path, e.size, e.key_version) for e in manifest.entries]
    value = {
        "dataset": info.dataset,
        "key": info.key,
        "epoch": head.epoch,
        "manifest": head.manifest,
        "files": [{"path": p, "size": s, "key_version": v} for p, s, v in rows],
    }
    named = {"data set": info.dataset, "key": info.key, "epoch": head.epoch, "manifest": head.manifest or "none"}
    facts = output.facts(named)
    output.data(value, as_json, [*facts, "", *output.table(("file", "bytes", "key version"), rows)])


@command.command("accept-epoch", epilog=epilog("strongroom data accept-epoch sealed/sales"))
@click.argument("folder")
@click.option("--manifest", default=None, help="Which, if the folder holds several: its SHA-256.")
@json_option
def accept_epoch(folder: str, manifest: str | None, as_json: bool) -> None:
    """Accept a data set that you restored from a backup, on purpose; audited."""
    client = owner()
    info = owned(folder, client)
    found = [name for name in place(folder).names(".dataset") if len(name) == 64]
    chosen = manifest.removeprefix("sha256:") if manifest else found[0] if len(found) == 1 else ""
    if chosen not in found:
        raise InputError(
            f"{folder} holds {len(found)} manifests: say which", hint=" or ".join(f"--manifest {n}" for n in found[:4])
        )
    ring = client.key_ring(info.key)
    claimed = Head(dataset=info.dataset, epoch=1, key=info.key, manifest=f"sha256:{chosen}", owner=client.owner)
    loaded: Manifest = load_manifest(folder, claimed, ring)
    versions = sorted({e.key_version for e in loaded.entries} | {ring.current()[0]})
    head = client.accept_epoch(info.dataset, f"sha256:{chosen}", versions)
    value = {"dataset": head.dataset, "epoch": head.epoch, "manifest": head.manifest}
    output.data(value, as_json, [f"accepted: data set {head.dataset} is at epoch {head.epoch}"])


@command.command("forget", epilog=epilog("strongroom data forget 53f8a2db0603d79ad1218883e822b719"))
@click.argument("dataset")
@json_option
def forget(dataset: str, as_json: bool) -> None:
    """Forget a data set by its id: its files can no longer be read, its key versions no longer need it."""
    if not re.fullmatch(r"[0-9a-f]{32}", dataset):
        raise InputError(f"{dataset!r} is not the id of a data set", hint="`strongroom data list` shows yours")
    found = owner().call("DELETE", f"/v1/datasets/{dataset}")
    output.data(found, as_json, [f"forgot data set {dataset}"])
