"""TCB info v3 and QE identity v2 of the simulated platform, as JSON text ready to be signed.

Source: Intel PCS API v4, "Get TCB Info" and "Get QE Identity".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from strongroom._encoding import labelled_hash
from strongroom.attest.markers import SIMULATED_FMSPC

__all__ = [
    "PCESVN",
    "QE_ATTRIBUTES",
    "QE_ISVPRODID",
    "QE_ISVSVN",
    "QE_MRSIGNER",
    "SEAM_MRSIGNER",
    "TCB_SVN",
    "TDX_MODULE_SVN",
    "collateral_documents",
]

TCB_SVN = (2,) * 16
PCESVN = 13
QE_MRSIGNER = labelled_hash("simulated/qe-mrsigner", [])
QE_ISVPRODID = 1
QE_ISVSVN = 8
QE_ATTRIBUTES = bytes.fromhex("1100000000000000e700000000000000")
SEAM_MRSIGNER = bytes(48)
TDX_MODULE_SVN = (3, 1)
"""ISVSVN and major version of the simulated TDX module, the first two bytes of TEE_TCB_SVN."""

_TCB_DATE = "2024-01-01T00:00:00Z"
_LIFETIME = timedelta(days=30)
_BACKDATE = timedelta(hours=1)


def collateral_documents(
    now: datetime, *, tee: str, tcb_status: str, advisory_ids: Sequence[str], qe_status: str, number: int
) -> tuple[str, str, datetime, datetime]:
    """Return TCB info, QE identity, and the moments between which they hold."""
    issued = (now.astimezone(UTC) - _BACKDATE).replace(microsecond=0)
    expires = issued + _BACKDATE + _LIFETIME
    common = {
        "issueDate": issued.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "nextUpdate": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "tcbEvaluationDataNumber": number,
    }
    tcb: dict[str, object] = {
        "id": tee.upper(),
        "version": 3,
        **common,
        "fmspc": SIMULATED_FMSPC.hex().upper(),
        "pceId": "0000",
        "tcbType": 0,
        "tcbLevels": [_level(tee, tcb_status, advisory_ids)],
    }
    if tee == "tdx":
        tcb |= _tdx_module()
    identity = {
        "id": "TD_QE" if tee == "tdx" else "QE",
        "version": 2,
        **common,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_MRSIGNER.hex().upper(),
        "isvprodid": QE_ISVPRODID,
        "tcbLevels": [{"tcb": {"isvsvn": QE_ISVSVN}, "tcbDate": _TCB_DATE, "tcbStatus": qe_status}],
    }
    return _text(tcb), _text(identity), issued, expires


def _level(tee: str, status: str, advisory_ids: Sequence[str]) -> dict[str, object]:
    components = [{"svn": svn} for svn in TCB_SVN]
    tcb: dict[str, object] = {"sgxtcbcomponents": components, "pcesvn": PCESVN}
    if tee == "tdx":
        tcb["tdxtcbcomponents"] = components
    level: dict[str, object] = {"tcb": tcb, "tcbDate": _TCB_DATE, "tcbStatus": status}
    if advisory_ids:
        level["advisoryIDs"] = list(advisory_ids)
    return level


def _tdx_module() -> dict[str, object]:
    module = {"mrsigner": SEAM_MRSIGNER.hex(), "attributes": "00" * 8, "attributesMask": "FF" * 8}
    svn, major = TDX_MODULE_SVN
    level = {"tcb": {"isvsvn": svn}, "tcbDate": _TCB_DATE, "tcbStatus": "UpToDate"}
    return {"tdxModule": module, "tdxModuleIdentities": [{"id": f"TDX_{major:02}", **module, "tcbLevels": [level]}]}


def _text(value: dict[str, object]) -> str:
    return json.dumps(value, separators=(",", ":"))
