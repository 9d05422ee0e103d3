"""SEV-SNP evidence as others write and read it: the crate `sev`, field by field in its order, none of our tables."""

from __future__ import annotations

import struct
from typing import Any

RELEASES = ("4.0.0", "6.2.1", "7.1.0")
"""Of `sev`, as guest-components had them until May 2025, until September 2025, and since (6.3.1 writes as 7.1.0)."""


class Cursor:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def take(self, size: int) -> bytes:
        found, self.raw = self.raw[:size], self.raw[size:]
        return found

    def list(self, size: int) -> list[int]:
        return list(self.take(size))

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")


def attestation_report(raw: bytes, release: str) -> dict[str, Any]:
    """Return what `serde_json` writes of the report by that release."""
    version, turin = raw[0], raw[0x188] >= 0x1A
    old, c = release == "4.0.0", Cursor(raw[:1184])

    def tcb() -> dict[str, Any]:
        b = c.list(8)
        if old:
            return {"bootloader": b[0], "tee": b[1], "_reserved": b[2:6], "snp": b[6], "microcode": b[7]}
        names = ("fmc", "bootloader", "tee", "snp", "microcode")
        return dict(
            zip(names, (b[0], b[1], b[2], b[3], b[7]) if turin else (None, b[0], b[1], b[6], b[7]), strict=True)
        )

    def firmware(name: str, reserved: str) -> dict[str, Any]:
        build, minor, major, rest = c.take(4)
        if old:
            return {f"{name}_build": build, f"{name}_minor": minor, f"{name}_major": major, reserved: rest}
        return {name: {"major": major, "minor": minor, "build": build}}

    found: dict[str, Any] = {"version": c.number(4), "guest_svn": c.number(4), "policy": c.number(8)}
    found |= {"family_id": c.list(16), "image_id": c.list(16), "vmpl": c.number(4), "sig_algo": c.number(4)}
    found |= {"current_tcb": tcb(), "plat_info": c.number(8), "_author_key_en" if old else "key_info": c.number(4)}
    zeros = c.number(4)
    found |= {"_reserved_0": zeros} if old else {}
    for name, size in (
        ("report_data", 64), ("measurement", 48), ("host_data", 32), ("id_key_digest", 48), ("author_key_digest", 48),
        ("report_id", 32), ("report_id_ma", 32),
    ):  # fmt: skip
        found[name] = c.list(size)
    found["reported_tcb"] = tcb()
    cpu = c.list(24)
    names = ("cpuid_fam_id", "cpuid_mod_id", "cpuid_step")
    found |= {"_reserved_1": cpu} if old else {n: cpu[i] if version > 2 else None for i, n in enumerate(names)}
    found |= {"chip_id": c.list(64), "committed_tcb": tcb()}
    found |= firmware("current", "_reserved_2") | firmware("committed", "_reserved_3")
    found["launch_tcb"] = tcb()
    rest = c.take(168)
    vectors = struct.unpack_from("<QQ", rest)
    if old:
        found["_reserved_4"] = list(rest)
    elif release == "7.1.0":
        names_of = ("launch_mit_vector", "current_mit_vector")
        found |= {n: v if version > 4 else None for n, v in zip(names_of, vectors, strict=True)}
    found["signature"] = {"r": c.list(72), "s": c.list(72)} | ({"_reserved": c.list(368)} if old else {})
    return found


def report_bytes(said: dict[str, Any]) -> bytes:
    """Return the report of the newest form, as a KBS with `sev` 7.1.0 writes it before it looks at the signature."""

    def tcb(name: str) -> bytes:
        t = said[name]
        if t["fmc"] is None:
            return bytes([t["bootloader"], t["tee"], 0, 0, 0, 0, t["snp"], t["microcode"]])
        return bytes([t["fmc"], t["bootloader"], t["tee"], t["snp"], 0, 0, 0, t["microcode"]])

    def version(name: str) -> bytes:
        return bytes([said[name]["build"], said[name]["minor"], said[name]["major"], 0])

    cpu = [said[n] for n in ("cpuid_fam_id", "cpuid_mod_id", "cpuid_step")]
    vectors = [said[n] for n in ("launch_mit_vector", "current_mit_vector")]
    return b"".join(
        (
            struct.pack("<IIQ", said["version"], said["guest_svn"], said["policy"]),
            bytes(said["family_id"]), bytes(said["image_id"]), struct.pack("<II", said["vmpl"], said["sig_algo"]),
            tcb("current_tcb"), struct.pack("<QII", said["plat_info"], said["key_info"], 0),
            bytes(said["report_data"]), bytes(said["measurement"]), bytes(said["host_data"]),
            bytes(said["id_key_digest"]), bytes(said["author_key_digest"]),
            bytes(said["report_id"]), bytes(said["report_id_ma"]), tcb("reported_tcb"),
            bytes(cpu if said["version"] > 2 else 3).ljust(24, b"\0"), bytes(said["chip_id"]), tcb("committed_tcb"),
            version("current"), version("committed"), tcb("launch_tcb"),
            struct.pack("<QQ", *(vectors if said["version"] > 4 else (0, 0))), bytes(152),
            bytes(said["signature"]["r"]), bytes(said["signature"]["s"]), bytes(368),
        )
    )  # fmt: skip
