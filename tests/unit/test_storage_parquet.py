"""Owners read and write encrypted Parquet with PyArrow, under named keys."""

import io
from typing import Any

import pytest

from strongroom._secret import SecretBytes
from strongroom.crypto.keys import KeyRing, StaticKeyRing
from strongroom.errors import DeniedError, InputError, IntegrityError
from strongroom.storage.parquet import crypto_factory

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pe = pytest.importorskip("pyarrow.parquet.encryption")

PEOPLE = pa.table({"name": [f"person-{n}" for n in range(100)], "salary": [1000 * n for n in range(100)]})
RINGS = {
    name: StaticKeyRing(name, {1: SecretBytes(bytes([n]) * 32)})
    for n, name in enumerate(("people-footer", "people-salary"))
}


def held(*names: str) -> Any:
    def ring(name: str) -> KeyRing:
        if name not in (names or RINGS):
            raise DeniedError(f"no key {name}")
        return RINGS[name]

    return crypto_factory(ring)


def written(**options: object) -> bytes:
    columns = {"people-salary": ["salary"], "people-footer": ["name"]}
    settings = {"footer_key": "people-footer", "column_keys": columns, **options}
    properties = held().file_encryption_properties(
        pe.KmsConnectionConfig(), pe.EncryptionConfiguration(data_key_length_bits=256, **settings)
    )
    out = io.BytesIO()
    with pq.ParquetWriter(out, PEOPLE.schema, encryption_properties=properties) as writer:
        writer.write_table(PEOPLE)
    return out.getvalue()


def read(raw: bytes, *names: str, columns: list[str] | None = None) -> Any:
    properties = held(*names).file_decryption_properties(pe.KmsConnectionConfig())
    return pq.ParquetFile(io.BytesIO(raw), decryption_properties=properties).read(columns=columns)


@pytest.mark.parametrize("algorithm", ["AES_GCM_V1", "AES_GCM_CTR_V1"])
@pytest.mark.parametrize("double_wrapping", [True, False])
def test_every_column_comes_back_and_none_is_in_the_file(algorithm: str, double_wrapping: bool) -> None:
    raw = written(encryption_algorithm=algorithm, double_wrapping=double_wrapping)
    assert raw.startswith(b"PARE")
    assert b"salary" not in raw.replace(b"people-salary", b"")
    assert b"person-" not in raw
    assert read(raw).equals(PEOPLE)


def test_T171_without_the_columns_key_the_others_can_be_read() -> None:
    raw = written()
    assert read(raw, "people-footer", columns=["name"]).column("name").equals(PEOPLE.column("name"))
    with pytest.raises(DeniedError, match="people-salary"):
        read(raw, "people-footer", columns=["salary"])
    with pytest.raises(DeniedError, match="people-footer"):
        read(raw, "people-salary")


def test_T174_a_flipped_bit_is_refused_or_changes_nothing() -> None:
    raw, refused = written(), 0
    places = range(4, len(raw) - 8, 5)
    for at in places:
        changed = bytearray(raw)
        changed[at] ^= 1
        try:
            # Some bytes do not count, such as the name of a KMS instance.
            assert read(bytes(changed)).equals(PEOPLE)
        except (OSError, ValueError, KeyError, TypeError, IntegrityError, DeniedError):  # PyArrow's classes, and ours
            refused += 1
    assert refused > 0.9 * len(places)


def test_T173_a_file_cannot_make_the_owner_ask_for_what_is_no_key_name() -> None:
    asked: list[str] = []

    def ring(name: str) -> KeyRing:
        asked.append(name)
        return RINGS["people-footer"]

    raw = written().replace(b'"masterKeyID":"people-footer"', b'"masterKeyID":"../../footer."')
    properties = crypto_factory(ring).file_decryption_properties(pe.KmsConnectionConfig())
    with pytest.raises(InputError, match="is not allowed"):
        pq.ParquetFile(io.BytesIO(raw), decryption_properties=properties)
    assert asked == []


def test_a_key_is_asked_for_once() -> None:
    asked: list[str] = []

    def ring(name: str) -> KeyRing:
        asked.append(name)
        return RINGS[name]

    factory, raw = crypto_factory(ring), written()
    for _ in range(2):
        properties = factory.file_decryption_properties(pe.KmsConnectionConfig())
        pq.ParquetFile(io.BytesIO(raw), decryption_properties=properties).read()
    assert sorted(asked) == ["people-footer", "people-salary"]
