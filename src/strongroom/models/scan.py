"""Files that run code when they are loaded as a model, told by what is in them and not by what they are called.

A list of what is refused: pickles of any protocol, alone or in an archive, arrays of Python objects, what is packed so
that it cannot be looked into, formats whose loaders run code that they hold, and models that name foreign classes.
"""

from __future__ import annotations

import io
import os
import pickletools
import re
import struct
import sys
import zipfile
from importlib.machinery import PathFinder
from typing import IO

from strongroom.errors import InputError
from strongroom.models.keras_config import MAX_CONFIG, foreign_objects
from strongroom.models.spark_stages import foreign_stages, is_metadata

__all__ = ["code_in"]

_SUFFIXES = {".pkl", ".pickle", ".p", ".joblib", ".pt", ".pth", ".dill"}
_NUMPY = b"\x93NUMPY"
_HEAD = 1 << 16
_END_BYTES = 22  # of an archive, at least
_MAX_OPCODES = 100_000
_MAX_NAME = 1000
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x5d\0\0": "lzma",
}
_HDF5 = b"\x89HDF\r\n\x1a\n"
_OF_NUMBERS = re.compile(
    r"\{'descr': '[<>|=]?[biufcSUmM?]\d*(\[\w+\])?', 'fortran_order': (True|False), 'shape': \([\d, ]*\),? ?\}\s*"
)
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_CALLED = "a pickle that imports or calls something"
_CALLS = {"BUILD", "INST", "NEWOBJ", "NEWOBJ_EX", "OBJ", "REDUCE", "STACK_GLOBAL"}
"""Or import; `GLOBAL`, which is two lines after a "c", is looked at closer: lists of words begin so."""


def code_in(file: IO[bytes], name: str) -> str:
    """Return what in `file`, called `name` in its model's folder, would run when it is loaded; "" if nothing known."""
    found = _in_stream(file)
    suffix = os.path.splitext(name)[1].lower()
    if not found and suffix in _SUFFIXES and file.seek(0, os.SEEK_END):
        return f"a {suffix} file, which is a pickle as a rule"
    return found or (_in_stage(file, name) if is_metadata(name) else "")


def _in_stage(file: IO[bytes], name: str) -> str:
    file.seek(0)
    try:
        return next((f"a Spark ML stage of class {cls:.100}, {why}" for cls, why in foreign_stages(file, name)), "")
    except InputError as exc:
        return str(exc)


def _in_stream(file: IO[bytes]) -> str:
    head = file.read(_HEAD)
    if head.startswith(b"PK\x03\x04"):
        return _in_archive(file)
    found = _in_head(head) or (_CALLED if _calls(file) else "")
    # Libraries find an archive by its end, whatever stands before it.
    if not found and file.seek(0, os.SEEK_END) >= _END_BYTES and zipfile.is_zipfile(file):
        found = _in_archive(file)
    return found


def _in_head(head: bytes) -> str:
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return f"a pickle of protocol {head[1]}"
    if head.startswith(_NUMPY) and _holds_objects(head):
        return "a NumPy array of Python objects, which is a pickle"
    packed = next((kind for magic, kind in _PACKED.items() if head.startswith(magic)), "")
    if not packed and len(head) > 1 and head[0] == 0x78 and int.from_bytes(head[:2]) % 31 == 0:
        packed = "zlib"
    if packed:
        return f"packed by {packed}, so that it cannot be looked into"
    if head[257:262] == b"ustar":
        return "a tar archive, as PyTorch once wrote them"
    return "an HDF5 file, whose Keras layers may hold code" if head.startswith(_HDF5) else ""


def _holds_objects(head: bytes) -> bool:
    # NumPy's header is a Python literal; whatever is not plainly that of a number's type counts as objects.
    size = struct.unpack_from("<H" if head[6:7] == b"\x01" else "<I", head.ljust(12, b"\0"), 8)[0]
    start = 10 if head[6:7] == b"\x01" else 12
    header = head[start : start + size].decode("latin-1")
    return len(header) < size or _OF_NUMBERS.fullmatch(header) is None


def _calls(file: IO[bytes], *, cut: bool = False) -> bool:
    """Return whether `file` reads as a pickle that imports or calls something, of a protocol without a mark of its own.

    Args:
        file: Looked at from its beginning; pickles may follow each other.
        cut: Whether it goes on where it ends: what was not seen may call.
    """
    file.seek(0)
    depth, marks, imports = 0, list[int](), False  # as the unpickler's own stack
    for _ in range(_MAX_OPCODES):
        code = file.read(1)
        opcode, at = _OPCODES.get(code), file.tell()
        if opcode is None or not _skip_argument(file, opcode):
            return not code and (cut or imports)
        if opcode.name == "GLOBAL":
            imports = True
            if _is_module(file, at):
                return True
        before = list(opcode.stack_before)
        if opcode.name == "POP" and marks and marks[-1] == depth:
            marks.pop()
            continue
        if pickletools.markobject in before or opcode.name == "POP_MARK":
            if not marks:
                return False
            depth = marks.pop()
            before = before[: before.index(pickletools.markobject)] if pickletools.markobject in before else []
        depth -= len(before)
        if depth < 0 or opcode.name in _CALLS:
            return depth >= 0
        if opcode.name == "STOP":
            if imports:
                return True
            depth, marks = 0, []
        elif opcode.name == "MARK":
            marks.append(depth)
        else:
            depth += len(opcode.stack_after)
    return True  # too long to be sure


def _is_module(file: IO[bytes], at: int) -> bool:
    # What a pickle imports before it falls apart has run. A list of words names no module, as a rule.
    then = file.tell()
    file.seek(at)
    top = file.readline(_MAX_NAME).decode(errors="replace").strip().split(".")[0]
    file.seek(then)
    return top in sys.stdlib_module_names or (top.isidentifier() and PathFinder.find_spec(top) is not None)


def _skip_argument(file: IO[bytes], opcode: pickletools.OpcodeInfo) -> bool:
    # Not read: the unpickler takes numbers and texts that pickletools refuses.
    if opcode.arg is None:
        return True
    if opcode.arg.n == pickletools.UP_TO_NEWLINE:
        lines = 2 if opcode.name in ("GLOBAL", "INST") else 1
        return all(file.readline().endswith(b"\n") for _ in range(lines))
    width = {
        pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4, pickletools.TAKEN_FROM_ARGUMENT4U: 4,
        pickletools.TAKEN_FROM_ARGUMENT8U: 8,
    }.get(opcode.arg.n, 0)  # fmt: skip
    raw = file.read(width)
    size = int.from_bytes(raw, "little", signed=opcode.arg.n == pickletools.TAKEN_FROM_ARGUMENT4)
    if len(raw) < width or not 0 <= size < 1 << 62:
        return False
    file.seek(size if width else opcode.arg.n, os.SEEK_CUR)
    return True


def _in_archive(file: IO[bytes]) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.filename.lower().endswith((".pkl", ".pickle")):
                    return f"an archive with the pickle {info.filename}"
                with archive.open(info) as member:
                    head = member.read(_HEAD)
                found = _in_head(head) or (_CALLED if _calls(io.BytesIO(head), cut=info.file_size > _HEAD) else "")
                if found and not found.startswith("an HDF5"):  # .keras holds its weights so, beside the layers
                    return f"an archive with {info.filename}: {found}"
                if os.path.basename(info.filename) == "config.json" and (found := _in_config(archive, info)):
                    return f"an archive with {info.filename}: {found}"
    except Exception:  # each packer fails in its own way (zlib.error, LZMAError, struct.error ...)
        return "an archive that cannot be looked into"
    return ""


def _in_config(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    if info.file_size > MAX_CONFIG:
        return "a description that is too long to be looked into"
    try:
        found = foreign_objects(archive.read(info))
        return next((f"a Keras layer of a {name:.100}, {why}" for name, why in found), "")
    except InputError as exc:
        return str(exc)
