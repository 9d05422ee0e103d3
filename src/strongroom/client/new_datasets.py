"""New data sets: registered at the trust service and described in their folder, or neither."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from strongroom.errors import StrongroomError
from strongroom.storage.info import DatasetInfo, read_info
from strongroom.storage.places import LocalPlace, Place

if TYPE_CHECKING:
    from strongroom.client.owner import OwnerClient

__all__ = ["new_dataset"]


@contextlib.contextmanager
def new_dataset(client: OwnerClient, key: str, at: Place) -> Iterator[DatasetInfo]:
    """Register a data set for the block, which describes it in `at`; if that fails, it is forgotten again."""
    head = client.create_dataset(key)
    info = DatasetInfo(dataset=head.dataset, key=key, owner=client.owner)
    try:
        yield info
    except BaseException:
        if not _may_describe(at):
            with contextlib.suppress(StrongroomError):  # what ended the block is said
                if client.current(info.dataset).epoch == 0:  # its disk may have gone once it was whole
                    client.call("DELETE", f"/v1/datasets/{info.dataset}")
        raise
    client.seen.see_folder(info.dataset, at.url)


def _may_describe(at: Place) -> bool:
    try:
        return read_info(at) is not None
    except (StrongroomError, OSError):
        return not isinstance(at, LocalPlace)  # a store that does not answer may hold it
