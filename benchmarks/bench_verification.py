"""Verifications per second and core, against dcap-qvl alone in the same run: SGX version 3, TDX version 4; and SNP.

`ours` sees a machine again, as a service does with every renewal; `first` forgets its certificates before each quote.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime

import dcap_qvl
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes import snp_parts

from strongroom.attest.evidence import Evidence
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.simulated.quoting import SimulatedQuotingEnclave
from strongroom.attest.verifiers import chains, chip_keys, dcap

__all__ = ["run"]


def run(quick: bool) -> dict[str, object]:
    """Return verifications per second and ratios of time, by format."""
    now = datetime.now(UTC)
    pki = SimulatedPKI.create(bytes(range(32)), now=now)
    enclave = SimulatedQuotingEnclave(pki)
    sgx = enclave.quote_sgx(measurement=bytes(32), signer=bytes(32), report_data=bytes(64), config_id=bytes(64))
    tdx = enclave.quote_tdx(measurement=bytes(48), report_data=bytes(64), config_id=bytes(48))
    rounds = 40 if quick else 200
    return {
        name: _measure(pki, Evidence(tee=name[:3], quote=quote), now, rounds)
        for name, quote in (("sgx 3", sgx), ("tdx 4", tdx))
    } | {"snp 2, alone: its one ECDSA P-384": _snp(rounds)}


def _measure(pki: SimulatedPKI, evidence: Evidence, now: datetime, rounds: int) -> dict[str, float]:
    endorsements, verifier = pki.endorsements(now, tee=evidence.tee), dcap.DCAPVerifier(pki.anchor())
    collateral = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(endorsements.to_json()))
    root, seconds = pki.anchor().certificate_der, int(now.timestamp())

    def first() -> None:
        chains.certified.cache_clear()
        verifier.verify(evidence, endorsements, now=now)

    actions: dict[str, Callable[[], object]] = {
        "alone": lambda: dcap_qvl.verify_with_root_ca(evidence.quote, collateral, root, seconds),
        "ours": lambda: verifier.verify(evidence, endorsements, now=now),
        "first": first,
    }
    return _compared(actions, rounds)


def _snp(rounds: int) -> dict[str, float]:
    # No library of its own to compare with: what cannot be saved is the signature over the report.
    maker, key = snp_parts.MILAN, snp_parts.MILAN.chip_key
    evidence, endorsements, verifier = maker.evidence(), maker.endorsements(), maker.verifier()
    message, scheme = bytes(0x2A0), ec.ECDSA(hashes.SHA384())
    signature, public = key.sign(message, scheme), key.public_key()

    def first() -> None:
        chip_keys.load_certificate.cache_clear()
        verifier.verify(evidence, endorsements, now=maker.now)

    return _compared(
        {
            "alone": lambda: public.verify(signature, message, scheme),
            "ours": lambda: verifier.verify(evidence, endorsements, now=maker.now),
            "first": first,
        },
        rounds,
    )


def _compared(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    best = dict.fromkeys(actions, float("inf"))
    for _ in range(8):  # in turn, so that a busy moment is everyone's
        for name, action in actions.items():
            best[name] = min(best[name], _cpu(action, rounds))
    return {f"{name}_per_s": round(1 / seconds_each) for name, seconds_each in best.items()} | {
        "ratio": round(best["ours"] / best["alone"], 2),
        "ratio_first": round(best["first"] / best["alone"], 2),
    }


def _cpu(action: Callable[[], object], rounds: int) -> float:
    action()
    started = time.process_time()
    for _ in range(rounds):
        action()
    return (time.process_time() - started) / rounds
