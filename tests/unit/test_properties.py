"""Two properties of each format that carries trust: it comes back as it was written, one flipped bit is refused."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.attest_parts import NOW, REPORT_DATA, FakeAttester, Platform

from strongroom._encoding import b64u, b64u_decode, canonical_json, parse_json
from strongroom._secret import SecretBytes
from strongroom.attest import policies as p
from strongroom.attest import ratls, result
from strongroom.attest.appraisal import policy_from_json, policy_to_json
from strongroom.attest.binding import parse_init_data, render_init_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.handshake import AttestRequest, tee_pubkey
from strongroom.attest.verifiers import verify_any
from strongroom.crypto import column_keys, jose, x509
from strongroom.crypto.header import FileHeader
from strongroom.crypto.keys import StaticKeyRing, new_prefix
from strongroom.crypto.proof import DATASET_HEAD_TYPE
from strongroom.crypto.stream import Writer
from strongroom.errors import InputError, StrongroomError
from strongroom.keyagent import protocol
from strongroom.kms.audit import AuditLog
from strongroom.kms.audit_chain import verify_records
from strongroom.kms.stores.sql import audit
from strongroom.storage.dataset import Manifest, ManifestEntry
from strongroom.storage.files import Expected, open_sealed

FEW = settings(max_examples=40, deadline=None)
KEY = x509.new_key()
RING = StaticKeyRing("sales", {1: SecretBytes(b"k" * 32)})
CHOICES = [(Platform().verifier, Platform().endorsements())]
TEXT = st.text(max_size=40)
NAMES = st.from_regex(r"[a-z0-9]{1,8}(/[a-zé]{1,4}\.csv)?", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


# --- written and read again


@FEW
@given(JSON)
def test_canonical_json(value: object) -> None:
    raw = canonical_json(value)
    assert parse_json(raw, "it") == value
    assert canonical_json(json.loads(raw)) == raw


@FEW
@given(st.binary(max_size=80))
def test_base64url(raw: bytes) -> None:
    assert b64u_decode(b64u(raw)) == raw


def _sealed(plain: bytes) -> bytes:
    header = FileHeader(key_name="sales", key_version=1, dataset_id=b"d" * 16, run_id=bytes(16))
    prefix, secret = new_prefix(RING.version(1), header)
    out = io.BytesIO()
    with Writer(out, prefix, secret) as writer:
        writer.write(plain)
    return out.getvalue()


def _open(raw: bytes) -> bytes:
    return open_sealed(io.BytesIO(raw), RING, Expected(dataset_id=b"d" * 16)).reader.readall()


@FEW
@given(st.integers(0, 40_000), st.binary(max_size=9))
def test_sealed_files(size: int, pattern: bytes) -> None:
    plain = (pattern * size)[:size]
    assert _open(_sealed(plain)) == plain


@FEW
@given(st.dictionaries(NAMES, st.integers(0, 2**53 - 1), max_size=6))
def test_manifests(files: dict[str, int]) -> None:
    entries = tuple(ManifestEntry(path=n, size=s, salt=b"s" * 24, key_version=1) for n, s in files.items())
    try:
        manifest = Manifest(dataset="ab" * 16, entries=entries)
    except InputError:
        return  # a file where a folder must be
    assert Manifest.decode(manifest.encode()) == manifest


@FEW
@given(st.dictionaries(TEXT, TEXT, max_size=6))
def test_init_data(files: dict[str, str]) -> None:
    assert parse_init_data(render_init_data(files)) == files


@FEW
@given(st.sampled_from(protocol.Operation), st.lists(st.binary(max_size=30), min_size=3, max_size=3))
def test_key_agent_frames(operation: protocol.Operation, fields: list[bytes]) -> None:
    wanted = tuple(fields[: protocol._FIELDS[operation]])
    request = protocol.decode_request(protocol.encode_request(operation, *wanted))
    assert (request.operation, request.fields) == (operation, wanted)
    assert protocol.decode_reply(protocol.encode_reply(*wanted)) == wanted


@FEW
@given(TEXT, st.binary(min_size=1, max_size=99), st.none() | TEXT)
def test_attest_requests(nonce: str, quote: bytes, init_data: str | None) -> None:
    evidence = Evidence(tee="sgx", quote=quote)
    pubkey = tee_pubkey(KEY.public_key(), KEY.public_key())
    request = AttestRequest(nonce=nonce, tee_pubkey=pubkey, evidence=evidence.to_json(), init_data=init_data)
    again = AttestRequest.from_json(json.loads(json.dumps(request.to_json())))
    assert again == request
    assert again.read_evidence("sgx") == evidence


_HEX = st.lists(st.sampled_from(["a" * 64, "b" * 96, "0" * 64]), min_size=1, max_size=3).map(tuple)
_LEAF = st.one_of(
    st.builds(p.Measurement, _HEX),
    st.builds(p.Signer, _HEX),
    st.builds(p.MinimumSvn, st.integers(0, 65535), st.none() | st.integers(0, 65535)),
    st.builds(p.TcbStatus, st.just(("UpToDate", "OutOfDate"))),
    st.builds(p.JobDigest, st.just(("sha256:" + "1" * 64,)), st.just((p.FreeArgument(index=1, pattern="[a-z]+"),))),
    st.just(p.NotDebug()),
    st.just(p.UnsafeAcceptSimulated()),
)
_POLICY = st.recursive(
    _LEAF,
    lambda inner: st.builds(p.AllOf, st.tuples(inner, inner)) | st.builds(p.AnyOf, st.tuples(inner)),
    max_leaves=8,
)


@FEW
@given(_POLICY)
def test_policies(policy: p.Policy) -> None:
    written = json.loads(json.dumps(policy_to_json(policy)))
    with contextlib.suppress(InputError):  # deeper than policies may be
        assert policy_from_json(written) == policy


# --- one flipped bit


def _audit_log() -> bytes:
    engine = sa.create_engine("sqlite://")
    audit.metadata.create_all(engine)
    with engine.begin() as tx:
        for owner in ("a" * 64, "b" * 64, "a" * 64):
            AuditLog(KEY).append(tx, now=NOW, owner=owner, actor="x", action="release", subject="key s", allowed=True)
        return json.dumps(AuditLog.export(tx, "a" * 64, after=0, limit=9), separators=(",", ":")).encode()


def _verify_log(raw: bytes) -> object:
    value = parse_json(raw, "the log")
    if not isinstance(value, list) or not all(isinstance(r, dict) for r in value):
        raise InputError("not a log")
    return verify_records(value, [KEY.public_key()], owner="a" * 64, newest=None)


def _verify_quote(tee: str) -> Callable[[bytes], object]:
    choices = [(Platform().verifier, Platform().endorsements(tee))]
    return lambda raw: verify_any(Evidence(tee=tee, quote=raw), choices, now=NOW)


def _jws(typ: str) -> Callable[[bytes], object]:
    return lambda raw: jose.verify_jws(raw.decode("latin-1"), [KEY.public_key()], typ=typ)


CERTIFICATE = ratls.make_certificate(
    ec.generate_private_key(ec.SECP384R1()), FakeAttester(), now=NOW, lifetime=timedelta(days=1)
)
EAR = result.issue_ear(Platform().claims(), policy_id="x", appraised=False, nonce="n" * 43, key=KEY, now=NOW)
HEAD = {"dataset": "ab" * 16, "epoch": 3, "key": "sales", "manifest": "sha256:" + "1" * 64, "owner": "a" * 64}
SIGNED: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "sealed file": (_sealed(b"x" * 20_000), _open),
    "column key": (column_keys.wrap_column_key(RING, b"c" * 16), lambda raw: column_keys.unwrap_column_key(RING, raw)),
    "SGX quote": (Platform().quote(), _verify_quote("sgx")),
    "TDX quote": (Platform().quote_tdx(report_data=REPORT_DATA), _verify_quote("tdx")),
    "RA-TLS certificate": (
        CERTIFICATE.public_bytes(Encoding.DER),
        lambda raw: ratls.verify_certificate(raw, lambda e: verify_any(e, CHOICES, now=NOW), now=NOW),
    ),
    "JWE": (
        json.dumps(jose.jwe_seal(b"the key", KEY.public_key()), separators=(",", ":")).encode(),
        lambda raw: jose.jwe_open(parse_json(raw, "a JWE"), KEY),
    ),
    "signed head": (jose.sign_jws(HEAD, KEY, typ=DATASET_HEAD_TYPE).encode(), _jws(DATASET_HEAD_TYPE)),
    "EAR": (EAR.encode(), lambda raw: result.verify_ear(raw.decode("latin-1"), [KEY.public_key()], NOW)),
    "audit log": (_audit_log(), _verify_log),
}


@pytest.mark.parametrize("what", SIGNED)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_one_flipped_bit_is_refused(what: str, data: st.DataObject) -> None:
    raw, read = SIGNED[what]
    read(raw)
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    altered = bytearray(raw)
    altered[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StrongroomError):
        read(bytes(altered))
