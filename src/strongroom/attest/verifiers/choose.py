"""Which verifier believes which endorsements: Intel's or AMD's, under the settings that the owner gave the root."""

from __future__ import annotations

from collections.abc import Mapping

from strongroom.attest.endorsement_snp import AnyEndorsements, SNPEndorsements
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.snp import TCB
from strongroom.attest.verifiers import AnchoredVerifier
from strongroom.attest.verifiers.dcap import DCAPVerifier
from strongroom.attest.verifiers.snp import SNPRules, SNPVerifier
from strongroom.errors import InputError

__all__ = ["snp_rules", "verifier_for"]


def verifier_for(anchor: TrustAnchor, endorsements: AnyEndorsements, settings: Mapping[str, str]) -> AnchoredVerifier:
    """Return the verifier of `endorsements` under `anchor`.

    Args:
        anchor: The root.
        endorsements: Intel's or AMD's.
        settings: For AMD's: `minimum_tcb`, and `minimum_abi`, `smt`, `cxl` and `vlek` if the owner asks for others.

    Raises:
        InputError: A setting in another form.
    """
    if isinstance(endorsements, SNPEndorsements):
        return SNPVerifier(anchor, snp_rules(settings))
    return DCAPVerifier(anchor)


def snp_rules(settings: Mapping[str, str]) -> SNPRules | None:
    """Return the rules in `settings`, None without a `minimum_tcb`: then no report is accepted.

    Raises:
        InputError: A setting in another form.
    """
    if not settings.get("minimum_tcb"):
        return None
    switches = {name: settings.get(name, default) for name, default in (("smt", "allowed"), ("cxl", "refused"))}
    major, dot, minor = settings.get("minimum_abi", "0.0").partition(".")
    if not dot or not (major + minor).isdecimal() or not set(switches.values()) <= {"allowed", "refused"}:
        raise InputError("minimum_abi is major.minor, and smt and cxl are allowed or refused")
    return SNPRules(
        minimum_tcb=TCB.from_text(settings["minimum_tcb"]),
        minimum_abi=(int(major or 0), int(minor or 0)),
        smt=switches["smt"] == "allowed",
        cxl=switches["cxl"] == "allowed",
        vlek=settings.get("vlek", ""),
    )
