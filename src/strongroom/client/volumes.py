"""Volumes as a person asks for them, in words or in a job file, and the data sets that they are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from strongroom._stores import check_folders, is_url, split_url
from strongroom._unix import read_text
from strongroom.client.petnames import Petnames
from strongroom.errors import InputError
from strongroom.jobs.spec import Location, Volume

if TYPE_CHECKING:
    from strongroom.storage.info import DatasetInfo
    from strongroom.storage.places import Place

__all__ = [
    "NOT_YET",
    "Datasets",
    "VolumeRequest",
    "parse_volume",
    "resolve_volume",
    "volume_in_file",
    "with_known_paths",
]

_MANIFEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


NOT_YET = "0" * 32
"""The id of a data set that a dry run does not register."""

Datasets = Callable[[str, "Place"], "DatasetInfo"]
"""Whoever can register a new data set: takes key and folder, describes it there, and returns its description."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRequest:
    """A volume as asked for: `NAME=PATH[:KEY[@OWNER]][:ro|rw[:names]]`.

    Attributes:
        name: The folder under /work.
        path: The sealed folder, or its URL in a store.
        key: Key name, or "" to take the data set's own.
        owner: What this workspace calls the owner of the key; "" for itself.
        mode: `ro` or `rw`.
        epoch: Pinned epoch, or None.
        visible_names: `rw:names`: folders may be called `column=value`.
        manifest: For a key at a KBS, whose URL is `owner`: the manifest to read.
        certificate: And the PEM to check the KBS by.
    """

    name: str
    path: Location
    key: str = ""
    owner: str = ""
    mode: Literal["ro", "rw"] = "ro"
    epoch: int | None = None
    visible_names: bool = False
    manifest: str = ""
    certificate: str = ""


def parse_volume(text: str) -> VolumeRequest:
    """Return the volume in `NAME=PATH[:KEY[@OWNER]][:ro|rw[:names]]`.

    Raises:
        InputError: Another form.
    """
    name, equals, rest = text.partition("=")
    store, rest = split_url(rest)
    path, *options = rest.split(":")
    visible = options[-2:] == ["rw", "names"]
    options = options[:-1] if visible else options
    mode = options.pop() if options and options[-1] in ("ro", "rw") else "ro"
    if not equals or not path or not _NAME.fullmatch(name) or len(options) > 1 or "" in options:
        raise InputError(
            f"volume {text!r}: expected NAME=PATH[:KEY[@OWNER]][:ro|rw[:names]]", hint="--volume sales=sealed/sales:rw"
        )
    key, owner = _key(name, options[0] if options else "")
    return VolumeRequest(
        name=name,
        path=_location(store + path),
        key=key,
        owner=owner,
        mode=cast(Literal["ro", "rw"], mode),
        visible_names=visible,
    )


def _location(text: str) -> Location:
    return text.rstrip("/") if is_url(text) else Path(text)


def _key(volume: str, text: str) -> tuple[str, str]:
    key, at, owner = text.partition("@")
    if at and not (key and owner):
        raise InputError(f"volume {volume}: {text!r} is not KEY@OWNER", hint="`strongroom owner list` shows the names")
    return key, owner


def resolve_volume(request: VolumeRequest, datasets: Datasets | None, owners: Petnames) -> Volume:
    """Return the volume with its data set; an empty folder for writing becomes a new data set.

    What a folder says of its owner is a claim: of another owner's data set the request has to say whose it is.

    Raises:
        InputError: The folder is no data set, or is under another key or of another owner.
    """
    at_kbs = bool(request.manifest)
    owner = owners.find(request.owner) if request.owner and not at_kbs else owners.own
    from strongroom.storage.info import read_info  # noqa: PLC0415  # only volumes need it
    from strongroom.storage.places import place  # noqa: PLC0415  # only volumes need it

    if request.mode == "rw" and isinstance(request.path, str):
        check_folders(request.path)
    folder = place(str(request.path), single=False)
    info = read_info(folder)
    if info is None and (at_kbs or owner != owners.own):
        raise InputError(
            f"volume {request.name}: {request.path} is not a sealed data set",
            hint=f"{request.owner} makes it: `strongroom data create {request.path} --key {request.key}`",
        )
    if info is None:
        if request.mode != "rw" or not request.key or datasets is None:
            raise InputError(
                f"volume {request.name}: {request.path} is not a sealed data set",
                hint=f"seal it first; to write a new one: {request.name}=PATH:KEY:rw, in a job file mode and key",
            )
        if not folder.is_empty():
            raise InputError(f"volume {request.name}: {request.path} is not empty and not a data set")
        info = datasets(request.key, folder)
    if request.key and request.key != info.key:
        raise InputError(f"volume {request.name}: {request.path} is under key {info.key!r}, not {request.key!r}")
    if info.owner != owner and not at_kbs:
        raise InputError(
            f"volume {request.name}: {request.path} belongs to owner {owners.name(info.owner)}, "
            f"not to {owners.name(owner)}",
            hint=f"name the owner: --volume {request.name}={request.path}:{info.key}@OWNER; `strongroom owner list`",
        )
    return Volume(
        name=request.name,
        location=request.path.resolve() if isinstance(request.path, Path) else request.path,
        dataset=info.dataset,
        key=info.key,
        owner=request.owner if at_kbs else info.owner,
        mode=request.mode,
        epoch=request.epoch,
        visible_names=request.visible_names,
        manifest=request.manifest,
        certificate=request.certificate,
    )


def with_known_paths(
    arguments: Sequence[str], volumes: Sequence[VolumeRequest]
) -> tuple[tuple[str, ...], tuple[VolumeRequest, ...]]:
    """Return arguments and volumes such that paths of sealed data in the arguments work inside the enclave.

    An argument (or the part after its `=`) that names a path in a volume's folder becomes the path under /work. One
    that names a sealed data set which is no volume yet makes it one, read-only, unless it is relative and begins with a
    given volume's name: programs start in /work. URLs of stores are treated alike, but only `hdfs:` is asked for data
    sets that are no volumes: a job with network may have its own use for others.
    """
    known = list(volumes)
    given = {v.name for v in volumes}
    changed = [_known_path(argument, known, given) for argument in arguments]
    return tuple(changed), tuple(known)


def _known_path(argument: str, known: list[VolumeRequest], given: set[str]) -> str:
    head, equals, tail = argument.partition("=")
    option = head + equals if argument.startswith("-") and equals else ""
    text = tail if option else argument
    scheme = next((s for s in ("file://", "sealed://", "sealed::file://", "file:") if text.startswith(f"{s}/")), "")
    plain = text.removeprefix(scheme)
    if not plain or "\0" in plain or ("://" in plain and not is_url(plain)) or len(plain) > 4096:
        return argument
    store, plain = split_url(plain)
    path = Path(os.path.abspath(plain or "/" if store else plain))
    for candidate in (path, *path.parents):
        location: Location = f"{store}{candidate}".rstrip("/") if store else candidate
        volume = next((v for v in known if _absolute(v.path) == location), None)
        if volume is None and plain.split("/", 1)[0] not in given and _is_dataset(location):
            names = {v.name for v in known}
            base = re.sub(r"[^A-Za-z0-9_.-]", "_", candidate.name).lstrip(".-")[:60] or "data"
            name = next(n for n in (base, *(f"{base}-{i}" for i in range(2, 1000))) if n not in names)
            volume = VolumeRequest(name=name, path=location)
            known.append(volume)
        if volume is not None:
            rest = path.relative_to(candidate).as_posix()
            inside = f"/work/{volume.name}" + ("" if rest == "." else f"/{rest}")
            return option + scheme + inside + ("/" if text.endswith("/") else "")
    return argument


def _absolute(location: Location) -> Location:
    return Path(os.path.abspath(location)) if isinstance(location, Path) else location


def _is_dataset(location: Location) -> bool:
    if isinstance(location, Path):
        return os.path.exists(location / ".dataset" / "id.json")
    if not location.startswith("hdfs://"):
        return False
    from strongroom.storage.info import INFO_PATH  # noqa: PLC0415  # only volumes need it
    from strongroom.storage.places import place  # noqa: PLC0415  # only volumes need it

    return place(location, single=False).stat(INFO_PATH) is not None


def volume_in_file(base: Path, table: Mapping[str, object]) -> VolumeRequest:
    """Return the volume in a `[[volume]]` table of a job file in the folder `base`.

    Raises:
        InputError: A value of another kind, or half of what a key at a KBS needs.
    """
    mode = table.get("mode", "ro")
    if mode not in ("ro", "rw") or not _NAME.fullmatch(str(table["name"])):
        raise InputError(f"volume {table['name']!r}: expected a plain name and mode ro or rw, got mode {mode!r}")
    epoch = cast(int | None, table.get("epoch"))
    at_kbs = str(table.get("key", "")).startswith("kbs+")
    manifest, file = str(table.get("manifest", "")), str(table.get("certificate", ""))
    pinned = mode == "ro" and epoch is not None and _MANIFEST.fullmatch(manifest) and file
    if not pinned if at_kbs else manifest or file:
        raise InputError(
            f"volume {table['name']!r}: expected with a key at a KBS (kbs+https://...), and with no other: mode ro, "
            "epoch, manifest (sha256:...) and certificate (a file in PEM)",
            hint="`strongroom data show FOLDER` prints epoch and manifest",
        )
    key, owner = ("", str(table["key"])) if at_kbs else _key(str(table["name"]), str(table.get("key", "")))
    return VolumeRequest(
        name=str(table["name"]),
        path=table_path if isinstance(table_path := _location(str(table["path"])), str) else base / table_path,
        key=key,
        owner=owner,
        mode=mode,
        epoch=epoch,
        visible_names=bool(table.get("visible_names")),
        manifest=manifest,
        certificate=_kbs_certificate(owner, base / file) if at_kbs else "",
    )


def _kbs_certificate(url: str, path: Path) -> str:
    from strongroom.attest.kbs import KBSKey  # noqa: PLC0415  # few jobs have such a key
    from strongroom.crypto import x509  # noqa: PLC0415

    KBSKey.parse(url)
    return x509.certificate_pem(x509.certificate_from_pem(read_text(path, "the KBS' certificate, in PEM")))
