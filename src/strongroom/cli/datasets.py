"""What commands about whole data sets share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from strongroom._stores import is_url
from strongroom.cli import output
from strongroom.cli.common import settings
from strongroom.client.new_datasets import new_dataset
from strongroom.client.petnames import Petnames
from strongroom.errors import DeniedError, InputError
from strongroom.storage.dataset import DatasetInfo, read_info
from strongroom.storage.places import LocalPlace, place
from strongroom.storage.trees import TreeResult, seal_tree

if TYPE_CHECKING:
    from strongroom.client.owner import OwnerClient

__all__ = ["held", "owned", "seal_into", "show_result"]


def owned(folder: str, client: OwnerClient) -> DatasetInfo:
    """Return the claims of the data set in `folder`, which must be this owner's."""
    info = read_info(folder)
    if info is None:
        if "://" not in folder and not Path(folder).exists():
            raise InputError(f"{folder} is not a sealed data set: it does not exist", hint="check the path")
        raise InputError(f"{folder} is not a sealed data set", hint="`strongroom data seal SOURCE TARGET --key NAME`")
    if info.owner != client.owner:
        whose = Petnames.load(client.workspace).name(info.owner)
        raise DeniedError(f"{folder} belongs to owner {whose}", hint="only its owner and the jobs they allow open it")
    client.seen.see_folder(info.dataset, place(folder, single=False).url)
    return info


@contextlib.contextmanager
def held(location: str, client: OwnerClient) -> Iterator[LocalPlace]:
    """Hold a data set alone for the block, as a folder of this machine also if it lies in a store."""
    with contextlib.ExitStack() as block:
        folder = location
        if is_url(location):
            from strongroom.client.jobs import mounts

            mounted = mounts(client.workspace, settings()).mounted({"data": (location, "rw")})
            folder = str(block.enter_context(mounted)["data"])
        at = LocalPlace(folder)
        block.enter_context(at.locked())
        yield at


def show_result(verb: str, result: TreeResult, as_json: bool, **more: object) -> None:
    """Print what was done with a whole data set."""
    head = result.head
    value = {
        "dataset": head.dataset,
        "epoch": head.epoch,
        "key": head.key,
        "files": result.files,
        "size_bytes": result.size_bytes,
        "written": result.written,
        "kept": result.kept,
        **more,
    }
    kept = f" ({result.kept} already done)" if result.kept else ""
    text = f"{verb} {result.files} files, {result.size_bytes / 1e6:.1f} MB{kept}: "
    text += f"data set {head.dataset}, epoch {head.epoch}, key {head.key}"
    output.data(value, as_json, [text])


def seal_into(
    client: OwnerClient, source: str, target: str, key_name: str, *, workers: int | None = None
) -> TreeResult:
    """Seal every file of `source` into the data set `target`, which is made if it is none."""
    if "://" not in source and not Path(source).exists():
        raise InputError(f"{source} does not exist", hint="check the path")
    if read_info(source) is not None:  # without its manifest nothing of it would open again
        raise InputError(
            f"{source} is a sealed data set: expected plain files",
            hint=f"`strongroom data open {source} PLAIN`, or copy it: it is safe on any disk as it is",
        )
    ring = client.key_ring(key_name)
    with contextlib.ExitStack() as block:
        if read_info(target) is None:
            info = block.enter_context(new_dataset(client, key_name, place(target, single=False)))
        elif (info := owned(target, client)).key != key_name:
            raise InputError(f"{target} is under key {info.key!r}, not {key_name!r}", hint="choose another target")
        progress = block.enter_context(output.ProgressLine("sealing"))
        return seal_tree(source, target, ring, client, info=info, workers=workers, progress=progress)
