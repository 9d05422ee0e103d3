"""Every verifier: claims from true evidence, the right family of error from everything else."""

from __future__ import annotations

import base64
import json
from datetime import datetime

import pytest
from tests.fakes import attest_vectors

from strongroom.attest.endorsements import Endorsements, TrustAnchor
from strongroom.attest.evidence import Evidence
from strongroom.attest.quote import parse_quote
from strongroom.attest.verifiers.dcap import DCAPVerifier
from strongroom.errors import AttestationError

VECTORS = json.loads(attest_vectors.PATH.read_text())
CASES = {case["name"]: case for case in VECTORS["cases"]}


def _dcap(anchor: TrustAnchor) -> DCAPVerifier:
    return DCAPVerifier(anchor)


VERIFIERS = {"dcap": _dcap}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", VERIFIERS)
def test_vector(kind: str, name: str) -> None:
    case = CASES[name]
    verifier = VERIFIERS[kind](TrustAnchor.from_json(VECTORS["anchor"]))
    endorsements = Endorsements.from_json(VECTORS["endorsements"][case["endorsements"]])
    now = datetime.fromisoformat(VECTORS["now"])
    evidence = Evidence.from_json({"quote": case["quote"]}, case["tee"])
    if case["expected"] is None:
        claims = verifier.verify(evidence, endorsements, now=now)
        quote = parse_quote(base64.b64decode(case["quote"]))
        assert claims.tee == case["tee"]
        assert claims.root_fingerprint == verifier.anchor.fingerprint
        assert (claims.measurement, claims.report_data) == (quote.measurement, quote.report_data)
        assert (claims.signer, claims.config_id) == (quote.signer, quote.config_id)
        return
    with pytest.raises(AttestationError) as caught:
        verifier.verify(evidence, endorsements, now=now)
    assert caught.value.code == case["expected"], caught.value


def test_vectors_are_what_the_generator_makes() -> None:
    assert json.loads(json.dumps(attest_vectors.build())) == VECTORS
