"""Verification of SGX quotes of versions 4 and 5, which Intel's own library takes and dcap-qvl 0.7 does not.

They carry what version 3 carries in another envelope: enclave report, quoting enclave, keys and certificates are the
same, only the bytes under the quote's signature differ. So dcap-qvl judges the same parts in the envelope of version 3,
where it comes to that signature after certificates, endorsements and quoting enclave, and may find nothing wrong but
it. Every check is made by `checks` too, levels and that signature included, since nothing should hang on the order of
another's checks; only the finer rules of certification paths are dcap-qvl's alone.

Source: Intel QVL `Quote.cpp`, `QuoteVerifier.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from strongroom._encoding import parse_json
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.quote import Quote
from strongroom.attest.verifiers.chains import tcb_info
from strongroom.attest.verifiers.checks import advisories, converged, judge
from strongroom.attest.verifiers.refusals import Judged
from strongroom.errors import VerificationError

__all__ = ["as_version_3", "verify"]

_REPORT = 384
_UNSIGNED = "ISV enclave report signature is invalid"


def verify(judged: Judged, anchor: TrustAnchor, library: Callable[[bytes], object]) -> dict[str, object]:
    """Return what is proven, as dcap-qvl says it of version 3.

    Args:
        judged: An SGX quote of version 4 or 5, its certificates checked up to `anchor`.
        anchor: The root.
        library: dcap-qvl on a quote and these endorsements; raises ValueError.

    Raises:
        ValueError: Refused, in dcap-qvl's words.
        AttestationError: What `checks` refuses.
    """
    quote = judged.quote
    try:
        library(as_version_3(quote))
    except ValueError as exc:
        if str(exc).removeprefix("Verification failed: ") != _UNSIGNED:
            raise
    else:
        raise VerificationError(f"quote_signature: expected one over version {quote.version}, got one over version 3")
    levels = judge(judged, anchor)
    identity: Any = parse_json(judged.endorsements.qe_identity, "qe_identity")
    numbers = [d.get("tcbEvaluationDataNumber") for d in (tcb_info(judged.endorsements), identity)]
    return {
        "tcb": {"status": converged(levels), "advisory_ids": advisories(levels), "eval_data_number": numbers[0]},
        "platform": {"tcb_level": levels["platform"]},
        "qe": {"tcb_level": levels["qe"], "tcb_eval_data_number": numbers[1]},
    }


def as_version_3(quote: Quote) -> bytes:
    """Return the parts of an SGX `quote` of version 4 or 5 in the envelope of version 3, signed as they were."""
    raw = quote.raw
    body, auth, nested = (quote.spans[name][0] for name in ("body.cpu_svn", "auth.signature", "qe_report.cpu_svn"))
    rest = raw[auth : auth + 128] + raw[nested:]
    return b"\3" + raw[1:48] + raw[body : body + _REPORT] + len(rest).to_bytes(4, "little") + rest
