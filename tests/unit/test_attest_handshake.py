from __future__ import annotations

import copy
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from strongroom.attest.binding import rcar_report_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.handshake import (
    PROTOCOL_VERSION,
    AttestRequest,
    AuthRequest,
    Challenge,
    tee_pubkey,
)
from strongroom.crypto.x509 import spki_id
from strongroom.errors import EvidenceError, InputError

KEY, TLS = (ec.generate_private_key(ec.SECP256R1()).public_key() for _ in range(2))
NONCE = "n" * 43
EVIDENCE = Evidence(tee="sgx", quote=b"quote")


def _request(**changes: object) -> AttestRequest:
    values: dict[str, object] = {
        "nonce": NONCE,
        "tee_pubkey": tee_pubkey(KEY, TLS),
        "evidence": EVIDENCE.to_json(),
        "init_data": "text",
    }
    return AttestRequest(**{**values, **changes})  # type: ignore[arg-type]


def test_messages_round_trip() -> None:
    for message in (AuthRequest(tee="sgx"), Challenge(nonce=NONCE), _request(), _request(init_data=None)):
        wire = json.loads(json.dumps(message.to_json()))
        assert type(message).from_json(wire) == message


def test_the_wire_names_are_the_protocols() -> None:
    assert AuthRequest(tee="tdx").to_json() == {"version": PROTOCOL_VERSION, "tee": "tdx", "extra-params": {}}
    wire = _request().to_json()
    assert set(wire) == {"init-data", "runtime-data", "tee-evidence"}
    assert wire["init-data"] == {"format": "toml", "body": "text"}


def test_a_stock_client_is_understood() -> None:
    AuthRequest.from_json(
        {"version": "0.4.0", "tee": "sgx", "extra-params": {"supported-hash-algorithms": ["sha256", "sha384"]}}
    )
    stock = {
        "runtime-data": {"nonce": NONCE, "tee-pubkey": tee_pubkey(KEY)},
        "tee-evidence": {"primary_evidence": {"quote": "cXVvdGU="}, "additional_evidence": ""},
    }
    request = AttestRequest.from_json(stock)
    assert request.tee_key().tls_spki is None
    assert request.read_evidence("sgx") == EVIDENCE


def test_both_sides_compute_the_same_report_data() -> None:
    received = AttestRequest.from_json(json.loads(json.dumps(_request().to_json())))
    assert received.report_data() == rcar_report_data(NONCE, tee_pubkey(KEY, TLS))
    found = received.tee_key()
    assert found.key.public_numbers() == KEY.public_numbers()
    assert found.tls_spki == spki_id(TLS)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"tee": "sgx"},
        {"version": "0.1.1", "tee": "sgx"},
        {"version": "0.4.0", "tee": "sample"},
        {"version": "0.4.0", "tee": 1},
        {"version": "0.4.0", "tee": "sgx", "more": 1},
    ],
)
def test_other_auth_requests_are_refused(value: object) -> None:
    with pytest.raises(InputError):
        AuthRequest.from_json(value)


@pytest.mark.parametrize("value", [{}, {"nonce": "short"}, {"nonce": "n" * 257}, {"nonce": NONCE, "more": 1}])
def test_other_challenges_are_refused(value: object) -> None:
    with pytest.raises(InputError):
        Challenge.from_json(value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("more",), 1),
        (("runtime-data", "more"), 1),
        (("runtime-data", "nonce"), "n" * 257),
        (("runtime-data", "nonce"), 3),
        (("runtime-data", "tee-pubkey", "kid"), "x"),
        (("runtime-data", "tee-pubkey", "x"), "A" * 200),
        (("runtime-data", "tee-pubkey"), "x"),
        (("tee-evidence", "more"), 1),
        (("tee-evidence", "primary_evidence"), "text"),
        (("init-data", "format"), "json"),
        (("init-data", "body"), "x" * ((1 << 20) + 1)),
        (("init-data", "more"), "x"),
    ],
)
def test_altered_attest_requests_are_refused(path: tuple[str, ...], value: object) -> None:
    wire = copy.deepcopy(_request().to_json())
    at: dict[str, object] = wire
    for name in path[:-1]:
        at = at[name]  # type: ignore[assignment]
    at[path[-1]] = value
    with pytest.raises(InputError):
        AttestRequest.from_json(wire)


def test_bad_keys_are_refused() -> None:
    for change in ({"x-tls-spki": "sha256:zz"}, {"crv": "P-384"}, {"alg": "RSA-OAEP-256"}, {"y": "AAAA"}):
        request = _request(tee_pubkey={**tee_pubkey(KEY), **change})
        with pytest.raises(InputError):
            request.tee_key()


def test_evidence_of_devices_is_refused_not_dropped() -> None:
    for devices in ('{"nvidia":["gpu",""]}', "{} ", "[]"):
        with pytest.raises(EvidenceError):
            _request(additional_evidence=devices).read_evidence("sgx")


@pytest.mark.parametrize("value", [None, {}, {"quote": 1}, {"quote": "*"}, {"quote": ""}, {"quote": "AA==", "x": 1}])
def test_other_evidence_objects_are_refused(value: object) -> None:
    with pytest.raises(EvidenceError):
        Evidence.from_json(value, "sgx")


def test_too_large_evidence_is_refused() -> None:
    with pytest.raises(EvidenceError):
        Evidence.from_json({"quote": "A" * 90_000}, "sgx")
