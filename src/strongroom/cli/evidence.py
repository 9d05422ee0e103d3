"""What `attest` commands judge, and under which roots: evidence, policies and endorsements as files.

A hardware root is believed only if it is a maker's own, whatever a file calls it.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from strongroom._encoding import parse_json
from strongroom._unix import read_text
from strongroom.attest import ratls
from strongroom.attest.appraisal import Policy, policy_from_json
from strongroom.attest.endorsement_files import read_bundle, read_folder
from strongroom.attest.endorsement_snp import AnyEndorsements
from strongroom.attest.evidence import Evidence
from strongroom.attest.makers import MAKERS
from strongroom.attest.verifiers import AnchoredVerifier
from strongroom.attest.verifiers.choose import verifier_for
from strongroom.cli.common import PATH, owner, workspace
from strongroom.errors import InputError

if TYPE_CHECKING:
    from strongroom.client.workspace import Workspace

__all__ = ["Choices", "bundle_option", "read_evidence", "read_policy", "trusted_choices"]

Choices = Sequence[tuple[AnchoredVerifier, AnyEndorsements]]
bundle_option = click.option("--endorsements", "bundle", type=PATH, help="A bundle; default: the trust service's here.")


def read_policy(path: Path) -> Policy:
    """Return the policy in the file `path`.

    Raises:
        InputError: Not readable, or not a policy.
    """
    return policy_from_json(parse_json(read_text(path, "name a policy in JSON"), str(path)))


def read_evidence(path: Path) -> tuple[str, bytes, bytes]:
    """Return which TEE's evidence is in the file `path`, its bytes, and the certificate that it was in or b"".

    Raises:
        InputError: No such file, or another form of JSON.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist", hint="`strongroom attest quote job.toml quote.bin` makes one")
    raw, certificate = path.read_bytes(), b""
    try:
        if raw[:1] == b"{":
            raw = Evidence.from_json(parse_json(raw, str(path)), "sgx").quote
        else:
            if raw.startswith(b"-----BEGIN CERTIFICATE"):
                raw = ssl.PEM_cert_to_DER_cert(raw.decode("ascii"))
            if raw[:2] == b"\x30\x82":
                certificate, raw = raw, ratls.read_certificate(raw)[1].quote
            else:
                raw = base64.b64decode(raw.strip(), validate=True)
    except ValueError:
        pass  # bytes as they are
    # A quote has the type of its attestation key in two bytes, which is 2; a report has zeros of its version there.
    return "snp" if raw[2:4] == b"\0\0" else "tdx" if raw[4:8] == b"\x81\0\0\0" else "sgx", raw, certificate


def trusted_choices(bundle: Path | None, settings: dict[str, str], *, of_service: bool = True) -> Choices:
    """Return verifiers with the endorsements in `bundle`, or in the workspace's trust service.

    What the service's folder holds under roots that nobody here trusts is passed over, and what is not readable. Roots
    that the service says it trusts count only `of_service`: not where the service itself is judged.

    Raises:
        InputError: A hardware root in `bundle` that is no maker's own.
        EndorsementError: `bundle` is not readable.
    """
    if bundle is None:
        here = workspace()
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
