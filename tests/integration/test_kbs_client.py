"""A client of the KBS protocol as others write it, from the protocol's text: no code of the guest, JOSE by joserfc.

Follows trustee `kbs_attestation_protocol.md` (0.4.0): what a stock client (guest-components) sends and reads.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from joserfc import jwe, jwt
from joserfc.jwk import ECKey, KeySet, RSAKey
from tests.fakes.attest_parts import MEASUREMENT
from tests.fakes.service_parts import Answer, Client, House, document, make_house
from tests.fakes.snp_parts import DER, Maker
from tests.fakes.snp_parts import MEASUREMENT as SNP_MEASUREMENT
from tests.fakes.stock_evidence import RELEASES, attestation_report

from strongroom.attest.endorsement_files import write_bundle
from strongroom.crypto import tls
from strongroom.service import transport
from strongroom.service.guest_messages import AttestRequest

AMD = Maker(now=datetime.now(UTC))


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class StockClient:
    """Attests once and gets resources, as `KbsClient<Box<dyn EvidenceProvider>>` does."""

    def __init__(self, house: House, key: Any, alg: str, job: object, additional: str = "", tee: str = "sgx") -> None:
        self.http, self.key, self.alg, self.additional = Client(house.guests), key, alg, additional
        self.platform, self.tee, self.log, self.release = house.platform, tee, {}, RELEASES[-1]
        self.padding = b""
        text = canonical(job).decode().replace("\\", "\\\\").replace('"', '\\"')
        self.init_data = f'algorithm = "sha256"\nversion = "0.1.0"\n\n[data]\n"job.json" = "{text}"\n'

    def pubkey(self) -> dict[str, str]:
        public = self.key.as_dict(private=False)
        members = ("kty", "crv", "x", "y") if public["kty"] == "EC" else ("kty", "n", "e")
        return {"alg": self.alg, **{name: public[name] for name in members}}

    def handshake(self) -> Answer:
        hashes = {"supported-hash-algorithms": ["sha256", "sha384", "sha512"]}
        begun = self.http("POST", "/kbs/v0/auth", {"version": "0.4.0", "tee": self.tee, "extra-params": hashes})
        assert begun.status == 200, begun.raw
        cookie, _, attributes = begun.headers["set-cookie"].partition(";")
        assert cookie.startswith("kbs-session-id=")
        assert "path=/" in attributes.lower()
        self.http.cookie = cookie
        challenge = begun.json
        assert challenge["extra-params"].get("selected-hash-algorithm", "sha384") == "sha384"  # the client's default
        self.nonce = challenge["nonce"]
        runtime = {"nonce": self.nonce, "tee-pubkey": self.pubkey()}
        bound = canonical({**runtime, "additional-evidence": self.additional})
        report_data = hashlib.sha384(bound).digest().ljust(64, b"\0")
        evidence = self.evidence(report_data, hashlib.sha256(self.init_data.encode()).digest())
        request = {
            "init-data": {"format": "toml", "body": self.init_data},
            "runtime-data": runtime,
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": self.additional},
        }
        answer = self.http("POST", "/kbs/v0/attest", request)
        if answer.status == 200:
            msgspec.convert(request, AttestRequest)  # as the OpenAPI document describes it
        return answer

    def evidence(self, report_data: bytes, digest: bytes) -> dict[str, Any]:
        """Return what guest-components' attester of this TEE writes."""
        if self.tee == "snp":
            raw = AMD.report(changes={0x50: report_data, 0xC0: digest})
            chain = [{"cert_type": "VCEK", "data": list(AMD.key().public_bytes(DER))}]
            return {"attestation_report": attestation_report(raw, self.release), "cert_chain": chain}
        if self.tee == "tdx":
            quote = self.platform.quote_tdx(report_data=report_data, config_id=digest.ljust(48, b"\0"))
        else:
            quote = self.platform.quote(report_data=report_data, config_id=digest.ljust(64, b"\0"))
        return {**self.log, "quote": base64.b64encode(quote + self.padding).decode()}

    def resource(self, repository: str, kind: str, tag: str) -> Answer:
        return self.http("GET", f"/kbs/v0/resource/{repository}/{kind}/{tag}")

    def decrypt(self, answer: Answer, read: Callable[[str], Any] = json.loads) -> Any:
        assert answer.status == 200, answer.raw
        message = answer.json
        assert {"protected", "encrypted_key", "iv", "ciphertext", "tag"} == set(message)
        # The stock client reads the protected header into its own type and writes it again for the AAD: alg and enc
        # first, the other members sorted. Ours has to come out of that as it was.
        header = json.loads(base64.urlsafe_b64decode(message["protected"] + "=="))
        rest = {k: v for k, v in header.items() if k not in ("alg", "enc")}
        again = json.dumps({"alg": header["alg"], "enc": header["enc"]}, separators=(",", ":"))[:-1]
        again += ("," + canonical(rest).decode()[1:]) if rest else "}"
        assert base64.urlsafe_b64encode(again.encode()).rstrip(b"=").decode() == message["protected"]
        assert header["alg"] == self.alg
        registry = jwe.JWERegistry(algorithms=[self.alg, "A256GCM"])
        return read((jwe.decrypt_json(message, self.key, registry=registry).plaintext or b"").decode())


@pytest.fixture
def house(tmp_path: Path) -> House:
    return make_house(tmp_path)


KEYS = {
    "ECDH-ES+A256KW": lambda: ECKey.generate_key("P-256"),
    "RSA-OAEP-256": lambda: RSAKey.generate_key(2048),
}


@pytest.mark.parametrize("alg", KEYS)
@pytest.mark.parametrize("additional", ["", "{}"])
def test_a_stock_client_fetches_a_key(house: House, alg: str, additional: str) -> None:
    job = document(house.owner, house.dataset()["dataset"])
    client = StockClient(house, KEYS[alg](), alg, job, additional)
    _problem(client.resource(house.owner, "key", "sales"), 401)  # on which it attests
    assert client.handshake().status == 200
    _problem(client.resource(house.owner, "key", "sales"), 403)  # no policy yet: it gives up, and shows the reasons
    house.allow(job)
    released = client.decrypt(client.resource(house.owner, "key", "sales"))
    assert (released["type"], released["name"]) == ("key", "sales")
    assert len(base64.urlsafe_b64decode(released["versions"]["1"] + "=")) == 32


def test_a_stock_token_client_fetches_a_key(house: House) -> None:
    """As confidential data hub does: it has the attestation agent's token and key pair, and no cookie."""
    job, _ = house.ready()
    agent = StockClient(house, KEYS["ECDH-ES+A256KW"](), "ECDH-ES+A256KW", job)
    token = agent.handshake().json["token"]
    hub = StockClient(house, agent.key, agent.alg, job)
    _problem(hub.resource(house.owner, "key", "sales"), 401)
    hub.http.more["authorization"] = f"Bearer {token}"
    assert hub.decrypt(hub.resource(house.owner, "key", "sales"))["name"] == "sales"
    # As the guide has a relying party check it.
    result = hub.decrypt(hub.resource(house.owner, "ear", "sales"), str)
    keys = KeySet.import_key_set(Client(house.guests)("GET", "/.well-known/jwks.json").json)  # type: ignore[arg-type]
    claims = jwt.decode(result, keys, algorithms=["ES256"]).claims
    cpu = claims["submods"]["cpu0"]
    assert time.time() < claims["exp"]
    assert cpu["ear.appraisal-policy-id"].startswith(f"{house.owner}/key/sales#")
    assert cpu["ear.veraison.annotated-evidence"]["runtime_data_claims"]["tee-pubkey"] == hub.pubkey()


class Wire:
    """The same requests over TLS, as a client of another maker connects: by name, under the service's certificate."""

    def __init__(self, port: int, identity_pem: str, name: str = "trust-service.strongroom.internal") -> None:
        self.cookie, self.more = "", dict[str, str]()
        context = ssl.create_default_context(cadata=identity_pem)
        self._connection = http.client.HTTPSConnection(name, port, context=context)
        self._connection._create_connection = lambda *_, **__: socket.create_connection(("127.0.0.1", port))  # type: ignore[attr-defined]

    def __call__(self, method: str, path: str, body: object = None) -> Answer:
        headers = {**self.more, **({"cookie": self.cookie} if self.cookie else {})}
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        found = self._connection.getresponse()
        return Answer(found.status, {k.lower(): v for k, v in found.headers.items()}, found.read())


def test_a_stock_client_fetches_a_key_over_tls(house: House) -> None:
    job, _ = house.ready()
    chain, key = house.service.leaf(now=datetime.now(UTC))
    served = transport.make_server(house.guests, tls.server_context(chain, key, client_pems=None))
    sock = socket.create_server(("127.0.0.1", 0))
    port, loop = sock.getsockname()[1], transport.Loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(served.serve([sock])), daemon=True)
    thread.start()
    try:
        client = StockClient(house, KEYS["ECDH-ES+A256KW"](), "ECDH-ES+A256KW", job)
        client.http = Wire(port, house.service.identity_pem)  # type: ignore[assignment]
        token = client.handshake().json["token"]
        assert client.decrypt(client.resource(house.owner, "key", "sales"))["name"] == "sales"
        client.http = Wire(port, house.service.identity_pem)  # type: ignore[assignment]
        client.http.more["authorization"] = f"Bearer {token}"
        assert client.decrypt(client.resource(house.owner, "key", "sales"))["name"] == "sales"
        with pytest.raises(ssl.SSLCertVerificationError):
            Wire(port, house.service.identity_pem, "localhost")("GET", "/.well-known/jwks.json")
    finally:
        served.should_exit = True
        thread.join(10)


LOG = base64.b64encode(b"\1\0\0\0\3\0\0\0" + bytes(60_000)).decode()


@pytest.mark.parametrize(("log", "padded"), [({}, 0), ({"cc_eventlog": None}, 70), ({"cc_eventlog": LOG}, 3065)])
def test_a_stock_client_in_a_tdx_guest_fetches_a_key(house: House, log: dict[str, Any], padded: int) -> None:
    house.endorse(tee="tdx")
    job = document(house.owner, house.dataset()["dataset"])
    client = StockClient(house, KEYS["ECDH-ES+A256KW"](), "ECDH-ES+A256KW", job, tee="tdx")
    client.log, client.padding = log, bytes(padded)  # Intel's quoting service pads; its attester passes that on
    token = client.handshake().json["token"]
    said = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["submods"]["cpu0"]
    claims = said["ear.veraison.annotated-evidence"]["claims"]
    assert ("cc_eventlog came along and was not read" in "".join(claims["limits"])) == bool(log.get("cc_eventlog"))
    registers = {f"rtmr{n}": [value] for n, value in enumerate(claims["rtmrs"])}
    code = {"kind": "tdx_measurements", "mrtd": [claims["measurement"]], **registers}
    allow(house, {"kind": "all_of", "policies": [code, {"kind": "unsafe_accept_simulated"}]})
    assert client.decrypt(client.resource(house.owner, "key", "sales"))["name"] == "sales"


@pytest.mark.parametrize("release", RELEASES)
def test_a_stock_client_in_an_snp_guest_fetches_a_key(house: House, release: str) -> None:
    write_bundle(house.folder / "service" / "endorsements" / "snp.json", AMD.anchor, [AMD.endorsements()])
    trusted = {"fingerprint": AMD.anchor.fingerprint, "settings": {"minimum_tcb": "unnamed=4.0.20.209"}}
    assert house.as_owner()("PUT", "/v1/anchors", {**trusted, "own_root": True}).status == 200
    job = document(house.owner, house.dataset()["dataset"])
    client = StockClient(house, KEYS["RSA-OAEP-256"](), "RSA-OAEP-256", job, tee="snp")
    client.release = release
    assert client.handshake().status == 200
    own = {"kind": "root", "values": [AMD.anchor.fingerprint]}
    allow(house, {"kind": "all_of", "policies": [{"kind": "snp_measurement", "values": [SNP_MEASUREMENT.hex()]}, own]})
    assert client.decrypt(client.resource(house.owner, "key", "sales"))["name"] == "sales"
    client.evidence = lambda report_data, _digest: StockClient.evidence(client, report_data, bytes(32))  # type: ignore[method-assign]
    assert client.handshake().code == "verification", "another job"


@pytest.mark.parametrize(("tee", "padding"), [("tdx", b"\1"), ("tdx", bytes(70) + b"\1"), ("sgx", bytes(70))])
def test_T386_what_follows_a_quote_and_is_no_padding(house: House, tee: str, padding: bytes) -> None:
    house.endorse(tee=tee)
    client = StockClient(house, KEYS["ECDH-ES+A256KW"](), "ECDH-ES+A256KW", house.ready()[0], tee=tee)
    client.padding = padding
    assert client.handshake().code == "evidence"
    client.padding = b""
    assert client.handshake().status == 200


def allow(house: House, policy: dict[str, Any]) -> None:
    body = {"policy": dict.fromkeys(("read", "write"), policy), "revision": 0}
    assert house.as_owner()("PUT", "/v1/keys/sales/policy", body).status == 200


@pytest.mark.parametrize("alg", KEYS)
def test_the_token_is_an_ear_under_the_published_key(house: House, alg: str) -> None:
    job, _ = house.ready()
    client = StockClient(house, KEYS[alg](), alg, job)
    token = client.handshake().json["token"]
    published = Client(house.guests)("GET", "/.well-known/jwks.json")
    assert published.status == 200
    (key,) = published.json["keys"]
    assert (key["kty"], key["crv"], key["alg"], key["use"]) == ("EC", "P-256", "ES256", "sig")
    assert "d" not in key
    # As a stock relying party chooses the key (trustee kbs/src/token/jwk.rs): by the header's kid, or it gives up.
    header = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))
    keys = KeySet.import_key_set(published.json)  # type: ignore[arg-type]
    decoded = jwt.decode(token, keys.get_by_kid(header["kid"]), algorithms=[key["alg"]])
    assert set(header) == {"alg", "typ", "kid"}, "a `jwk` would be tried in place of the set"
    claims = decoded.claims
    assert claims["eat_profile"] == "tag:github.com,2023:veraison/ear"
    assert claims["eat_nonce"] == client.nonce
    assert claims["iat"] - 5 <= time.time() < claims["exp"]
    cpu = claims["submods"]["cpu0"]
    assert cpu["ear.status"] == "contraindicated", "simulated"
    assert set(cpu["ear.trustworthiness-vector"]) == {
        "instance-identity", "configuration", "executables", "file-system", "hardware", "runtime-opaque",
        "storage-opaque", "sourced-data",
    }  # fmt: skip
    annotated = cpu["ear.veraison.annotated-evidence"]
    assert annotated["claims"]["measurement"] == MEASUREMENT.hex()
    # Where a stock KBS that is shown this token looks for whom to seal to.
    assert annotated["runtime_data_claims"] == {"nonce": client.nonce, "tee-pubkey": client.pubkey()}


def _problem(answer: Answer, status: int) -> None:
    assert answer.status == status, answer.raw
    assert answer.headers["content-type"] == "application/problem+json"
    assert isinstance(answer.json["type"], str)
    assert isinstance(answer.json["detail"], str)
    assert answer.json["status"] == status


def test_every_refusal_is_a_problem_document(house: House) -> None:
    stranger = Client(house.guests)
    _problem(stranger("POST", "/kbs/v0/auth", {"version": "0.1.1", "tee": "sgx", "extra-params": ""}), 400)
    _problem(stranger("POST", "/kbs/v0/attest", {}), 401)
    _problem(stranger("GET", f"/kbs/v0/resource/{house.owner}/key/sales"), 401)
    _problem(stranger("GET", "/kbs/v0/nothing"), 404)
    _problem(stranger("GET", "/kbs/v0/auth"), 405)
    _problem(house.as_owner()("GET", "/v1/nothing"), 404)
    job, _ = house.ready()
    client = StockClient(house, KEYS["ECDH-ES+A256KW"](), "ECDH-ES+A256KW", job, '{"nvidia":["gpu","e30"]}')
    _problem(client.handshake(), 400)  # evidence of devices is not dropped silently


@pytest.mark.parametrize(
    "change",
    [
        {"alg": "RSA1_5"},
        {"alg": "RSA-OAEP"},
        {"alg": None},
        {"e": "Aw"},
        {"n": "AQAB"},
        {"n": "A" + "A" * 341},
        {"n": "_" * 1024},
        {"crv": "P-256"},
    ],
)
def test_T255_other_rsa_keys_are_refused(house: House, change: dict[str, Any]) -> None:
    job, _ = house.ready()
    key = RSA.as_dict(private=False)
    client = StockClient(house, RSA, "RSA-OAEP-256", job)
    wrong = {"kty": "RSA", "alg": "RSA-OAEP-256", "n": key["n"], "e": key["e"], **change}
    client.pubkey = lambda: {k: v for k, v in wrong.items() if v is not None}  # type: ignore[method-assign,return-value]
    assert client.handshake().status == 400


RSA = RSAKey.generate_key(2048)
