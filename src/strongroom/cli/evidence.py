"""What `attest` commands judge, and under which roots: evidence, policies and endorsements as files.

A hardware root is believed only if it is a maker's own, whatever a file calls it.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from strongroom._encoding import parse_bounded
from strongroom._unix import read_text
from strongroom.attest import ratls
from strongroom.attest.appraisal import policy_from_json
from strongroom.attest.endorsement_files import read_bundle, read_folder
from strongroom.attest.endorsement_snp import AnyEndorsements
from strongroom.attest.evidence import Evidence
from strongroom.attest.findings import Policy
from strongroom.attest.makers import MAKERS
from strongroom.attest.stock_evidence import read_message
from strongroom.attest.verifiers import Verifier
from strongroom.attest.verifiers.choose import verifier_for
from strongroom.cli.common import PATH, owner, workspace
from strongroom.errors import InputError

if TYPE_CHECKING:
    from strongroom.client.workspace import Workspace

__all__ = ["Choices", "bundle_option", "read_evidence", "read_policy", "trusted_choices"]

_LEAST_BYTES, _MAX_BYTES = 48, 1 << 20
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")

Choices = Sequence[tuple[Verifier, AnyEndorsements]]
bundle_option = click.option("--endorsements", "bundle", type=PATH, help="A bundle; default: the trust service's here.")


def read_policy(path: Path) -> Policy:
    """Return the policy in the file `path`.

    Raises:
        InputError: Not readable, or not a policy.
    """
    return policy_from_json(parse_bounded(read_text(path, "name a policy in JSON"), str(path)))


def read_evidence(path: Path) -> tuple[Evidence, bytes]:
    """Return the evidence in the file `path`, and the certificate that it was in or b"".

    JSON is the evidence object of the release protocol, in the forms of stock clients too.

    Raises:
        InputError: Not readable, under 48 bytes, over 1 MiB, or not JSON.
        EvidenceError: Another form of JSON, or a certificate without evidence.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as exc:
        hint = "`strongroom attest quote job.toml quote.bin` makes one"
        raise InputError(f"{path} is not readable: {exc.strerror}", hint=hint) from exc
    if len(raw) > _MAX_BYTES:
        raise InputError(f"{path} is larger than {_MAX_BYTES} bytes: neither a quote nor a report")
    if raw[:1] == b"{":
        return _stock(parse_bounded(raw, str(path))), b""
    pem = _PEM.match(raw)
    with contextlib.suppress(ValueError):  # bytes as they are
        raw = base64.b64decode(b"".join((pem[1] if pem else raw).split()), validate=True)
    if len(raw) < _LEAST_BYTES:
        raise InputError(f"{path} is neither a quote nor a report: {len(raw)} bytes")
    if raw[:2] == b"\x30\x82":
        return Evidence.of(ratls.read_certificate(raw)[1].quote), raw
    return Evidence.of(raw), b""


def _stock(value: object) -> Evidence:
    # Which TEE a client's message is of, its session would say; here the evidence in it does.
    assert isinstance(value, dict)  # it begins with a brace
    if "attestation_report" in value:
        return read_message(value, "snp")
    return read_message(value, Evidence.of(Evidence.from_json(value, "tdx").quote).tee)


def trusted_choices(bundle: Path | None, settings: dict[str, str], *, of_service: bool = True) -> Choices:
    """Return verifiers with the endorsements in `bundle`, or in the workspace's trust service.

    What the service's folder holds under roots that nobody here trusts is passed over, and what is not readable. Roots
    that the service says it trusts count only `of_service`: not where the service itself is judged.

    Raises:
        InputError: A hardware root in `bundle` that is no maker's own, or neither a bundle nor a workspace.
        EndorsementError: `bundle` is not readable.
    """
    if bundle is None:
        try:
            here = workspace()
        except InputError as exc:
            exc.hint = "--endorsements BUNDLE; `strongroom attest endorsements fetch FILE --out BUNDLE` writes one"
            raise
        known = _known_roots(here, of_service)
        folder = read_folder(here.service_folder / "endorsements")[0]
        found = [(anchor, one) for anchor, one in folder if (anchor.fingerprint, anchor.kind) in known]
    else:
        anchor, endorsements = read_bundle(bundle)
        if anchor.kind == "hardware" and anchor.fingerprint not in MAKERS:
            raise InputError(
                f"{bundle}: root: expected Intel's, AMD's or a simulated one, got {anchor.fingerprint[:16]}",
                hint="a file cannot make its own root a hardware maker's",
            )
        found = [(anchor, one) for one in endorsements]
    return [(verifier_for(anchor, one, settings), one) for anchor, one in found]


def _known_roots(here: Workspace, of_service: bool) -> set[tuple[str, str]]:
    # The makers', the simulated platform's of this workspace, and what its service trusts beside.
    from strongroom.attest.simulated.pki import SimulatedPKI
    from strongroom.attest.simulated.platform import load_seed

    known = {(fingerprint, "hardware") for fingerprint in MAKERS}
    if here.seed.exists():
        anchor = SimulatedPKI.create(load_seed(here.seed), now=datetime.now(UTC)).anchor()
        known.add((anchor.fingerprint, anchor.kind))
    if of_service and here.embedded and here.is_running():
        anchors = cast(list[dict[str, str]], owner().call("GET", "/v1/status")["anchors"])
        known |= {(a["fingerprint"], a["kind"]) for a in anchors}
    return known
