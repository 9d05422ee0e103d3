"""What is fuzzed: one small function for each parser that sees bytes from outside.

A target gets bytes. It parses them; if they are accepted, it checks that what was read says the same when it is written
again, and takes the steps that follow in the product. It may raise only what its row allows: the house's own refusals.
Everything else, and every failed assertion, is a finding.

Keys are fixed, so that the seeds in `corpus/` open. Imports of the product are inside `load`, after instrumentation.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import shamir_mnemonic.shamir as shamir
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes.attest_parts import FakeAttester

from fuzz.evidence import (
    CHOICES,
    CLAIMS,
    NOW,
    endorsement_bytes,
    endorsements,
    evidence_file,
    maker_answer,
    quote,
    sgx4_verifier,
    snp_report,
    snp_verifier,
    stock_evidence,
    tdx_verifier,
    verifier,
)
from strongroom import errors
from strongroom._encoding import b64u_decode, canonical_json, parse_bounded, parse_json, sha256_id
from strongroom._secret import SecretBytes
from strongroom.attest import appraisal, binding, handshake, kbs, patterns, ratls, reference, result
from strongroom.attest.evidence import TEES
from strongroom.attest.findings import AppraisalContext
from strongroom.attest.mrenclave import measure_stream
from strongroom.attest.policies import job_digest
from strongroom.attest.sigstruct import Sigstruct
from strongroom.attest.verifiers import verify_any
from strongroom.crypto import column_keys, header, jose, x509
from strongroom.crypto.https import HTTPSConnection, Reply
from strongroom.crypto.keys import StaticKeyRing
from strongroom.guest import apart, cvm, document, tunnel
from strongroom.guest.document import read_object
from strongroom.guest.kbs import outward
from strongroom.guest.session import ServiceSession
from strongroom.jobs.differences import known_to_both, read_build
from strongroom.keyagent import protocol
from strongroom.kms import audit_chain, messages
from strongroom.kms.job_document import max_runtime_s, needed, uses
from strongroom.kms.policies import OutputRule, difference
from strongroom.kms.roots import AESRootKey, passphrase
from strongroom.kms.roots.registry import RootFolder
from strongroom.models import scan
from strongroom.models.record import ModelRecord
from strongroom.service import app, guest_api
from strongroom.service.guest_messages import SignedCommit
from strongroom.storage.dataset import Manifest
from strongroom.storage.files import Expected, open_sealed
from strongroom.storage.info import read_info

__all__ = ["TARGETS", "Target"]

KEY = ec.derive_private_key(0x5EED, ec.SECP256R1())
RING = StaticKeyRing("sales", {1: SecretBytes(b"k" * 32), 2: SecretBytes(b"l" * 32)})
PLAIN = b"amount\n" * 3000
FILES = ("measured.json", "job.manifest.template", "reference.json", "job.json", "job.manifest", "job.sig")
TEMPLATE = '[sgx]\ntrusted_files = [{ uri = "file:a", sha256 = "1" }]\n[fs]\nmounts = [{ path = "/a" }]\n'
IDENTITY = x509.certificate_pem(x509.self_signed(KEY, "identity", now=NOW, days=30, ca=False))
ROOT = AESRootKey(SecretBytes(b"r" * 32), "shares")
with mock.patch.object(shamir, "RANDOM_BYTES", bytes):
    SHARES = shamir.generate_mnemonics(1, [(2, 3)], b"r" * 32)[0]
GUEST = mock.Mock(tls_spki=x509.spki_id(KEY.public_key()))


@dataclass(frozen=True)
class Target:
    """One row: what is called, what it may raise, and whether its bytes are JSON (for mutations that keep them so)."""

    run: Callable[[bytes], None]
    refusals: tuple[type[Exception], ...]
    json: bool = False


def sealed_header(raw: bytes) -> None:
    """The 128 bytes in front of a sealed file."""
    assert header.FileHeader.decode(raw).encode() == raw


def sealed_file(raw: bytes) -> None:
    """A whole sealed file: what opens is what was sealed, whatever was done to the bytes."""
    with open_sealed(io.BytesIO(raw), RING, Expected(dataset_id=bytes(16))).reader as reader:
        assert reader.readall() == PLAIN[: reader.size], "altered bytes opened"


def column_key(raw: bytes) -> None:
    """Wrapped column keys."""
    assert column_keys.unwrap_column_key(RING, raw) == b"c" * 16, "altered bytes opened"


def dataset_info(raw: bytes) -> None:
    """What a folder says of the data set in it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / ".dataset").mkdir()
        (Path(folder) / ".dataset" / "id.json").write_bytes(raw)
        found = read_info(Path(folder))
        assert found is not None
        assert len(found.dataset_id) == 16


def root_descriptor(raw: bytes) -> None:
    """What the disk says of the root key, for each kind: the first byte says with which credentials."""
    given = [[], ["correct horse battery staple"], SHARES[:2], [*SHARES[:1], "duckling"]]
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(passphrase, "_stretch", _stretched):
        key = Path(folder) / f"root-{ROOT.id}.key"
        key.with_suffix(".json").write_bytes(raw[1:])
        key.write_bytes(raw[-32:])
        key.chmod(0o600)
        opened = RootFolder(Path(folder), FakeAttester()).unlock(ROOT.id, given[raw[0] % 4 if raw else 0])
        assert opened.id == ROOT.id, "another root key was believed"


def _stretched(word: str, salt: bytes) -> bytes:
    return hashlib.sha256(word.encode() + salt).digest()  # scrypt takes its time


def manifest(raw: bytes) -> None:
    """The manifest of a data set."""
    found = Manifest.decode(raw)
    assert found.encode() == raw
    for entry in found.entries:
        assert found.find(entry.path) == entry


def key_agent(raw: bytes) -> None:
    """Frames of the key agent, both ways."""
    with contextlib.suppress(errors.StrongroomError):
        fields = protocol.decode_reply(raw)
        assert protocol.encode_reply(*fields) == raw
    request = protocol.decode_request(raw)
    assert protocol.encode_request(request.operation, *request.fields) == raw
    for at in range(len(request.fields)):
        with contextlib.suppress(errors.InputError):
            assert protocol.number(request.number(at)) == request.fields[at]
        with contextlib.suppress(errors.InputError):
            assert request.text(at).encode() == request.fields[at]


def job_network(raw: bytes) -> None:
    """The job's network: a peer's stream of packets, and the resets that answer them."""
    buffer, flows, taken = bytearray(raw), tunnel.Flows(), 0
    for packet in tunnel.packets(buffer):
        taken += len(packet)
        flows.note(packet)
        for reset in (tunnel.reset_for(packet), *flows.resets(packet[19])):
            assert reset is None or list(tunnel.packets(bytearray(reset))) == [reset]
    assert taken + len(buffer) <= len(raw)


def release_protocol(raw: bytes) -> None:
    """The bodies of RCAR, as service and guest read them."""
    value = parse_bounded(raw, "the request", max_bytes=app.GUEST_BODY_BYTES)
    for kind in (handshake.AuthRequest, handshake.Challenge):
        with contextlib.suppress(errors.InputError):
            said = kind.from_json(value)
            assert kind.from_json(said.to_json()) == said
    request = handshake.AttestRequest.from_json(value)
    assert handshake.AttestRequest.from_json(request.to_json()) == request
    assert len(request.report_data()) == 64
    key = request.tee_key()
    jose.jwe_seal(b"the key", key.key)
    for tee in TEES:
        with contextlib.suppress(errors.EvidenceError):
            assert len(request.read_evidence(tee).quote) > 0
    request.read_evidence("sgx")


def kbs_answer(raw: bytes) -> None:
    """Where a key lies at a stock KBS, and what that answers."""
    if raw.startswith(b"kbs+"):
        key = kbs.KBSKey.parse(raw.decode("utf-8", "replace"))
        assert kbs.KBSKey.parse(f"{kbs.SCHEME}{key.address}/{key.resource}") == key
        return
    reply, answered = Reply(status=401, headers={}, body=raw), set[str]()
    assert kbs._said(reply).isprintable()
    assert kbs._nonce(reply, kbs.KBSKey(host="kbs", port=1, resource="a/b/c"), answered) in answered


def others_bundle(raw: bytes) -> None:
    """Two bundles of others compared: the first byte says which file the rest is, of one and, behind three NUL, two."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for number in range(2):
            bundle = Path(folder) / str(number)
            bundle.mkdir()
            (bundle / "job.json").write_text('{"name":"ours"}')
            (bundle / "reference.json").write_text('{"places":{"/usr":"sha256:1"},"measurement":"00"}')
            name = FILES[raw[0] % len(FILES)] if raw else ""
            parts = [raw[1:]] * 2 if name == "job.sig" else raw[1:].split(b"\0\0\0", 1)
            if name and (part := parts[number:]):
                if name in ("job.manifest", "job.sig"):  # which Gramine's tools write beside it
                    (bundle / "job.manifest.template").write_text(TEMPLATE)
                (bundle / name).write_bytes(part[0])
            found.append(read_build(bundle))
        for line in difference(*known_to_both(found[0], found[1])):
            assert len(line) < 1 << 20


def launch_file(raw: bytes) -> None:
    """The host's launch file, as guests of each kind read it: addresses, and nothing that is believed."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "launch.json").write_bytes(raw)
        launch = read_object(Path(folder) / "launch.json")
        kept = cvm._pass_on, cvm._DOOR, socket.create_connection
        cvm._pass_on, cvm._DOOR = lambda *_: None, f"{folder}/guest.sock"
        socket.create_connection = _nobody  # type: ignore[assignment]
        try:
            doors = cvm._doors(launch, 1000)
            assert all(Path(door.removeprefix("unix:")).parent == Path(folder) for door in doors.values())
            address, pinned = str(launch.get("service")), [x509.spki_id(KEY.public_key())]
            session = ServiceSession(address, str(launch.get("identity")), pinned, FakeAttester(), "")
            assert session._identity == KEY.public_key(), "another identity was believed"
            context = session._connection.context
            for dial in (None, lambda: outward(launch)("kbs.example:443")):
                with contextlib.suppress(errors.UnavailableError):
                    HTTPSConnection(address, context, dial=dial).exchange("GET", "/")
                    raise AssertionError("somebody answered")
        finally:
            cvm._pass_on, cvm._DOOR, socket.create_connection = kept  # type: ignore[assignment]


def _nobody(*_: object) -> socket.socket:
    raise ConnectionRefusedError(111, "nobody is asked here")


def owner_api(raw: bytes) -> None:
    """The bodies of the owner API: the first byte says of which route."""
    kinds = [route.body for route in messages.ROUTES]
    body = app._parse(raw[1:], kinds[raw[0] % len(kinds)] if raw else messages.Empty)
    if isinstance(body, messages.ReleaseToOwner):
        jose.jwk_public_key(body.public_key)
    if isinstance(body, messages.AddOwner):
        x509.check_own(x509.certificate_from_pem(body.certificate), ca=False, now=NOW)


def policy(raw: bytes) -> None:
    """Policies, judged on genuine claims, and the rule for outputs."""
    value = parse_bounded(raw, "the policy")
    if isinstance(value, dict) and "max_bytes" in value:
        rule = OutputRule.from_json(value)
        assert OutputRule.from_json(rule.to_json()) == rule
        return
    found = appraisal.policy_from_json(value)
    assert appraisal.policy_from_json(appraisal.policy_to_json(found)) == found
    with contextlib.suppress(errors.InputError):
        appraisal.check_pins_code(found)
    with contextlib.suppress(errors.AppraisalError):
        appraisal.appraise(found, AppraisalContext(claims=CLAIMS, job={"arguments": ["a", "b"]}))
        named = "unsafe_accept_simulated" in json.dumps(appraisal.policy_to_json(found))
        assert named, "a simulated root passed a policy that does not name it"


def pattern(raw: bytes) -> None:
    """Patterns of free arguments: the pattern, a NUL, the argument."""
    text, _, argument = raw.decode("utf-8", "replace").partition("\0")
    patterns.compile_pattern(text).matches(argument)


def init_data(raw: bytes) -> None:
    """Init data has one form."""
    text = raw.decode("utf-8", "surrogateescape")
    files = binding.parse_init_data(text)
    assert binding.render_init_data(files) == text
    assert len(binding.config_id(binding.init_data_digest(text))) == 64


def job_document(raw: bytes) -> None:
    """The job document: as the service reads it, the gate uses it and the guest takes it apart."""
    found = guest_api._job_document(raw.decode("utf-8", "surrogateescape"))
    assert canonical_json(found) == raw
    assert job_digest(found).startswith("sha256:")
    max_runtime_s(found)
    for wanted in needed(found):
        assert uses(found, wanted)
    for read in (document.volumes, document.column_keys, lambda d: document.texts(d, "arguments")):
        with contextlib.suppress(errors.InputError):
            read(found)


def commit(raw: bytes) -> None:
    """A guest's commit: a request, or what a guest signs in it."""
    if b'"signed"' not in raw:
        value = parse_json(raw, "the statement")
        signed = jose.sign_jws(value if isinstance(value, dict) else {}, KEY, typ=handshake.COMMIT_TYPE)
        raw = canonical_json({"key": jose.jwk(KEY.public_key()), "signed": signed})
    said = guest_api._signed(GUEST, app._parse(raw, SignedCommit, app.GUEST_BODY_BYTES))
    assert said.epoch < 1 << 53
    assert said.new_manifest.startswith("sha256:")


def token(raw: bytes) -> None:
    """JWE, JWS and the tokens made of them. What is accepted was made with the keys here."""
    if raw[:1] == b"{":
        with jose.jwe_open(parse_json(raw, "a JWE"), KEY) as plain:
            assert plain == b"the key", "an altered JWE opened"
        return
    text = raw.decode("utf-8", "replace")
    with contextlib.suppress(errors.VerificationError):
        assert audit_chain.read_head(text, [KEY.public_key()]).seq == 7
    with contextlib.suppress(errors.VerificationError):
        assert jose.verify_jws(text, [KEY.public_key()], typ="strongroom-head+jwt")["epoch"] == 3
    assert result.verify_ear(text, [KEY.public_key()], NOW)["eat_nonce"] == "nonce"


def reference_values(raw: bytes) -> None:
    """Reference values: a signed file, or a statement that a trusted signer signed without looking."""
    if b"payloadType" not in raw:
        signature = KEY.sign(reference._signed(raw), ec.ECDSA(hashes.SHA256()))
        parts = {"payload": reference._b64(raw), "signatures": [{"keyid": "x", "sig": reference._b64(signature)}]}
        raw = canonical_json({**parts, "payloadType": reference._PAYLOAD})
    found = reference.open_reference(raw, [KEY.public_key()])
    assert found.job == job_digest(found.document)
    again = reference.open_reference(reference.sign_reference(found, KEY), [KEY.public_key()])
    assert (again.values, again.document) == (found.values, found.document)


def audit_log(raw: bytes) -> None:
    """Exported audit records: what verifies is the log that was written."""
    records = parse_json(raw, "the audit log")
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise errors.InputError("not a list of records")
    head = audit_chain.verify_records(records, [KEY.public_key()], owner="a" * 64, newest=None)
    assert head.seq == len(records) <= 3, "records that nobody wrote"


def certificate(raw: bytes) -> None:
    """Certificates and requests for one, as PEM."""
    text = raw.decode("utf-8", "surrogateescape")
    with contextlib.suppress(errors.InputError):
        x509.extension_of_csr(text, ratls.EXTENSION)
        assert x509.spki_id(x509.public_key_of_csr(text)).startswith("sha256:")
    found = x509.certificate_from_pem(text)
    assert x509.fingerprint(x509.certificate_from_pem(x509.certificate_pem(found))) == x509.fingerprint(found)
    x509.uris(found)
    x509.check_own(found, ca=False, now=NOW)


def ra_tls(raw: bytes) -> None:
    """RA-TLS: the extension's value, and a whole certificate as DER."""
    with contextlib.suppress(errors.EvidenceError):
        said = ratls.decode_extension(raw)
        assert ratls.encode_extension(said.quote, said.claims) == raw, "two encodings of one statement"
    with contextlib.suppress(errors.EvidenceError):
        ratls.read_claims(raw)
    with contextlib.suppress(errors.AttestationError):
        assert ratls.shown(raw)["tee"] in TEES
    claims = ratls.verify_certificate(raw, lambda e: verify_any(e, CHOICES, now=NOW), now=NOW, issued=True)
    assert claims.measurement == b"m" * 32


def sigstruct(raw: bytes) -> None:
    """The signature of an SGX enclave: one reading, and a signature that holds for no other bytes."""
    found = Sigstruct.from_bytes(raw)
    assert found.to_bytes() == raw
    found.verify()


def enclave_pages(raw: bytes) -> None:
    """The steps that build an SGX enclave."""
    assert measure_stream(raw) == hashlib.sha256(raw).digest()


def files_of_a_process(raw: bytes) -> None:
    """What a program's process sends the guest: nothing lands outside the volume."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "work"
        (root / "out").mkdir(parents=True)
        try:
            apart.receive_files(root, ["out"], io.BytesIO(raw))
        except (ValueError, OSError, RecursionError) as exc:  # what the guest makes an error of
            raise errors.InputError(str(exc)) from exc
        finally:
            assert [p.name for p in Path(folder).iterdir()] == ["work"]
            assert {p.name for p in root.iterdir()} <= {"out"}


def model_record(raw: bytes) -> None:
    """The record beside a model."""
    found = ModelRecord.decode(raw)
    assert ModelRecord.decode(found.encode()) == found


def model_scan(raw: bytes) -> None:
    """The scan for code in model files: any bytes get an answer."""
    for name in ("model.bin", "spark-ml/metadata/part-00000"):
        assert isinstance(scan.code_in(io.BytesIO(raw), name), str)


def answer(raw: bytes) -> None:
    """JSON and base64url: one reading, one writing."""
    value = parse_bounded(raw, "the answer")
    with contextlib.suppress(errors.InputError):
        written = canonical_json(value)
        assert canonical_json(json.loads(written)) == written
        assert sha256_id(written)
    if isinstance(value, str):
        b64u_decode(value)


_ATTEST = (errors.AttestationError,)
TARGETS: dict[str, Target] = {
    "quote": Target(quote, (errors.EvidenceError,)),
    "verifier": Target(verifier, _ATTEST),
    "sgx4_verifier": Target(sgx4_verifier, _ATTEST),
    "tdx_verifier": Target(tdx_verifier, _ATTEST),
    "maker_answer": Target(maker_answer, (errors.InputError, *_ATTEST)),
    "stock_evidence": Target(stock_evidence, (errors.InputError, *_ATTEST), json=True),
    "evidence_file": Target(evidence_file, (errors.InputError, errors.EvidenceError)),
    "dataset_info": Target(dataset_info, (errors.InputError, errors.IntegrityError), json=True),
    "root_descriptor": Target(root_descriptor, (errors.InputError, errors.IntegrityError, errors.DeniedError)),
    "commit": Target(commit, (errors.InputError, errors.VerificationError, errors.DeniedError), json=True),
    "others_bundle": Target(others_bundle, (errors.InputError,)),
    "launch_file": Target(launch_file, (errors.InputError, errors.VerificationError), json=True),
    "endorsement_bytes": Target(endorsement_bytes, _ATTEST),
    "snp_report": Target(snp_report, (errors.EvidenceError,)),
    "snp_verifier": Target(snp_verifier, _ATTEST),
    "endorsements": Target(endorsements, (errors.InputError, *_ATTEST), json=True),
    "sealed_header": Target(sealed_header, (errors.IntegrityError,)),
    "sealed_file": Target(sealed_file, (errors.IntegrityError, errors.DeniedError)),
    "column_key": Target(column_key, (errors.IntegrityError, errors.DeniedError)),
    "manifest": Target(manifest, (errors.IntegrityError,), json=True),
    "key_agent": Target(key_agent, (errors.InputError,)),
    "job_network": Target(job_network, (errors.IntegrityError,)),
    "release_protocol": Target(release_protocol, (errors.InputError, errors.EvidenceError), json=True),
    "kbs_answer": Target(kbs_answer, (errors.InputError, errors.VerificationError)),
    "owner_api": Target(owner_api, (errors.InputError,)),
    "policy": Target(policy, (errors.InputError,), json=True),
    "pattern": Target(pattern, (errors.InputError,)),
    "init_data": Target(init_data, (errors.InputError,)),
    "job_document": Target(job_document, (errors.InputError,), json=True),
    "token": Target(token, (errors.VerificationError, errors.InputError)),
    "reference_values": Target(reference_values, (errors.InputError, errors.VerificationError), json=True),
    "audit_log": Target(audit_log, (errors.IntegrityError, errors.InputError), json=True),
    "certificate": Target(certificate, (errors.InputError,)),
    "ra_tls": Target(ra_tls, _ATTEST),
    "sigstruct": Target(sigstruct, _ATTEST),
    "enclave_pages": Target(enclave_pages, _ATTEST),
    "files_of_a_process": Target(files_of_a_process, (errors.InputError,)),
    "model_record": Target(model_record, (errors.InputError,), json=True),
    "model_scan": Target(model_scan, ()),
    "answer": Target(answer, (errors.InputError,), json=True),
}
