"""What ties evidence to a conversation and to a job: report data and init data.

Both sides compute these from what they see; equality is the proof. Runs in the guest: standard library only.
Formats: docs/formats/release-protocol.md §3; RFC 8785; Initdata 0.1.0 (confidential containers).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from strongroom._encoding import canonical_json
from strongroom.errors import InputError

__all__ = [
    "INIT_DATA_VERSION",
    "JOB_FILE",
    "MAX_INIT_DATA_BYTES",
    "MAX_JOB_BYTES",
    "config_id",
    "expected_register",
    "init_data_digest",
    "job_init_data",
    "parse_init_data",
    "rcar_report_data",
    "render_init_data",
]

INIT_DATA_VERSION = "0.1.0"
JOB_FILE = "job.json"
MAX_INIT_DATA_BYTES = 256 << 10
MAX_JOB_BYTES = 128 << 10

_HEAD = ['algorithm = "sha256"', f'version = "{INIT_DATA_VERSION}"', "", "[data]"]
_MAX_FILES = 64
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def rcar_report_data(nonce: str, tee_pubkey_jwk: Mapping[str, object], additional_evidence: str = "") -> bytes:
    """Return the 64 bytes of report data that RCAR defines: SHA-384 of the runtime data, then 16 zeros.

    Args:
        nonce: The challenge, exactly as the service sent it.
        tee_pubkey_jwk: The guest's key, every member: all of them are under the hash.
        additional_evidence: As sent, "" if none.
    """
    bound = {"additional-evidence": additional_evidence, "nonce": nonce, "tee-pubkey": dict(tee_pubkey_jwk)}
    return hashlib.sha384(canonical_json(bound)).digest().ljust(64, b"\0")


def render_init_data(files: Mapping[str, str]) -> str:
    """Return the one Initdata document for `files`: sorted by name, every text a basic string.

    Raises:
        InputError: A text that UTF-8 cannot carry, or a document over 256 KiB.
    """
    lines = _HEAD + [f"{_basic_string(name)} = {_basic_string(files[name])}" for name in sorted(files)]
    text = "\n".join(lines) + "\n"
    _encoded(text)
    return text


def job_init_data(job: Mapping[str, object]) -> str:
    """Return the init data that carries only the job document `job`.

    Raises:
        InputError: The job document has no canonical form, or over 128 KiB.
    """
    raw = canonical_json(dict(job))
    if len(raw) > MAX_JOB_BYTES:
        raise InputError(f"the job document has {len(raw)} bytes, at most {MAX_JOB_BYTES} are allowed")
    return render_init_data({JOB_FILE: raw.decode("utf-8")})


def parse_init_data(text: str) -> dict[str, str]:
    """Return the files in an Initdata document of exactly the bytes that `render_init_data` gives them.

    A general TOML parser is not asked: it does much work for few bytes (dotted keys), and here one reading is enough.

    Raises:
        InputError: Another form, algorithm or version, more than 64 files, or over 256 KiB.
    """
    _encoded(text)
    *lines, rest = text.split("\n", len(_HEAD) + _MAX_FILES)
    if rest or lines[: len(_HEAD)] != _HEAD:
        raise InputError(f"init data: expected sha256, version {INIT_DATA_VERSION} and at most {_MAX_FILES} files")
    files = dict(_file(line) for line in lines[len(_HEAD) :])
    if render_init_data(files) != text:
        raise InputError("init data is not in the form of release-protocol.md §3")
    return files


def init_data_digest(text: str) -> bytes:
    """Return SHA-256 of the document's UTF-8 bytes, exactly as they travel."""
    return hashlib.sha256(_encoded(text)).digest()


def config_id(digest: bytes, size_bytes: int = 64) -> bytes:
    """Return `digest` padded with zeros: CONFIGID has 64 bytes, MRCONFIGID 48."""
    if len(digest) > size_bytes:
        raise InputError(f"a digest of {len(digest)} bytes does not fit {size_bytes}")
    return digest.ljust(size_bytes, b"\0")


def expected_register(digest: bytes) -> bytes:
    """Return RTMR3 after `digest`, padded to 48 bytes, was the one thing measured into it."""
    return hashlib.sha384(bytes(48) + config_id(digest, 48)).digest()


def _file(line: str) -> tuple[str, str]:
    # A basic string as `_basic_string` writes it is a JSON string too.
    decoder, found = json.JSONDecoder(), []
    try:
        name, end = decoder.raw_decode(line)
        if line[end : end + 3] == " = ":
            value, end = decoder.raw_decode(line, end + 3)
            found = [name, value] if end == len(line) else []
    except (ValueError, RecursionError) as exc:
        raise InputError(f"init data: a line is not a file: {type(exc).__name__}") from exc
    if len(found) != 2 or not all(isinstance(part, str) for part in found):
        raise InputError('init data: expected lines "name" = "text"')
    return found[0], found[1]


def _encoded(text: str) -> bytes:
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise InputError("init data has a character that UTF-8 cannot carry") from exc
    if len(raw) > MAX_INIT_DATA_BYTES:
        raise InputError(f"init data has {len(raw)} bytes, at most {MAX_INIT_DATA_BYTES} are allowed")
    return raw


def _basic_string(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(c) or (f"\\u{ord(c):04x}" if c < " " or c == "\x7f" else c) for c in text) + '"'
