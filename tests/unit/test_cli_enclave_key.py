"""The signing key stays encrypted, and signs only what its holder named."""

import errno
import io
import json
import os
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from strongroom.attest.sigstruct import Sigstruct
from strongroom.cli.common import passphrase, read_shares
from strongroom.cli.enclave_key import command
from strongroom.errors import DeniedError, EvidenceError, InputError

UNSIGNED = Sigstruct(
    measurement=b"\x5f" * 32, attributes=b"\4" + bytes(15), attribute_mask=b"\xff" * 16, signed_on=date(2026, 1, 1)
)


def call(*words: object) -> dict[str, object]:
    done = CliRunner().invoke(command, [*map(str, words), "--json"])
    if done.exception is not None:
        raise done.exception
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("signer")
    (made / "passphrase").write_text("correct horse battery\n")
    (made / "job.sig").write_bytes(UNSIGNED.to_bytes())
    call("create", made / "signer.pem", "--passphrase-file", made / "passphrase")
    return made


def sign(folder: Path, sig: Path | None = None, measurement: bytes = UNSIGNED.measurement, *more: str) -> Path:
    out = folder / "signed.sig"
    call(
        "sign", sig or folder / "job.sig", "--key", folder / "signer.pem", "--measurement", measurement.hex(),
        "--out", out, "--passphrase-file", folder / "passphrase", *more,
    )  # fmt: skip
    return out


def test_a_signature_made_elsewhere_holds(folder: Path) -> None:
    pem = (folder / "signer.pem").read_bytes()
    assert pem.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert os.stat(folder / "signer.pem").st_mode & 0o777 == 0o600
    signed = Sigstruct.from_bytes(sign(folder).read_bytes())
    signed.verify()
    shown = call("show", folder / "signer.pem", "--passphrase-file", folder / "passphrase")
    assert shown["signer"] == signed.signer.hex() == call("show", folder / "signed.sig")["signer"]
    assert (signed.measurement, signed.svn) == (UNSIGNED.measurement, 0)
    again = Sigstruct.from_bytes(sign(folder, folder / "signed.sig").read_bytes())
    assert again == signed  # signing again is the same signature


def test_only_what_was_meant_is_signed(folder: Path) -> None:
    with pytest.raises(DeniedError, match="measurement: expected 0000"):
        sign(folder, None, bytes(32))
    debug = folder / "debug.sig"
    debug.write_bytes(replace(UNSIGNED, attributes=b"\6" + bytes(15)).to_bytes())
    with pytest.raises(DeniedError, match="debug: expected a production enclave"):
        sign(folder, debug)
    debug.write_bytes(replace(UNSIGNED, attribute_mask=b"\xfd" + b"\xff" * 15).to_bytes())
    with pytest.raises(DeniedError, match="debug: expected an attribute mask"):
        sign(folder, debug)
    debug.write_bytes(replace(UNSIGNED, attributes=b"\6" + bytes(15)).to_bytes())
    assert Sigstruct.from_bytes(sign(folder, debug, UNSIGNED.measurement, "--unsafe-debug").read_bytes()).debug


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"product": 7}, "product: expected 0, got 7"),
        ({"svn": 2}, "svn: expected 0, got 2"),
        ({"attributes": b"\x14" + bytes(15)}, "attributes: expected MODE64, got MODE64 PROVISIONKEY"),
        ({"attributes": b"\x24" + bytes(15)}, "attributes: expected MODE64, got MODE64 EINITTOKENKEY"),
        ({"attributes": b"\x84\x08" + bytes(14)}, "attributes: expected MODE64, got MODE64 KSS bit 11"),
        ({"attributes": bytes(16)}, "attributes: expected MODE64, got none"),
        ({"attribute_mask": b"\xcf" + b"\xff" * 15}, "left to the host: expected none, got PROVISIONKEY EINITTOKENKEY"),
        ({"misc_select": 1}, "misc select: expected 0x0 under mask 0xffffffff, got 0x1 under mask 0xffffffff"),
        ({"misc_mask": 0xFFFFFFFE}, "got 0x0 under mask 0xfffffffe"),
    ],
)
def test_T270_a_signature_for_more_than_the_owner_expects(
    folder: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    (tmp_path / "job.sig").write_bytes(replace(UNSIGNED, **change).to_bytes())
    with pytest.raises(DeniedError, match=reason):
        sign(folder, tmp_path / "job.sig")
    with pytest.raises(DeniedError):
        sign(folder, tmp_path / "job.sig", UNSIGNED.measurement, "--unsafe-debug")


def test_a_product_and_a_version_that_were_named_are_signed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "job.sig").write_bytes(replace(UNSIGNED, product=7, svn=2).to_bytes())
    words = ("--product", "7", "--svn", "2")
    signed = Sigstruct.from_bytes(sign(folder, tmp_path / "job.sig", UNSIGNED.measurement, *words).read_bytes())
    assert (signed.product, signed.svn) == (7, 2)
    with pytest.raises(DeniedError, match="svn: expected 3, got 2"):
        sign(folder, tmp_path / "job.sig", UNSIGNED.measurement, "--product", "7", "--svn", "3")


def test_a_wrong_passphrase_a_short_one_and_an_old_file_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("incorrect horse battery")
    (tmp_path / "short").write_text("hunter2")
    with pytest.raises(DeniedError, match="the passphrase does not open"):
        call("show", folder / "signer.pem", "--passphrase-file", tmp_path / "wrong")
    (tmp_path / "empty").touch()
    with pytest.raises(DeniedError, match="the passphrase does not open"):
        call("show", folder / "signer.pem", "--passphrase-file", tmp_path / "empty")
    with pytest.raises(InputError, match="expected at least 12"):
        call("create", tmp_path / "new.pem", "--passphrase-file", tmp_path / "short")
    assert not (tmp_path / "new.pem").exists()
    with pytest.raises(InputError, match="is never replaced"):
        call("create", folder / "signer.pem", "--passphrase-file", folder / "passphrase")
    (tmp_path / "plain.pem").write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(InputError, match="is not an encrypted signing key"):
        call("show", tmp_path / "plain.pem", "--passphrase-file", folder / "passphrase")


@pytest.mark.parametrize("end", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()])
def test_a_key_that_could_not_be_written_leaves_no_half_of_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _handle: (_ for _ in ()).throw(end))
        words = ["create", str(tmp_path / "k"), "--passphrase-file", str(folder / "passphrase")]
        done = CliRunner().invoke(command, words)
        assert done.exit_code == 1
    assert os.listdir(tmp_path) == []
    call("create", tmp_path / "k", "--passphrase-file", folder / "passphrase")


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_typed_passphrase_that_is_no_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: str
) -> None:
    for read in (passphrase, read_shares):
        typed = io.TextIOWrapper(io.BytesIO(b"\xff\xfe" * 20), encoding="utf-8", errors=errors)
        monkeypatch.setattr(sys, "stdin", typed)
        with pytest.raises(InputError, match="standard input: expected text in UTF-8"):
            read()


def test_an_altered_signature_is_not_shown(folder: Path, tmp_path: Path) -> None:
    raw = bytearray(sign(folder).read_bytes())
    raw[1026] ^= 1  # its security version
    (tmp_path / "altered.sig").write_bytes(raw)
    with pytest.raises(Exception, match="the signature does not hold"):
        call("show", tmp_path / "altered.sig")
    with pytest.raises(EvidenceError, match="expected 1808 bytes"):
        call("show", folder / "passphrase")
