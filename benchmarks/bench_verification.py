"""Verifications per second and core, against dcap-qvl alone in the same run: SGX versions 3 to 5, TDX 4 and 5; and SNP.

dcap-qvl takes SGX's version 3 alone: versions 4 and 5 are compared with what it needs for the same machine's version 3.

`ours` sees a machine again, as a service does with every renewal; `first` forgets its certificates before each quote.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import dcap_qvl
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes import quote_parts, snp_parts

from strongroom.attest.evidence import Evidence
from strongroom.attest.verifiers import chains, chip_keys, dcap

__all__ = ["run"]

FORMATS = {
    "sgx3": "sgx 3",
    "sgx4": "sgx 4, alone: version 3",
    "sgx5": "sgx 5, alone: version 3",
    "tdx4": "tdx 4",
    "tdx5": "tdx 5",
    "tdx5-1.5": "tdx 5, TDX 1.5",
}


def run(quick: bool) -> dict[str, object]:
    """Return verifications per second and ratios of time, by format."""
    rounds = 40 if quick else 200
    return {
        **{shown: _measure(name, rounds) for name, shown in FORMATS.items()},
        "snp 2, alone: its one ECDSA P-384": _snp(rounds),
    }


def _measure(name: str, rounds: int) -> dict[str, float]:
    good, alone, pki = quote_parts.case(name), quote_parts.case(name), quote_parts.PKI
    if name in ("sgx4", "sgx5"):
        alone = quote_parts.case("sgx3")
    evidence, endorsements, now = Evidence(tee=good.tee, quote=good.quote), good.endorsements, good.now
    verifier, plain = dcap.DCAPVerifier(pki.anchor()), alone.quote
    collateral = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(endorsements.to_json()))
    root, seconds = pki.anchor().certificate_der, int(now.timestamp())

    def first() -> None:
        chains.certified.cache_clear()
        verifier.verify(evidence, endorsements, now=now)

    actions: dict[str, Callable[[], object]] = {
        "alone": lambda: dcap_qvl.verify_with_root_ca(plain, collateral, root, seconds),
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
