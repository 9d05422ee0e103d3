"""Writes tests/vectors/sealed-file.json: valid files and files that must be refused, each with its failure class.

Provenance: keys, salts and plaintext are SHA-256 of labels. The valid bytes are checked against
`cryptography.cobblestone` before they are written, so the vectors do not rest on the code that they test.

    PYTHONPATH=src python tests/vectors/make_sealed_file.py
"""

import hashlib
import io
import json
import zlib
from base64 import b64encode
from pathlib import Path

import cryptography
from cryptography.cobblestone import Cobblestone256Decryptor

from strongroom._secret import SecretBytes
from strongroom.crypto.header import FileHeader
from strongroom.crypto.stream import Writer, new_prefix

CHUNK, SEALED, PREFIX = 16_384, 16_400, 184
KEY_NAME, KEY_VERSION = "vectors", 7
KEY = hashlib.sha256(b"strongroom vectors: key").digest()
DATASET = hashlib.sha256(b"strongroom vectors: data set").digest()[:16]


def plain(size: int) -> bytes:
    return bytes(i % 251 for i in range(size))


def seal(label: str, size: int, **changes: object) -> bytes:
    fields = {"key_name": KEY_NAME, "key_version": KEY_VERSION, "dataset_id": DATASET, "run_id": bytes(16)} | changes
    header = FileHeader(**fields)  # type: ignore[arg-type]
    prefix, secret = new_prefix(SecretBytes(KEY), header, hashlib.sha256(label.encode()).digest()[:24])
    raw = io.BytesIO()
    with Writer(raw, prefix, secret) as writer:
        writer.write(plain(size))
    blob = raw.getvalue()
    opener = Cobblestone256Decryptor(KEY, blob[:128])
    assert opener.update(blob[128:]) + opener.finalize() == plain(size)
    return blob


def vector(name: str, blob: bytes, failure: str | None = None, *, size: int = 0, key: bytes = KEY) -> dict[str, object]:
    good = {"plain_size": size, "plain_sha256": hashlib.sha256(plain(size)).hexdigest()} if failure is None else {}
    return {
        "name": name,
        "key": key.hex(),
        "key_name": KEY_NAME,
        "key_version": KEY_VERSION,
        "dataset": DATASET.hex(),
        "failure": failure,
        "file": b64encode(zlib.compress(blob, 9)).decode(),
        **good,
    }


def flipped(blob: bytes, at: int) -> bytes:
    return blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]


def valid() -> list[dict[str, object]]:
    sizes = {
        "empty": 0,
        "one_byte": 1,
        "chunk_less_one": CHUNK - 1,
        "exactly_one_chunk": CHUNK,
        "chunk_and_one": CHUNK + 1,
        "exactly_two_chunks": 2 * CHUNK,
        "three_chunks": 2 * CHUNK + 100,
    }
    return [vector(f"valid_{name}", seal(name, size), size=size) for name, size in sizes.items()] + [
        vector("valid_with_run_id", seal("run", 10, run_id=b"\x11" * 16), size=10)
    ]


def refused() -> list[dict[str, object]]:
    tiny = seal("tiny", 100)
    blob = seal("base", 2 * CHUNK + 100)
    other = seal("other", 2 * CHUNK + 100)
    exact = seal("exact", CHUNK)
    body = [blob[PREFIX : PREFIX + SEALED], blob[PREFIX + SEALED : PREFIX + 2 * SEALED], blob[PREFIX + 2 * SEALED :]]
    prefix = blob[:PREFIX]
    flips = {
        "magic": (0, "format"),
        "format_version": (9, "format"),
        "name_length": (11, "format"),
        "key_name": (48, "identity"),
        "name_padding": (111, "format"),
        "reserved": (127, "format"),
        "dataset_id": (16, "identity"),
        "run_id": (32, "commitment"),
        "salt": (128, "commitment"),
        "commitment": (152, "commitment"),
        "first_chunk": (PREFIX, "chunk"),
        "first_tag": (PREFIX + CHUNK, "chunk"),
        "middle_chunk": (PREFIX + SEALED + 5, "chunk"),
        "final_chunk": (PREFIX + 2 * SEALED, "chunk"),
        "final_tag": (len(blob) - 1, "chunk"),
    }
    return [
        *(
            vector(f"flipped_{name}", flipped(tiny if at < PREFIX else blob, at), failure)
            for name, (at, failure) in flips.items()
        ),
        vector("no_bytes", b"", "truncated"),
        vector("header_only", blob[:128], "truncated"),
        vector("prefix_only", prefix, "truncated"),
        vector("prefix_one_short", blob[: PREFIX - 1], "truncated"),
        vector("truncated_at_chunk_border", prefix + body[0] + body[1], "truncated"),
        vector("truncated_final_empty_chunk", exact[: PREFIX + SEALED], "truncated"),
        vector("truncated_inside_tag", blob[: PREFIX + 2 * SEALED + 15], "truncated"),
        vector("truncated_inside_chunk", blob[:-1], "chunk"),
        vector("trailing_byte", tiny + b"\x00", "chunk"),
        vector("trailing_chunk", blob + bytes(SEALED), "chunk"),
        vector("chunks_reordered", prefix + body[1] + body[0] + body[2], "chunk"),
        vector("chunk_repeated", prefix + body[0] + body[0] + body[2], "chunk"),
        vector("chunk_dropped", prefix + body[0] + body[2], "chunk"),
        vector(
            "chunk_of_another_file", prefix + body[0] + other[PREFIX + SEALED : PREFIX + 2 * SEALED] + body[2], "chunk"
        ),
        vector("body_of_another_file", prefix + other[PREFIX:], "chunk"),
        vector("header_swapped", seal("run2", 10, run_id=b"\x22" * 16)[:128] + tiny[128:], "commitment"),
        vector("wrong_key", tiny, "commitment", key=hashlib.sha256(b"another key").digest()),
        vector("another_key_name", seal("name", 10, key_name="others"), "identity"),
        vector("another_dataset", seal("set", 10, dataset_id=b"\x33" * 16), "identity"),
        vector("no_dataset", seal("none", 10, dataset_id=bytes(16)), "identity"),
        vector("name_length_zero", tiny[:10] + b"\x00\x00" + tiny[12:], "format"),
        vector("name_length_65", tiny[:10] + b"\x00\x41" + tiny[12:], "format"),
        vector("key_version_zero", tiny[:12] + bytes(4) + tiny[16:], "format"),
        vector("name_upper_case", tiny[:48] + b"V" + tiny[49:], "format"),
    ]


def main() -> None:
    out = {
        "description": "docs/formats/sealed-file.md. `file`: base64 of zlib of the file; `failure`: §6 or null",
        "provenance": f"make_sealed_file.py; valid files checked with cryptography {cryptography.__version__}",
        "vectors": valid() + refused(),
    }
    Path(__file__).with_name("sealed-file.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
