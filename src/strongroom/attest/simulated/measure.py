"""Measuring: the digest of a folder as it will be seen inside the sandbox.

The digest covers every name, kind, executable bit, link target and content. A *digest cache* lets an unchanged folder
be measured by one walk: if device, inode, size, mtime and ctime of every file are those of the last full reading, the
last digest holds. ctime cannot be set back without the machine's clock, so a file altered with its times restored is
read again. The cache is for the simulated platform only; who can write it can forge a measurement, as who can read the
simulated seed can forge a quote.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from strongroom._encoding import labelled_hash
from strongroom.errors import InputError

__all__ = ["measure_mounts", "tree_digest"]

_UNUSED_S = 7 * 86_400
_HEX = re.compile(r"[0-9a-f]{64}")
_Row = tuple[str, str, int, str]  # name, kind (f, l, d), executable or 0, stat identity or link target


def tree_digest(root: Path, cache: Path | None = None) -> bytes:
    """Return the digest of the folder or file at `root`.

    Args:
        root: What will be mounted.
        cache: Folder of the digest cache, or None to read every byte.

    Raises:
        InputError: Something there is neither a file, a folder nor a link, or is not readable.
    """
    try:
        if cache is None:
            return _digest(root, sorted(_walk(os.fspath(root))), {})
        identity = _identity(os.fspath(root))
        name = hashlib.sha256(os.fspath(root).encode()).hexdigest()[:24]
        known = _read(cache / f"{name}.json")
        if known.get("identity") == identity and _HEX.fullmatch(str(known.get("digest"))):
            for kept in (f"{name}.json", f"{name}.files.json"):
                with contextlib.suppress(OSError):
                    os.utime(cache / kept)
            return bytes.fromhex(str(known["digest"]))
        rows = sorted(_walk(os.fspath(root)))
        previous = _read(cache / f"{name}.files.json")
        files: dict[str, str] = {}
        digest = _digest(root, rows, previous, files)
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(cache / f"{name}.files.json", files)
        _write(cache / f"{name}.json", {"identity": identity, "digest": digest.hex()})
        _remove_unused(cache)
    except OSError as exc:
        raise InputError(f"{exc.filename} cannot be measured: {exc.strerror}") from exc
    return digest


def measure_mounts(mounts: list[tuple[str, Path]], launch: bytes, cache: Path | None) -> bytes:
    """Return the measurement (32 bytes) of a sandbox: its measured mounts by place, and how its first process starts.

    Args:
        mounts: Place inside, source outside.
        launch: Canonical description of the sandbox and of the guest's command.
        cache: As for `tree_digest`.
    """
    fields = [launch]
    for place, source in sorted(mounts):
        fields += [place.encode(), tree_digest(source, cache)]
    return labelled_hash("strongroom-simulated-measurement-v1", fields)


def _identity(root: str) -> str:
    # What `_walk` sees, as one hash; a launch does this for some ten thousand files, so it does nothing else.
    total = hashlib.sha256()
    folders = [root]
    if not os.path.isdir(root) or os.path.islink(root):
        total.update(repr(list(_walk(root))).encode("utf-8", "surrogateescape"))
        folders = []
    while folders:
        folder = folders.pop()
        lines = []
        with os.scandir(folder) as entries:
            for entry in entries:
                s = entry.stat(follow_symlinks=False)
                kind = s.st_mode & 0o170111
                if kind & 0o170000 == 0o040000:
                    folders.append(entry.path)
                    lines.append(entry.name)
                    continue
                lines.append(f"{entry.name}\0{kind}.{s.st_dev}.{s.st_ino}.{s.st_size}.{s.st_mtime_ns}.{s.st_ctime_ns}")
        folders.sort()
        lines.sort()
        total.update(f"{folder}\1".encode("utf-8", "surrogateescape"))
        total.update("\n".join(lines).encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _walk(root: str, prefix: str = "") -> Iterator[_Row]:
    info = os.lstat(root)
    if not stat.S_ISDIR(info.st_mode):
        yield _row(os.path.basename(root), info, root)
        return
    with os.scandir(root) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield (name, "d", 0, "")
                yield from _walk(entry.path, name + "/")
            else:
                yield _row(name, entry.stat(follow_symlinks=False), entry.path)


def _row(name: str, info: os.stat_result, path: str) -> _Row:
    if stat.S_ISREG(info.st_mode):
        return (name, "f", info.st_mode & 0o111 and 1, _stat_identity(info))
    if stat.S_ISLNK(info.st_mode):
        return (name, "l", 0, os.readlink(path))
    raise InputError(f"{path} is neither a file, a folder nor a link: it cannot be measured")


def _stat_identity(info: os.stat_result) -> str:
    return f"{info.st_dev}.{info.st_ino}.{info.st_size}.{info.st_mtime_ns}.{info.st_ctime_ns}"


def _digest(root: Path, rows: list[_Row], known: dict[str, object], files: dict[str, str] | None = None) -> bytes:
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  # 10 ms that a walk with a warm cache does not need

    def content(row: _Row) -> str:
        name, kind, _, identity = row
        if kind != "f":
            return identity
        found = known.get(f"{name}\0{identity}")
        return str(found) if _HEX.fullmatch(str(found)) else _hash_file(root / name if root.is_dir() else root)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        contents = list(pool.map(content, rows, chunksize=64))
    total = hashlib.sha256()
    for (name, kind, executable, identity), value in zip(rows, contents, strict=True):
        shown = name if root.is_dir() else ""
        total.update(f"{kind}\0{shown}\0{executable}\0{value}\n".encode("utf-8", "surrogateescape"))
        if files is not None and kind == "f":
            files[f"{name}\0{identity}"] = value
    return total.digest()


def _hash_file(path: Path) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remove_unused(cache: Path) -> None:
    # What is missed costs one reading; without this, each environment that ever was would stay.
    limit = time.time() - _UNUSED_S
    for entry in os.scandir(cache):
        with contextlib.suppress(OSError):  # another process removes them too
            if entry.is_file(follow_symlinks=False) and entry.stat().st_mtime < limit:
                os.unlink(entry.path)


def _write(path: Path, value: object) -> None:
    beside = path.with_suffix(f".{os.getpid()}.new")
    beside.write_text(json.dumps(value))
    beside.replace(path)
