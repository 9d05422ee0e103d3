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
        "snp 2, alone: SGX 3": _snp(_library("sgx3"), rounds),
        "snp 2, alone: its one ECDSA P-384": _snp(_bare_signature(), rounds),
    }


def _measure(name: str, rounds: int) -> dict[str, float]:
    good = quote_parts.case(name)
    evidence, endorsements, now = Evidence(tee=good.tee, quote=good.quote), good.endorsements, good.now
    verifier = dcap.DCAPVerifier(quote_parts.PKI.anchor())

    def first() -> None:
        chains.certified.cache_clear()
        verifier.verify(evidence, endorsements, now=now)

    actions: dict[str, Callable[[], object]] = {
        "alone": _library("sgx3" if name in ("sgx4", "sgx5") else name),
        "ours": lambda: verifier.verify(evidence, endorsements, now=now),
        "first": first,
    }
    return _compared(actions, rounds)


def _library(name: str) -> Callable[[], object]:
    case, anchor = quote_parts.case(name), quote_parts.PKI.anchor()
    collateral = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(case.endorsements.to_json()))
    quote, root, seconds = case.quote, anchor.certificate_der, int(case.now.timestamp())
    return lambda: dcap_qvl.verify_with_root_ca(quote, collateral, root, seconds)


def _bare_signature() -> Callable[[], object]:
    # dcap-qvl takes no report of AMD's; what cannot be saved of one is the signature over it.
    message, scheme = bytes(0x2A0), ec.ECDSA(hashes.SHA384())
    signature, public = snp_parts.MILAN.chip_key.sign(message, scheme), snp_parts.MILAN.chip_key.public_key()
    return lambda: public.verify(signature, message, scheme)


def _snp(alone: Callable[[], object], rounds: int) -> dict[str, float]:
    maker = snp_parts.MILAN
    evidence, endorsements, verifier = maker.evidence(), maker.endorsements(), maker.verifier()

    def first() -> None:
        for known in (chip_keys.load_certificate, chip_keys.check_key, chip_keys.extension, chip_keys.levels_of):
            known.cache_clear()
        verifier.verify(evidence, endorsements, now=maker.now)

    return _compared(
        {
            "alone": alone,
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
