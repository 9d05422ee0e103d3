"""The public claims of a data set, `.dataset/id.json`: all that a command needs to know whose key to ask for."""

from __future__ import annotations

from dataclasses import dataclass

from strongroom._encoding import canonical_json, parse_json
from strongroom.crypto.header import ID_BYTES, check_key_name
from strongroom.crypto.raw import RawSource
from strongroom.errors import InputError, IntegrityError
from strongroom.storage.places import DATASET_FOLDER, Location, Place, place

__all__ = ["FORMAT", "INFO_PATH", "DatasetInfo", "check_dataset_id", "read_info", "read_whole", "write_info"]

FORMAT = 1
INFO_PATH = f"{DATASET_FOLDER}/id.json"


def check_dataset_id(dataset: str) -> str:
    """Return `dataset` if it is 32 lower-case hex digits."""
    if len(dataset) != 2 * ID_BYTES or set(dataset) - set("0123456789abcdef"):
        raise InputError(f"data-set id {dataset[:64]!r} is not 32 lower-case hex digits")
    return dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """The public claims in `.dataset/id.json`."""

    dataset: str
    key: str
    owner: str

    def __post_init__(self) -> None:
        check_dataset_id(self.dataset)
        check_key_name(self.key)

    @property
    def dataset_id(self) -> bytes:
        """Return the 16 bytes of the id."""
        return bytes.fromhex(self.dataset)


def read_info(folder: Location | Place) -> DatasetInfo | None:
    """Return the public claims of the data set in `folder`, or None if it is not a data set.

    Raises:
        InputError: `.dataset/id.json` is not what data-set.md §1 defines.
    """
    at = place(folder)
    if at.stat(INFO_PATH) is None:
        return None
    value = parse_json(read_whole(at, INFO_PATH, 1 << 16), INFO_PATH)
    if not isinstance(value, dict) or set(value) != {"dataset", "format", "key", "owner"} or value["format"] != FORMAT:
        raise InputError(f"{at.url}/{INFO_PATH} is not the description of a data set")
    fields = {name: value[name] for name in ("dataset", "key", "owner")}
    if not all(isinstance(text, str) for text in fields.values()):
        raise InputError(f"{at.url}/{INFO_PATH} is not the description of a data set")
    return DatasetInfo(**fields)


def write_info(folder: Location | Place, info: DatasetInfo) -> None:
    """Write `.dataset/id.json`."""
    raw = canonical_json({"dataset": info.dataset, "format": FORMAT, "key": info.key, "owner": info.owner})
    with place(folder).create(INFO_PATH) as out:
        out.write(memoryview(raw))


def read_whole(at: Place, path: str, max_bytes: int) -> bytes:
    """Return a small file of a place; a larger one is refused before it is read."""
    found = at.stat(path)
    if found is None or found.trouble or found.size > max_bytes:
        raise IntegrityError(f"{at.url}/{path} is not a file of at most {max_bytes} bytes")
    with at.read(path) as raw:
        return _read_all(raw, max_bytes)


def _read_all(raw: RawSource, max_bytes: int) -> bytes:
    out = bytearray()
    block = memoryview(bytearray(1 << 20))
    while got := raw.readinto(block):
        out += block[:got]
        if len(out) > max_bytes:
            raise IntegrityError(f"a file is larger than {max_bytes} bytes")
    return bytes(out)
