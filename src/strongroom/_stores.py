"""Stores behind URLs such as `hdfs://namenode:9000/data`: which they are, and what fsspec leaves open between them.

Trusts a store for nothing but delivery.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

from strongroom.errors import InputError

__all__ = ["check_folders", "has_folders", "is_url", "open_store", "replace_file", "split_url"]

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+]*)://([^/]*)(.*)", re.DOTALL)


def is_url(location: object) -> bool:
    """Return whether `location` is the URL of a store; `file:` is a local path."""
    found = _URL.fullmatch(location) if isinstance(location, str) else None
    return found is not None and found[1] != "file"


def split_url(url: str) -> tuple[str, str]:
    """Return `scheme://authority`, "" for a local path, and the path; a colon in the first is no end of anything."""
    found = _URL.fullmatch(url)
    if not found:
        return "", url
    return ("", found[3]) if found[1] == "file" else (f"{found[1]}://{found[2]}", found[3])


def open_store(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of `url` and the path in it, without a slash at the end.

    Raises:
        InputError: The package for this kind of store is not installed.
    """
    import fsspec  # noqa: PLC0415 - local work never loads it

    scheme = url.partition("://")[0]
    with contextlib.suppress(ImportError):  # without it, fsspec tries PyArrow, which needs a Hadoop on this machine
        if scheme == "hdfs":
            from strongroom._hdfs import Hdfs  # noqa: PLC0415 - an extra

            fsspec.register_implementation("hdfs", Hdfs, clobber=True)
    try:
        store, root = fsspec.core.url_to_fs(url.rstrip("/"))
    except (ImportError, ValueError, OSError) as exc:
        hint = "pip install 'strongroom[hdfs]'" if scheme == "hdfs" else "install its fsspec package"
        raise InputError(f"{scheme}:// cannot be opened here", hint=hint) from exc
    return store, str(root).rstrip("/")


def has_folders(store: Any) -> bool:
    """Return whether folders exist by themselves and are renamed in one step: object stores have names only."""
    return store.protocol in ("hdfs", ("file", "local"))


def check_folders(url: str) -> None:
    """Refuse a store in which a job cannot change a data set in place.

    Raises:
        InputError: Says where to write instead.
    """
    if not has_folders(open_store(url)[0]):
        raise InputError(
            f"{url} cannot be written to by a job: this kind of store has no folders",
            hint="write to HDFS or to a folder of this machine, then copy the sealed files",
        )


def replace_file(store: Any, source: str, target: str) -> None:
    """Rename a file of a store to `target`, which is the old or the new file at any time, if there was one."""
    if has_folders(store):
        store.mv(source, target)
    else:
        # Object stores put a copy in place whole; removing first could lose the only file. Their mv() removes in bulk,
        # which S3 servers do not all understand.
        store.cp_file(source, target)
        store.rm_file(source)
