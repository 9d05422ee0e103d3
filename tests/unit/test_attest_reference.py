"""Signed reference values: read by ours and by another implementation of DSSE, and refused when anything differs."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from strongroom.attest.policies import TDX_REGISTERS, Reference, SnpMeasurement, job_digest
from strongroom.attest.reference import PREDICATE, ReferenceValues, open_reference, sign_reference
from strongroom.client.policies import allowance
from strongroom.crypto import x509
from strongroom.errors import InputError, StrongroomError, VerificationError

KEY, OTHER = x509.new_key(), x509.new_key()
JOB = {"version": 1, "name": "report", "arguments": ["a"], "volumes": []}
VALUES = ReferenceValues(
    name="report", job=job_digest(JOB), document=JOB, values={"measurement": "ab" * 32}, simulated=True
)


def test_what_is_signed_is_read() -> None:
    found = open_reference(sign_reference(VALUES, KEY), [OTHER.public_key(), KEY.public_key()])
    assert replace(found, id="", signer="") == VALUES
    assert found.signer == x509.spki_id(KEY.public_key())
    tdx = replace(VALUES, values=dict.fromkeys(TDX_REGISTERS, "cd" * 48), simulated=False)
    snp = replace(VALUES, values={"snp_measurement": "cd" * 48}, simulated=False)
    for more in (tdx, snp):
        assert open_reference(sign_reference(more, KEY), [KEY.public_key()]).values == more.values
    (code, *_) = cast(Reference, allowance(JOB, snp.values, simulated=False, reference=replace(snp, id="i"))).policies
    assert code == SnpMeasurement(("cd" * 48,))


def test_another_implementation_reads_it() -> None:
    raw = json.loads(sign_reference(VALUES, KEY))
    envelope = Envelope.from_dict(json.loads(json.dumps(raw)))  # takes its argument apart
    public = SSlibKey.from_crypto(KEY.public_key(), keyid=raw["signatures"][0]["keyid"])
    assert list(envelope.verify([public], 1)) == [raw["signatures"][0]["keyid"]]
    statement = json.loads(envelope.payload)
    assert (statement["predicateType"], statement["subject"][0]["name"]) == (PREDICATE, "report")


def resigned(change: Callable[[dict], object]) -> bytes:  # type: ignore[type-arg]
    envelope = json.loads(sign_reference(VALUES, KEY))
    statement = json.loads(base64.b64decode(envelope["payload"]))
    change(statement)
    payload = json.dumps(statement).encode()
    pae = b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload) + payload
    from cryptography.hazmat.primitives import hashes

    signature = KEY.sign(pae, ec.ECDSA(hashes.SHA256()))
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"] = [{"keyid": "any", "sig": base64.b64encode(signature).decode()}]
    return json.dumps(envelope).encode()


def test_the_signature_helper_is_right() -> None:
    assert open_reference(resigned(lambda _s: None), [KEY.public_key()]).job == VALUES.job


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s["predicate"]["document"].update(arguments=["b"]), "the subject is not the job"),
        (lambda s: s["subject"].append(s["subject"][0]), "the subject is not the job"),
        (lambda s: s["predicate"]["values"].clear(), "expected measurement or"),
        (lambda s: s["predicate"]["values"].update(rtmr0="ab" * 48), "expected measurement or"),
        (lambda s: s["predicate"].update(values={"mrtd": "ab" * 48}), "expected measurement or"),
        (lambda s: s["predicate"]["values"].update(measurement="AB" * 32), "not 32 bytes"),
        (lambda s: s["predicate"]["values"].update(measurement="ab" * 48), "not 32 bytes"),
        (lambda s: s["predicate"].update(values={"snp_measurement": "ab" * 32}), "not 48 bytes"),
        (lambda s: s["predicate"].update(simulated="no"), "simulated"),
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "expected tag:strongroom"),
        (lambda s: s.pop("predicate"), "predicate is not an object"),
        (lambda s: s.update(subject=["x"]), "subject is not an object"),
    ],
)
def test_signed_nonsense_is_refused(change: Callable[[dict], object], reason: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=reason):
        open_reference(resigned(change), [KEY.public_key()])


def test_T260_reference_values_of_another_signer_or_altered_are_refused() -> None:
    raw = sign_reference(VALUES, KEY)
    for signers in ([], [OTHER.public_key()]):
        with pytest.raises(VerificationError, match="expected the signature of"):
            open_reference(raw, signers)
    envelope = json.loads(raw)
    payload = bytearray(base64.b64decode(envelope["payload"]))
    for at in range(0, len(payload), 7):
        altered = bytearray(payload)
        altered[at] ^= 1
        changed = {**envelope, "payload": base64.b64encode(altered).decode()}
        with pytest.raises(VerificationError):
            open_reference(json.dumps(changed).encode(), [KEY.public_key()])
    for broken in (b"", b"[]", b"{}", raw[:-1], raw.replace(b"in-toto", b"in-tuto", 1)):
        with pytest.raises(StrongroomError):
            open_reference(broken, [KEY.public_key()])
