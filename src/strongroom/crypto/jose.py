"""The two JOSE forms that the release protocol uses, and no others: JWE for keys, JWS for tokens and heads.

Algorithms are fixed, never negotiated: ECDH-ES+A256KW over P-256 with A256GCM (RFC 7516, 7518 §4.6) and ES256
(RFC 7515). A header that names anything else is refused before any key is used. Keys are also sealed to RSA keys, which
clients of other makers may have (RSA-OAEP-256, RFC 7518 §4.3); nothing here opens that.

Written on `cryptography` primitives because a JOSE library costs 100 ms of import in the guest
(docs/decisions/0004-jose.md); tests check both directions against joserfc.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from strongroom._encoding import b64u, b64u_decode, canonical_json, parse_json
from strongroom._secret import SecretBytes
from strongroom.errors import InputError, VerificationError

__all__ = ["ReceiverKey", "jwe_open", "jwe_seal", "jwk", "jwk_public_key", "jwk_receiver", "sign_jws", "verify_jws"]

ReceiverKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

_ALG = "ECDH-ES+A256KW"
_RSA_ALG = "RSA-OAEP-256"
_MAX_RSA_BITS = 4096
_ENC = "A256GCM"
_MAX_TOKEN_BYTES = 1 << 20


def jwk(key: ReceiverKey, **extra: str) -> dict[str, str]:
    """Return `key` (P-256, or RSA with the exponent 65537) as a public JWK, with `alg` and any `extra` members."""
    if isinstance(key, rsa.RSAPublicKey):
        n = key.public_numbers().n.to_bytes((key.key_size + 7) // 8, "big")
        return {"kty": "RSA", "alg": _RSA_ALG, "n": b64u(n), "e": "AQAB", **extra}
    numbers = key.public_numbers()
    return {
        "kty": "EC",
        "crv": "P-256",
        "alg": _ALG,
        "x": b64u(numbers.x.to_bytes(32, "big")),
        "y": b64u(numbers.y.to_bytes(32, "big")),
        **extra,
    }


def jwk_public_key(value: Mapping[str, object]) -> ec.EllipticCurvePublicKey:
    """Return the P-256 key in a JWK.

    Raises:
        InputError: Another key type, curve or algorithm, or a point that is not on the curve.
    """
    x, y = value.get("x"), value.get("y")
    if value.get("kty") != "EC" or value.get("crv") != "P-256" or not isinstance(x, str) or not isinstance(y, str):
        raise InputError("expected a P-256 public key as JWK")
    if value.get("alg", _ALG) != _ALG:
        raise InputError(f"expected algorithm {_ALG}, got {value.get('alg')!r}")
    at = [b64u_decode(x), b64u_decode(y)]
    if any(len(coordinate) != 32 for coordinate in at):  # RFC 7518 §6.2.1.2: always the full size
        raise InputError("a coordinate of the JWK does not have 32 bytes")
    try:
        numbers = [int.from_bytes(coordinate, "big") for coordinate in at]
        return ec.EllipticCurvePublicNumbers(numbers[0], numbers[1], ec.SECP256R1()).public_key()
    except ValueError as exc:
        raise InputError("the JWK is not a point on P-256") from exc


def jwk_receiver(value: Mapping[str, object]) -> ReceiverKey:
    """Return the key in a JWK to which `jwe_seal` can seal: P-256, or RSA of 2048 to 4096 bits for RSA-OAEP-256.

    Raises:
        InputError: Another key type, curve, size or algorithm.
    """
    if value.get("kty") != "RSA":
        return jwk_public_key(value)
    n, e = value.get("n"), value.get("e")
    if value.get("alg") != _RSA_ALG or not isinstance(n, str) or not isinstance(e, str):
        raise InputError(f"expected an RSA public key for {_RSA_ALG} as JWK")
    modulus = b64u_decode(n)
    if b64u_decode(e) != b"\x01\x00\x01" or not modulus[:1].strip(b"\0"):  # RFC 7518 §6.3.1: no zeros in front
        raise InputError("the RSA key's exponent is not 65537, or its modulus is not as short as it can be")
    number = int.from_bytes(modulus, "big")
    if not 2048 <= number.bit_length() <= _MAX_RSA_BITS or number % 2 == 0:
        raise InputError(f"expected an RSA modulus of 2048 to {_MAX_RSA_BITS} bits, got {number.bit_length()}")
    return rsa.RSAPublicNumbers(65537, number).public_key()


def jwe_seal(plaintext: bytes, receiver: ReceiverKey) -> dict[str, str]:
    """Return a flattened JWE that only the holder of `receiver` opens."""
    content_key, nonce = os.urandom(32), os.urandom(12)
    if isinstance(receiver, rsa.RSAPublicKey):
        header: dict[str, object] = {"alg": _RSA_ALG, "enc": _ENC}
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
        wrapped = receiver.encrypt(content_key, oaep)
    else:
        ephemeral = ec.generate_private_key(ec.SECP256R1())
        epk = jwk(ephemeral.public_key())
        del epk["alg"]
        header = {"alg": _ALG, "enc": _ENC, "epk": epk}
        wrapped = aes_key_wrap(_agree(ephemeral, receiver), content_key)
    protected = b64u(canonical_json(header))
    sealed = AESGCM(content_key).encrypt(nonce, plaintext, protected.encode("ascii"))
    return {
        "protected": protected,
        "encrypted_key": b64u(wrapped),
        "iv": b64u(nonce),
        "ciphertext": b64u(sealed[:-16]),
        "tag": b64u(sealed[-16:]),
    }


def jwe_open(message: object, receiver: ec.EllipticCurvePrivateKey) -> SecretBytes:
    """Return the plaintext of a flattened JWE.

    Raises:
        VerificationError: Another algorithm, another receiver, or an altered message.
    """
    parts = _jwe_parts(message)
    try:
        header = parse_json(b64u_decode(parts["protected"]), "JWE header")
        if not isinstance(header, dict) or header.get("alg") != _ALG or header.get("enc") != _ENC:
            raise VerificationError(f"expected a JWE by {_ALG} and {_ENC}")
        epk = header.get("epk")
        if not isinstance(epk, dict) or set(header) != {"alg", "enc", "epk"}:  # so no zip, crit, apu or apv
            raise VerificationError("expected a JWE header with alg, enc and epk")
        content_key = aes_key_unwrap(_agree(receiver, jwk_public_key(epk)), b64u_decode(parts["encrypted_key"]))
        nonce, tag = b64u_decode(parts["iv"]), b64u_decode(parts["tag"])
        if (len(content_key), len(nonce), len(tag)) != (32, 12, 16):
            raise VerificationError(f"the JWE's parts do not have the sizes of {_ENC}")
        aad = parts["protected"].encode("ascii")
        return SecretBytes(AESGCM(content_key).decrypt(nonce, b64u_decode(parts["ciphertext"]) + tag, aad))
    except (InvalidTag, InvalidUnwrap, InputError, ValueError) as exc:
        raise VerificationError("the JWE does not open with this key") from exc


def _jwe_parts(message: object) -> dict[str, str]:
    names = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
    if not isinstance(message, dict):
        raise VerificationError("expected a flattened JWE")
    if set(message) != set(names):  # `aad` and unprotected headers would not be under the tag as we compute it
        raise VerificationError(f"expected a flattened JWE with {', '.join(names)} and nothing else")
    parts = {name: message.get(name) for name in names}
    if not all(isinstance(value, str) for value in parts.values()):
        raise VerificationError(f"expected a flattened JWE with {', '.join(names)}")
    return {name: str(value) for name, value in parts.items()}


def _agree(mine: ec.EllipticCurvePrivateKey, theirs: ec.EllipticCurvePublicKey) -> bytes:
    # RFC 7518 §4.6.2: AlgorithmID || PartyUInfo || PartyVInfo || SuppPubInfo, the party infos empty.
    algorithm = _ALG.encode("ascii")
    info = len(algorithm).to_bytes(4, "big") + algorithm + bytes(8) + (256).to_bytes(4, "big")
    shared = mine.exchange(ec.ECDH(), theirs)
    return ConcatKDFHash(hashes.SHA256(), 32, info).derive(shared)


def sign_jws(payload: Mapping[str, object], key: ec.EllipticCurvePrivateKey, *, typ: str, kid: str = "") -> str:
    """Return `payload` as a compact ES256 JWS whose header says `typ`; for readers who choose a key by it, `kid`."""
    head = b64u(canonical_json({"alg": "ES256", "typ": typ} | ({"kid": kid} if kid else {})))
    signed = f"{head}.{b64u(canonical_json(payload))}"
    r, s = decode_dss_signature(key.sign(signed.encode("ascii"), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{b64u(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def verify_jws(
    token: str, keys: Sequence[ec.EllipticCurvePublicKey] | Mapping[str, ec.EllipticCurvePublicKey], *, typ: str
) -> dict[str, object]:
    """Return the payload of a compact ES256 JWS signed by one of `keys`.

    Args:
        token: The JWS. Its header says `alg`, `typ` and, only if `keys` have names, `kid`; nothing else.
        keys: Those that may have signed. With names, only the one that `kid` names.
        typ: What the header has to say.

    Raises:
        VerificationError: Another form, algorithm or type, or no key's signature.
    """
    parts = token.split(".")
    if len(token) > _MAX_TOKEN_BYTES or len(parts) != 3:
        raise VerificationError("expected a compact JWS")
    try:
        header = parse_json(b64u_decode(parts[0]), "JWS header")
        signature = b64u_decode(parts[2])
        payload = parse_json(b64u_decode(parts[1]), "JWS payload")
    except InputError as exc:
        raise VerificationError("expected a compact JWS") from exc
    expected = {"alg": "ES256", "typ": typ}
    if isinstance(keys, Mapping):
        kid = header.get("kid") if isinstance(header, dict) else None
        named = keys.get(kid) if isinstance(kid, str) else None
        if named is None:
            raise VerificationError(f"this {typ}: expected a kid of {', '.join(keys) or 'no key'}, got {kid!r:.80}")
        expected["kid"], keys = str(kid), [named]
    if header != expected or len(signature) != 64:
        raise VerificationError(f"expected an ES256 JWS of type {typ}")
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    signed = f"{parts[0]}.{parts[1]}".encode("ascii")
    for key in keys:
        try:
            key.verify(der, signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            continue
        if not isinstance(payload, dict):
            break
        return payload
    raise VerificationError(f"no known key signed this {typ}")
