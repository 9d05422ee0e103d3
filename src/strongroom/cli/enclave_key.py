"""`strongroom enclave-key`: the key that signs SGX enclaves, away from the machines that run them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from strongroom._unix import flush_folder, write_new, write_whole
from strongroom.cli import output
from strongroom.cli.common import epilog, json_option, passphrase
from strongroom.errors import DeniedError, InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from strongroom.attest.sigstruct import Sigstruct

__all__ = ["command"]

_MINIMUM_LENGTH = 12
_MAX_BYTES = 1 << 16
_FLAGS = {0: "INIT", 1: "DEBUG", 2: "MODE64", 4: "PROVISIONKEY", 5: "EINITTOKENKEY", 7: "KSS"}
_DEBUG, _MODE64 = 1 << 1, 1 << 2
_F = TypeVar("_F", bound=Callable[..., Any])
_path = click.Path(path_type=Path, dir_okay=False)
_passphrase: Callable[[_F], _F] = click.option(
    "--passphrase-file", type=_path, help="Its first line is the passphrase; else it is asked for."
)


@click.group("enclave-key")
def command() -> None:
    """Keys that sign SGX enclaves: create, show, sign."""


@command.command("create", epilog=epilog("strongroom enclave-key create signer.pem"))
@click.argument("key", type=_path)
@_passphrase
@json_option
def create(key: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Create a signing key (RSA-3072, exponent 3) in the new file KEY, encrypted under a passphrase."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    secret = _read_passphrase(passphrase_file, new=True)
    if len(secret) < _MINIMUM_LENGTH:
        raise InputError(
            f"the passphrase has {len(secret)} bytes, expected at least {_MINIMUM_LENGTH}",
            hint="use several random words",
        )
    made = rsa.generate_private_key(public_exponent=3, key_size=3072)
    pem = made.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(secret),
    )
    try:
        write_new(key, pem, 0o600)
    except FileExistsError as exc:
        raise InputError(f"{key} exists: a signing key is never replaced", hint="name a new file") from exc
    flush_folder(key.parent)
    _show({"key": str(key), "signer": _signer(made)}, as_json)


@command.command("show", epilog=epilog("strongroom enclave-key show signer.pem", "strongroom enclave-key show job.sig"))
@click.argument("file", type=_path)
@_passphrase
@json_option
def show(file: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Show whose FILE is: MRSIGNER of a signing key, or all that an enclave's signature (.sig) states."""
    raw = _read(file)
    if raw.startswith(b"-----BEGIN"):
        _show({"key": str(file), "signer": _signer(_load(raw, passphrase_file, file))}, as_json)
        return
    from strongroom.attest.sigstruct import Sigstruct

    found = Sigstruct.from_bytes(raw)
    if found.signature:
        found.verify()
    _show(_facts(found), as_json)


@command.command(
    "sign",
    epilog=epilog(
        "strongroom enclave-key sign job.sig --key signer.pem --measurement 5feceb66... --svn 2 --out signed.sig",
    ),
)
@click.argument("sig", type=_path)
@click.option("--key", type=_path, required=True, help="The signing key.")
@click.option("--measurement", required=True, metavar="HEX", help="The MRENCLAVE that you mean to sign.")
@click.option("--product", type=int, default=0, show_default=True, help="The job's `product`, in [sgx].")
@click.option("--svn", type=int, default=0, show_default=True, help="The job's `svn`: security version.")
@click.option("--out", type=_path, required=True, help="Where the signed one goes.")
@click.option("--unsafe-debug", is_flag=True, help="Sign an enclave whose memory the host can read.")
@_passphrase
@json_option
def sign(
    sig: Path,
    key: Path,
    measurement: str,
    product: int,
    svn: int,
    out: Path,
    unsafe_debug: bool,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Sign what SIG states, unsigned or signed by another key: only these 1,808 bytes have to come here."""
    from strongroom.attest.sigstruct import Sigstruct

    found = Sigstruct.from_bytes(_read(sig))
    _check(found, measurement.lower(), product, svn, unsafe_debug=unsafe_debug)
    signed = found.signed(_load(_read(key), passphrase_file, key), on=datetime.now(UTC).date())
    signed.verify()
    write_whole(out, signed.to_bytes())
    _show(_facts(signed), as_json)


def _check(found: Sigstruct, measurement: str, product: int, svn: int, *, unsafe_debug: bool) -> None:
    # What our manifests ask Gramine for, and nothing more: whatever the mask leaves open, the host may set.
    flags, mask = (int.from_bytes(value[:8], "little") for value in (found.attributes, found.attribute_mask))
    if found.debug and not unsafe_debug:
        raise DeniedError(
            "debug: expected a production enclave, got one whose memory the host can read",
            hint="build it without sgx.debug, or add --unsafe-debug",
        )
    debug = _DEBUG if unsafe_debug else 0
    if not (mask | debug) & _DEBUG:
        raise DeniedError("debug: expected an attribute mask that fixes the bit, got one that lets the host set it")
    for name, expected, got in (
        ("measurement", measurement, found.measurement.hex()),
        ("product", product, found.product),
        ("svn", svn, found.svn),
        ("attributes", _named(_MODE64), _named(flags & ~debug)),
        ("attributes left to the host", "none", _named(~(mask | debug) & (1 << 64) - 1)),
        ("misc select", "0x0 under mask 0xffffffff", f"{found.misc_select:#x} under mask {found.misc_mask:#x}"),
    ):
        if got != expected:
            raise DeniedError(f"{name}: expected {expected}, got {got}")


def _named(flags: int) -> str:
    return " ".join(_FLAGS.get(bit, f"bit {bit}") for bit in range(64) if flags >> bit & 1) or "none"


def _facts(found: Sigstruct) -> dict[str, object]:
    return {
        "measurement": found.measurement.hex(),
        "signer": found.signer.hex() if found.signature else "",
        "product": found.product,
        "svn": found.svn,
        "debug": found.debug,
        "attributes": found.attributes.hex(),
        "attribute_mask": found.attribute_mask.hex(),
        "misc_select": found.misc_select,
        "date": found.signed_on.isoformat(),
    }


def _show(value: dict[str, object], as_json: bool) -> None:
    output.data(value, as_json, output.facts(value))


def _signer(key: RSAPrivateKey) -> str:
    from strongroom.attest.sigstruct import mr_signer

    return mr_signer(key.public_key().public_numbers().n).hex()


def _read(path: Path) -> bytes:
    with open(path, "rb") as file:
        raw = file.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise InputError(f"{path} has more than {_MAX_BYTES} bytes: it is neither a key nor a signature")
    return raw


def _read_passphrase(path: Path | None, *, new: bool = False) -> bytes:
    if path is not None:
        return _read(path).partition(b"\n")[0].rstrip(b"\r")
    return passphrase(new=new).encode()


def _load(raw: bytes, passphrase_file: Path | None, path: Path) -> RSAPrivateKey:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if b"BEGIN ENCRYPTED PRIVATE KEY" not in raw:
        raise InputError(f"{path} is not an encrypted signing key", hint="`strongroom enclave-key create` makes one")
    try:
        key = load_pem_private_key(raw, _read_passphrase(passphrase_file))
    except (ValueError, TypeError) as exc:  # TypeError: it is empty
        raise DeniedError(
            f"the passphrase does not open {path}", hint="it is what was typed, or the first line of --passphrase-file"
        ) from exc
    if not isinstance(key, RSAPrivateKey):
        raise InputError(f"{path} is not an RSA key: an SGX signing key is RSA-3072 with exponent 3")
    return key
