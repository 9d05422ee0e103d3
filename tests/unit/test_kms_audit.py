from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes.stores import open_store

from strongroom.errors import IntegrityError, VerificationError
from strongroom.kms.audit import AuditLog
from strongroom.kms.audit_chain import AuditHead, read_head, verify_records
from strongroom.kms.stores.sql import SQLStore, audit

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SIGNER, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
KEYS = [SIGNER.public_key()]
COUNT = 6


def _written(
    folder: Path, signer: ec.EllipticCurvePrivateKey, count: int = COUNT, subject: str = "key sales"
) -> SQLStore:
    store, log = open_store(folder), AuditLog(signer)
    for number in range(count):
        with store.transaction() as tx:
            owner = "a" if number % 2 == 0 else "b"
            log.append(
                tx, now=NOW, owner=owner, actor=f"owner {owner}", action="release", subject=subject, allowed=True
            )
    return store


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    with _written(tmp_path_factory.mktemp("audit"), SIGNER).transaction() as tx:
        return AuditLog.export(tx, "a", after=0, limit=100)


@pytest.fixture
def log(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return copy.deepcopy(records)


def test_a_whole_log_holds(log: list[dict[str, Any]]) -> None:
    head = verify_records(log, KEYS, owner="a", newest=None)
    assert head.seq == COUNT
    assert head == read_head(str(log[-1]["head"]), KEYS)
    assert verify_records(log, KEYS, owner="a", newest=head) == head
    assert verify_records(log, KEYS, owner="a", newest=AuditHead(seq=3, chain=log[2]["chain"])) == head
    assert verify_records([], KEYS, owner="a", newest=None).seq == 0


def test_of_others_only_hashes(log: list[dict[str, Any]]) -> None:
    assert [r["record"] is not None for r in log] == [True, False] * (COUNT // 2)
    assert all(json.loads(r["record"])["owner"] == "a" for r in log if r["record"])


@pytest.mark.parametrize("field", ["record", "owner_tag", "record_hash", "chain", "head"])
@pytest.mark.parametrize("number", [0, 1, COUNT - 1, COUNT - 2])
def test_an_altered_byte_is_found_and_named(log: list[dict[str, Any]], field: str, number: int) -> None:
    text = log[number][field]
    if text is None:
        log[number][field] = '{"seq":' + str(number + 1) + "}"
    else:
        at = len(text) // 2
        log[number][field] = text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]
    with pytest.raises(IntegrityError, match=f"record {number + 1} "):
        verify_records(log, KEYS, owner="a", newest=None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_any_altered_byte_of_any_field_is_found(records: list[dict[str, Any]], data: st.DataObject) -> None:
    log = copy.deepcopy(records)
    entry = log[data.draw(st.integers(0, COUNT - 1))]
    field = data.draw(st.sampled_from([f for f in ("record", "owner_tag", "record_hash", "chain", "head") if entry[f]]))
    at = data.draw(st.integers(0, len(entry[field]) - 1))
    letter = data.draw(st.characters(min_codepoint=32, max_codepoint=126).filter(lambda c: c != entry[field][at]))
    entry[field] = entry[field][:at] + letter + entry[field][at + 1 :]
    with pytest.raises(IntegrityError):
        verify_records(log, KEYS, owner="a", newest=None)


def test_T163_a_record_withheld_from_its_owner_is_named(log: list[dict[str, Any]], tmp_path: Path) -> None:
    log[2]["record"] = None
    with pytest.raises(IntegrityError, match="record 3 is withheld"):
        verify_records(log, KEYS, owner="a", newest=None)
    assert verify_records(log, KEYS, owner="c", newest=None).seq == COUNT, "to another owner that is what it looks like"
    # In the database: whatever the row says about owner and record, the owner notices.
    for change in ({"owner": "0", "record": "gone"}, {"owner": "b"}, {"record": "gone"}, {"owner": "0"}):
        folder = tmp_path / "-".join(change.values())
        folder.mkdir()
        with _written(folder, SIGNER).transaction() as tx:
            tx.execute(sa.update(audit).where(audit.c.seq == 3).values(**change))
            with pytest.raises(IntegrityError, match="record 3 "):
                verify_records(AuditLog.export(tx, "a", after=0, limit=100), KEYS, owner="a", newest=None)


@pytest.mark.parametrize("number", range(COUNT - 1))
def test_a_dropped_record_is_found(log: list[dict[str, Any]], number: int) -> None:
    del log[number]
    with pytest.raises(IntegrityError, match=f"record {number + 1} is missing"):
        verify_records(log, KEYS, owner="a", newest=None)
    for seq, entry in enumerate(log, 1):  # and if the numbers were made to fit
        entry["seq"] = seq
    with pytest.raises(IntegrityError):
        verify_records(log, KEYS, owner="a", newest=None)


def test_reordered_records_are_found(log: list[dict[str, Any]]) -> None:
    log[1], log[2] = log[2], log[1]
    with pytest.raises(IntegrityError, match="record 2"):
        verify_records(log, KEYS, owner="a", newest=None)
    log[1]["seq"], log[2]["seq"] = 2, 3
    with pytest.raises(IntegrityError, match="record 2"):
        verify_records(log, KEYS, owner="a", newest=None)


def test_a_repeated_record_is_found(log: list[dict[str, Any]]) -> None:
    with pytest.raises(IntegrityError):
        verify_records([*log[:2], log[1], *log[2:]], KEYS, owner="a", newest=None)


def test_a_cut_tail_is_found_by_who_saw_it(log: list[dict[str, Any]]) -> None:
    newest = verify_records(log, KEYS, owner="a", newest=None)
    assert verify_records(log[:-1], KEYS, owner="a", newest=None).seq == COUNT - 1, "nothing in the rest can show it"
    with pytest.raises(IntegrityError, match="tail was cut"):
        verify_records(log[:-1], KEYS, owner="a", newest=newest)


def test_a_chain_recomputed_with_another_key_is_found(tmp_path: Path) -> None:
    with _written(tmp_path, OTHER).transaction() as tx:
        forged = AuditLog.export(tx, "a", after=0, limit=100)
    with pytest.raises(IntegrityError, match="record 1 is not signed"):
        verify_records(forged, KEYS, owner="a", newest=None)


def test_a_log_that_the_key_itself_wrote_anew_is_found(log: list[dict[str, Any]], tmp_path: Path) -> None:
    newest = verify_records(log, KEYS, owner="a", newest=None)
    with _written(tmp_path, SIGNER, COUNT + 1, subject="key other").transaction() as tx:
        rewritten = AuditLog.export(tx, "a", after=0, limit=100)
    with pytest.raises(IntegrityError, match="log was rewritten"):
        verify_records(rewritten, KEYS, owner="a", newest=newest)


def test_the_signature_of_another_record_is_found(log: list[dict[str, Any]]) -> None:
    log[2]["head"] = log[3]["head"]
    with pytest.raises(IntegrityError, match="record 3 carries"):
        verify_records(log, KEYS, owner="a", newest=None)


@pytest.mark.parametrize(
    "entry", [{}, {"seq": 1}, {"seq": 1, "record": 5, "record_hash": [], "chain": None, "head": {}}]
)
def test_what_is_no_record(entry: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        verify_records([entry], KEYS, owner="a", newest=None)


def test_a_head_is_of_its_type(log: list[dict[str, Any]]) -> None:
    with pytest.raises(VerificationError):
        read_head(str(log[0]["head"]), [OTHER.public_key()])
    with pytest.raises(VerificationError):
        read_head("", KEYS)


def test_a_page_of_long_records_stays_readable(tmp_path: Path) -> None:
    with _written(tmp_path, SIGNER, 24, subject="x" * (1 << 20)).transaction() as tx:
        found: list[dict[str, Any]] = []
        pages = []
        while page := AuditLog.export(tx, "a", after=len(found), limit=1000):
            pages.append(sum(len(str(r["record"] or "")) for r in page))
            found += page
    assert verify_records(found, KEYS, owner="a", newest=None).seq == 24
    assert len(pages) > 1
    assert max(pages) < 10 << 20
