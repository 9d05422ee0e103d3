"""Makes tests/vectors/quotes.json: quotes, endorsements and what verification must say of them.

Run as `python -m tests.fakes.attest_vectors` from the repository after a deliberate change of format.
"""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path

from tests.fakes.attest_parts import NOW, Platform, make_pki
from tests.fakes.quote_parts import case

PATH = Path(__file__).parents[1] / "vectors" / "quotes.json"


def build() -> dict[str, object]:
    platform, other = Platform(), Platform(make_pki("two"))
    pki = platform.pki
    quote, tdx = platform.quote(), platform.quote_tdx()
    flipped = bytearray(quote)
    flipped[48 + 64] ^= 1
    endorsements = {
        "sgx": pki.endorsements(NOW),
        "tdx": pki.endorsements(NOW, tee="tdx"),
        "expired": pki.endorsements(NOW - timedelta(days=40)),
        "out-of-date": pki.endorsements(NOW, tcb_status="OutOfDate", advisory_ids=["INTEL-SA-00001"]),
        "revoked": pki.endorsements(NOW, revoke_pck=True),
    }
    cases = [
        ("sgx v3", "sgx", quote, "sgx", None),
        ("tdx v4", "tdx", tdx, "tdx", None),
        ("tdx v5", "tdx", case("tdx5").quote, "tdx", None),
        ("tdx v5, TDX 1.5", "tdx", case("tdx5-1.5").quote, "tdx", None),
        ("sgx v4", "sgx", case("sgx4").quote, "sgx", None),
        ("sgx v5", "sgx", case("sgx5").quote, "sgx", None),
        ("sgx out of date", "sgx", quote, "out-of-date", None),
        ("one bit of MRENCLAVE", "sgx", bytes(flipped), "sgx", "verification"),
        ("another root", "sgx", other.quote(), "sgx", "verification"),
        ("debug", "sgx", platform.quote(debug=True), "sgx", "verification"),
        ("expired endorsements", "sgx", quote, "expired", "endorsement"),
        ("revoked PCK certificate", "sgx", quote, "revoked", "endorsement"),
        ("endorsements of the other TEE", "tdx", tdx, "sgx", "endorsement"),
        ("one trailing zero", "sgx", quote + b"\0", "sgx", "evidence"),
        ("one byte short", "sgx", quote[:-1], "sgx", "evidence"),
        ("the other TEE's name", "tdx", quote, "sgx", "evidence"),
    ]
    return {
        "comment": "Simulated root; tests only. `expected` is null for success, else the error's code.",
        "now": NOW.isoformat(),
        "anchor": pki.anchor().to_json(),
        "endorsements": {name: value.to_json() for name, value in endorsements.items()},
        "cases": [
            {"name": n, "tee": t, "quote": base64.b64encode(q).decode(), "endorsements": e, "expected": x}
            for n, t, q, e, x in cases
        ],
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(build(), indent=1) + "\n")
