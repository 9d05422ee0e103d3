# ruff: noqa: E501  # tables
"""A key at a stock KBS: where it lies, the exchange, and what the guest refuses. T282-T284 of docs/threat-model.md."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.attest_parts import JOB, FakeAttester, Platform
from tests.fakes.snp_parts import TURIN
from tests.fakes.stock_kbs import Answer, StockKBS, canonical, make_certificate, problem, seal

from strongroom._secret import SecretBytes
from strongroom.attest.binding import config_id, init_data_digest, job_init_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.kbs import KBSKey, fetch_key
from strongroom.crypto import x509
from strongroom.crypto.jose import jwk
from strongroom.errors import DeniedError, InputError, StrongroomError, UnavailableError, VerificationError
from strongroom.guest import cvm
from strongroom.guest import kbs as guest_kbs
from strongroom.guest.kbs import outward

KEY = bytes(range(32))
PATH = "acme/key/sales"


@pytest.fixture
def kbs(tmp_path: Path) -> Iterator[StockKBS]:
    with StockKBS(tmp_path, {PATH: KEY, "acme/key/short": KEY[:31], "acme/key/hex": KEY.hex().encode()}) as made:
        yield made


def fetch(kbs: StockKBS, path: str = PATH, **changes: Any) -> bytes:
    key = KBSKey.parse(f"{kbs.url}/{path}")
    values: dict[str, Any] = {
        "certificate": kbs.certificate,
        "attester": FakeAttester(),
        "init_data": job_init_data(JOB),
        "dial": lambda: socket.create_connection(("127.0.0.1", kbs.port), 5),
        "answered": set(),
    }
    with fetch_key(key, **{**values, **changes}) as raw:
        return bytes(raw)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("kbs+https://kbs.example.org/acme/key/sales", "kbs.example.org:443"),
        ("kbs+https://10.0.0.7:8080/acme/key/sales", "10.0.0.7:8080"),
        ("kbs+https://[fd00::7]:8080/acme/key/sales", "[fd00::7]:8080"),
    ],
)
def test_a_key_has_a_place(text: str, address: str) -> None:
    found = KBSKey.parse(text)
    assert (found.address, found.resource) == (address, PATH)


@pytest.mark.parametrize(
    "text",
    [
        "https://kbs/acme/key/sales", "kbs+http://kbs/acme/key/sales", "kbs+https://kbs/acme/sales",
        "kbs+https://kbs/acme/key/sales/4", "kbs+https://kbs/acme/../sales", "kbs+https://kbs/acme/key/sa%2fles",
        "kbs+https://kbs/acme/key/sales?x", "kbs+https://a@kbs/acme/key/sales", "kbs+https://kbs:0/acme/key/sales",
        "kbs+https://kbs:70000/acme/key/sales", "kbs+https://kbs:8080:1/acme/key/sales", "kbs+https:///acme/key/sales",
        "kbs+https://kbs/acme/key/sales\n", "kbs+https://kbs\r\nx/acme/key/sales", "kbs+https://kbs/acme//sales", "",
    ],
)  # fmt: skip
def test_other_forms_are_no_places(text: str) -> None:
    with pytest.raises(InputError, match="is no key of a KBS"):
        KBSKey.parse(text)


def test_a_key_is_fetched(kbs: StockKBS) -> None:
    assert fetch(kbs) == KEY
    (_, _, auth), (_, _, attest), (method, path, _) = kbs.seen
    assert auth == {"version": "0.4.0", "tee": "sgx", "extra-params": {}}
    assert set(attest["runtime-data"]["tee-pubkey"]) == {"kty", "crv", "alg", "x", "y"}, "no member of ours"
    assert (method, path) == ("GET", f"/kbs/v0/resource/{PATH}")


class TDX(FakeAttester):
    tee = "tdx"

    def attest(self, report_data: bytes) -> Evidence:
        digest = init_data_digest(job_init_data(JOB))
        return Evidence(tee="tdx", quote=Platform().quote_tdx(report_data=report_data, config_id=config_id(digest, 48)))


class SNP(FakeAttester):
    tee = "snp"

    def attest(self, report_data: bytes) -> Evidence:
        bound = {0x50: report_data, 0xC0: init_data_digest(job_init_data(JOB))}
        return TURIN.evidence(certificate=True, changes=bound)


@pytest.mark.parametrize("kind", [TDX, SNP])
def test_a_confidential_vm_fetches_a_key(kbs: StockKBS, kind: type[FakeAttester]) -> None:
    assert fetch(kbs, attester=kind()) == KEY
    shown = kbs.seen[1][2]["tee-evidence"]["primary_evidence"]
    assert set(shown) == ({"quote"} if kind is TDX else {"attestation_report", "cert_chain"})
    with pytest.raises(DeniedError, match=r"(MRCONFIGID|HOSTDATA) is different"):
        fetch(kbs, attester=kind(), init_data=job_init_data({**JOB, "name": "other"}))


def test_each_key_has_a_conversation_and_a_key_pair_of_its_own(kbs: StockKBS) -> None:
    answered: set[str] = set()
    assert fetch(kbs, answered=answered) == fetch(kbs, answered=answered) == KEY
    pubkeys = [json.dumps(m["runtime-data"]["tee-pubkey"]) for _, path, m in kbs.seen if path.endswith("attest")]
    assert len(set(pubkeys)) == len(answered) == 2


VOLUME = {
    "name": "a",
    "key": "sales",
    "mode": "ro",
    "dataset": "1" * 32,
    "epoch": "1",
    "manifest": "sha256:" + "1" * 64,
}


@pytest.mark.parametrize(
    "other",
    [{"manifest": "sha256:" + "2" * 64}, {"epoch": "2"}, {"certificate": "another"}, {"key": "sold"},
     {"dataset": "2" * 32, "certificate": "another"}],
)  # fmt: skip
def test_T285_a_second_pin_of_one_data_set_or_key_is_refused(
    kbs: StockKBS, monkeypatch: pytest.MonkeyPatch, other: dict[str, str]
) -> None:
    monkeypatch.setattr(guest_kbs, "fetch_key", lambda *_a, **_k: SecretBytes(bytes(32)))
    volume = {**VOLUME, "owner": f"{kbs.url}/acme/key/sales", "certificate": kbs.certificate}

    def received(second: dict[str, str]) -> int:
        document = {"volumes": [], "kbs": [volume, {**volume, "name": "b", **second}]}
        return len(guest_kbs.receive_kbs(document, FakeAttester(), "", lambda _: socket.socket()))

    assert received({}) == 1
    with pytest.raises(InputError, match=r"volume b: expected one pin of .*, got two"):
        received(other)


def test_the_policy_of_the_kbs_sees_the_job(kbs: StockKBS) -> None:
    kbs.policy = lambda init_data, _path: init_data == job_init_data(JOB)
    assert fetch(kbs) == KEY
    kbs.policy = lambda _init_data, _path: False
    with pytest.raises(DeniedError, match=r"refused /kbs/v0/resource/acme/key/sales: PolicyDeny: Access denied"):
        fetch(kbs)
    kbs.policy = lambda _init_data, _path: True
    with pytest.raises(DeniedError, match="CONFIGID is different"):
        fetch(kbs, init_data=job_init_data({**JOB, "name": "other"}))
    with pytest.raises(InputError, match="has no /kbs/v0/resource/acme/key/none: PluginNotFound"):
        fetch(kbs, "acme/key/none")


def test_the_way_to_the_kbs_is_the_hosts_word(kbs: StockKBS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process one of a confidential VM passes on; under a LibOS the launch file says another address."""
    at = f"localhost:{kbs.port}"
    monkeypatch.setattr(cvm, "_DOOR", str(tmp_path / "trust/guest.sock"))
    doors = cvm._doors({"doors": {at: f"127.0.0.1:{kbs.port}", "other:1": "127.0.0.1:1"}}, os.getuid())
    assert doors == {at: f"unix:{tmp_path}/trust/kbs0.sock", "other:1": f"unix:{tmp_path}/trust/kbs1.sock"}
    assert cvm._doors({}, os.getuid()) == {}
    for launch in ({"doors": doors}, {"doors": {at: f"127.0.0.1:{kbs.port}"}}, {}):
        assert fetch(kbs, dial=lambda launch=launch: outward(launch)(at)) == KEY
    with pytest.raises(UnavailableError):
        fetch(kbs, dial=lambda: outward({"doors": doors})("other:1"))
    assert fetch(kbs, init_data=None) == KEY


class Relay(FakeAttester):
    """An attester whose host hands out what it quoted before."""

    def __init__(self) -> None:
        super().__init__()
        self.first: Any = None

    def attest(self, report_data: bytes) -> Any:
        self.first = self.first or super().attest(report_data)
        return self.first


def test_T282_replayed_nonce_and_replayed_evidence(kbs: StockKBS) -> None:
    kbs.nonce = lambda: "n" * 44
    answered: set[str] = set()
    assert fetch(kbs, answered=answered) == KEY
    with pytest.raises(VerificationError, match="nonce: expected a fresh one, got 'one that was answered before"):
        fetch(kbs, answered=answered)
    host = Relay()
    assert fetch(kbs, attester=host) == KEY
    with pytest.raises(DeniedError, match="REPORT_DATA is different"):  # the key pair is another, so the report data is
        fetch(kbs, attester=host)


def changed(path: str, **members: Any) -> Callable[[str, Answer], Answer]:
    """Return an alteration of the JSON answer to `path`."""

    def alter(at: str, answer: Answer) -> Answer:
        if not at.endswith(path):
            return answer
        return answer[0], answer[1], canonical({**json.loads(answer[2]), **members})

    return alter


def replied(path: str, status: int, body: bytes = b"{}", **headers: str) -> Callable[[str, Answer], Answer]:
    return lambda at, answer: (status, headers, body) if at.endswith(path) else answer


def other_key(_key: dict[str, Any], content: bytes) -> Any:
    return seal(dict(jwk(x509.new_key().public_key())), content)


SEALS: dict[str, tuple[Callable[[dict[str, Any], bytes], Any], str]] = {
    "to another key": (other_key, "does not open with this key"),
    "ECDH-ES directly": (lambda k, c: seal(k, c, alg="ECDH-ES"), "JWE"),
    "A128KW": (lambda k, c: seal(k, c, alg="ECDH-ES+A128KW"), "expected a JWE by"),
    "A128GCM": (lambda k, c: seal(k, c, enc="A128GCM"), "expected a JWE by"),
    "CBC": (lambda k, c: seal(k, c, enc="A256CBC-HS512"), "expected a JWE by"),
    "altered": (lambda k, c: {**seal(k, c), "tag": "A" * 22}, "does not open with this key"),
    "with aad": (lambda k, c: {**seal(k, c), "aad": "AA"}, "and nothing else"),
    "in the clear": (lambda _k, c: {"key": c.hex()}, "and nothing else"),
}


@pytest.mark.parametrize("name", SEALS)
def test_T283_a_key_that_is_sealed_otherwise(kbs: StockKBS, name: str) -> None:
    kbs.seal, message = SEALS[name]
    with pytest.raises(VerificationError, match=message):
        fetch(kbs)


@pytest.mark.parametrize(("path", "size"), [("acme/key/short", 31), ("acme/key/hex", 64)])
def test_T283_a_key_of_another_size(kbs: StockKBS, path: str, size: int) -> None:
    with pytest.raises(VerificationError, match=f"key size: expected 32 bytes, got '{size} bytes'"):
        fetch(kbs, path)


ANSWERS: dict[str, tuple[Callable[[str, Answer], Answer], type[StrongroomError], str]] = {
    "redirect": (replied("auth", 307, Location="https://127.0.0.1/"), VerificationError, "status: expected 200, got '307"),
    "redirected key": (replied("sales", 302, Location="/x"), VerificationError, "status: expected 200, got '302"),
    "created": (replied("attest", 201), VerificationError, "status: expected 200"),
    "broken down": (replied("attest", 500, b"<html>"), VerificationError, "got '500 HTTP 500'"),
    "endless": (replied("auth", 200, b" " * (64 << 10) + b"{}"), VerificationError, "too long"),
    "endless key": (replied("sales", 200, b" " * (1 << 20)), VerificationError, "too long"),
    "not JSON": (replied("auth", 200, b"<html>", **{"Set-Cookie": "kbs-session-id=1"}), VerificationError, "not JSON"),
    "a list": (replied("sales", 200, b"[]"), VerificationError, "not a JSON object"),
    "a member twice": (replied("sales", 200, b'{"tag":"","tag":""}'), VerificationError, "not JSON"),
    "no cookie": (replied("auth", 200), VerificationError, "cookie: expected kbs-session-id"),
    "another cookie": (replied("auth", 200, **{"Set-Cookie": "kbs-session-id=a b"}), VerificationError, "cookie: "),
    "no nonce": (changed("auth", nonce=""), VerificationError, "too short to be fresh"),
    "nonce of another type": (changed("auth", nonce=7), VerificationError, "nonce is not text"),
    "long nonce": (changed("auth", nonce="n" * 257), VerificationError, "nonce is not text of at most 256"),
    "another member": (changed("auth", more=1), VerificationError, "challenge: expected"),
    "another hash": (changed("auth", **{"extra-params": {"selected-hash-algorithm": "sha256"}}), VerificationError, "hash algorithm: expected sha384, got 'sha256'"),
    "no token": (changed("attest", token=None), VerificationError, "token: expected a text"),
    "control characters": (lambda _p, _a: problem(403, "X\x1b[2J", "\r\n" + "y" * 999), DeniedError, r"X\\x1b\[2J: \\r\\ny{198}$"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_T284_answers_that_are_not_the_protocols(kbs: StockKBS, name: str) -> None:
    kbs.alter, kind, message = ANSWERS[name]
    with pytest.raises(kind, match=message):
        fetch(kbs)


def test_T284_another_certificate_or_name(kbs: StockKBS, tmp_path: Path) -> None:
    for certificate in (make_certificate("localhost")[0], make_certificate("localhost")[0] + kbs.certificate):
        with pytest.raises(VerificationError, match="expected the pinned certificate"):
            fetch(kbs, certificate=certificate)
    assert kbs.seen == [], "nothing was said to it"
    with StockKBS(tmp_path, {PATH: KEY}, name="other.example") as other:
        other.url = other.url.replace("other.example", "localhost")
        with pytest.raises(VerificationError, match="expected the pinned certificate"):
            fetch(other)


def test_T284_nobody_there_and_a_kbs_that_falls_silent(kbs: StockKBS) -> None:
    def refuse() -> socket.socket:
        raise ConnectionRefusedError(111, "Connection refused")

    with pytest.raises(UnavailableError, match="Connection refused"):
        fetch(kbs, dial=refuse)
    kbs.alter = lambda _path, answer: (answer[0], {**answer[1], "Content-Length": "999"}, answer[2][:9])
    with pytest.raises(UnavailableError, match="timed out"):
        fetch(kbs, dial=lambda: socket.create_connection(("127.0.0.1", kbs.port), 0.3))
