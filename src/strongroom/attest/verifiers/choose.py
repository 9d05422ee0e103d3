"""Which verifier believes which endorsements: Intel's or AMD's, under the settings that the owner gave the root."""

from __future__ import annotations

import re
from collections.abc import Mapping

from strongroom.attest.endorsement_snp import AnyEndorsements, SNPEndorsements
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.evidence import Evidence
from strongroom.attest.snp import TCB, parse_report
from strongroom.attest.verifiers import Verifier
from strongroom.attest.verifiers.chip_keys import key_of, provider_of
from strongroom.attest.verifiers.dcap import DCAPVerifier
from strongroom.attest.verifiers.snp import SNPRules, SNPVerifier
from strongroom.errors import InputError

__all__ = ["asking_nothing", "snp_rules", "tcb_floors", "verifier_for"]

_PROCESSOR = re.compile(r"unnamed|[0-9a-f]{2}-[0-9a-f]{2}-[0-9a-f]{1,2}")


def verifier_for(anchor: TrustAnchor, endorsements: AnyEndorsements, settings: Mapping[str, str]) -> Verifier:
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


def asking_nothing(anchor: TrustAnchor, endorsements: AnyEndorsements, evidence: Evidence) -> Verifier:
    """Return the verifier of `endorsements` that proves what `evidence` says, and asks nothing that an owner could.

    A report's versions have no floor under it, so its status is no verdict on them. Only for explaining.
    """
    if not isinstance(endorsements, SNPEndorsements) or evidence.tee != "snp":
        return verifier_for(anchor, endorsements, {})
    report = parse_report(evidence.quote)
    key = report.certificate or key_of(report, endorsements.keys, endorsements.ask)
    return SNPVerifier(anchor, SNPRules(floors={}, cxl=True, vlek=provider_of(key) if key else ""))


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
        floors=tcb_floors(settings["minimum_tcb"]),
        minimum_abi=(int(major or 0), int(minor or 0)),
        smt=switches["smt"] == "allowed",
        cxl=switches["cxl"] == "allowed",
        vlek=settings.get("vlek", ""),
    )


def tcb_floors(text: str) -> dict[str, TCB]:
    """Return processor -> lowest versions, written `19-01-1=4.0.23.213,19-01-2=4.0.23.56`.

    Raises:
        InputError: Another form, a processor twice, or versions of another product line.
    """
    floors: dict[str, TCB] = {}
    for part in text.split(","):
        processor, equals, versions = part.partition("=")
        if not equals or not _PROCESSOR.fullmatch(processor) or processor in floors:
            raise InputError(
                f"minimum_tcb: expected PROCESSOR=VERSIONS for each processor once, got {part!r:.60}",
                hint="PROCESSOR is family-model-stepping in hex, 19-01-1 for example; version 2 reports are `unnamed`",
            )
        floors[processor] = TCB.from_text(versions)
        if (floors[processor].fmc is None) == processor.startswith("1a-"):
            raise InputError(f"minimum_tcb: Turin's versions have fmc. before them, and no other's: {part!r:.60}")
    return floors
