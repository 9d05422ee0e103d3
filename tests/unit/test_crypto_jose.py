from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwe, jws
from joserfc.jwk import ECKey

from strongroom._encoding import b64u, b64u_decode
from strongroom.crypto.jose import jwe_open, jwe_seal, jwk, jwk_public_key, jwk_receiver, sign_jws, verify_jws
from strongroom.errors import InputError, VerificationError

MINE, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
THEIRS = ECKey.import_key(MINE)
ALGORITHMS = ["ECDH-ES+A256KW", "A256GCM"]
PARTS = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
B64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def _foreign(plaintext: bytes, header: dict[str, Any], key: ECKey = THEIRS) -> dict[str, Any]:
    # Compact, since joserfc's JSON form has the ephemeral key outside the tag.
    names = [header["alg"], header["enc"], "DEF"]
    compact = jwe.encrypt_compact(header, plaintext, key, algorithms=names)
    return dict(zip(PARTS, compact.split("."), strict=True))


def _right() -> dict[str, Any]:
    return {"alg": ALGORITHMS[0], "enc": ALGORITHMS[1]}


@settings(max_examples=25, deadline=None)
@given(plaintext=st.binary(max_size=300))
def test_joserfc_opens_ours_and_we_theirs(plaintext: bytes) -> None:
    opened = jwe.decrypt_json(jwe_seal(plaintext, MINE.public_key()), THEIRS, algorithms=ALGORITHMS)  # type: ignore[arg-type]
    assert opened.plaintext == plaintext
    with jwe_open(_foreign(plaintext, _right()), MINE) as raw:
        assert raw == plaintext


@pytest.mark.parametrize(
    "header",
    [
        {**_right(), "alg": "ECDH-ES+A128KW"},
        {**_right(), "alg": "ECDH-ES"},
        {**_right(), "enc": "A128GCM"},
        {**_right(), "enc": "A256CBC-HS512"},
        {**_right(), "zip": "DEF"},
        {**_right(), "apu": "QQ", "apv": "Qg"},
        {**_right(), "kid": "x"},
    ],
)
def test_another_algorithm_or_header_is_refused(header: dict[str, Any]) -> None:
    with pytest.raises(VerificationError):
        jwe_open(_foreign(b"secret", header), MINE)


def test_another_receiver_does_not_open_it() -> None:
    with pytest.raises(VerificationError):
        jwe_open(jwe_seal(b"secret", MINE.public_key()), OTHER)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(PARTS))
def test_an_altered_letter_of_any_part_is_refused(data: st.DataObject, name: str) -> None:
    message = jwe_seal(b"secret text", MINE.public_key())
    at = data.draw(st.integers(0, len(message[name]) - 1))
    letter = B64[(B64.index(message[name][at]) + data.draw(st.integers(1, len(B64) - 1))) % len(B64)]
    message[name] = message[name][:at] + letter + message[name][at + 1 :]
    with pytest.raises(VerificationError):
        jwe_open(message, MINE)


def test_bytes_moved_between_parts_are_refused() -> None:
    message = jwe_seal(b"secret text", MINE.public_key())
    text, tag = b64u_decode(message["ciphertext"]), b64u_decode(message["tag"])
    for size in (1, len(text)):
        moved = {**message, "ciphertext": b64u(text[:-size]), "tag": b64u(text[-size:] + tag)}
        with pytest.raises(VerificationError):
            jwe_open(moved, MINE)
    with pytest.raises(VerificationError):
        jwe_open({**message, "ciphertext": b64u(text + tag[:4]), "tag": b64u(tag[4:])}, MINE)


@pytest.mark.parametrize("name", PARTS)
def test_missing_empty_or_wrong_parts_are_refused(name: str) -> None:
    message: dict[str, Any] = jwe_seal(b"secret", MINE.public_key())
    for bad in ("", None, 5, [], "=", "\ud800", "a" * 10_000, message[name] + "="):
        with pytest.raises(VerificationError):
            jwe_open({**message, name: bad}, MINE)
    del message[name]
    with pytest.raises(VerificationError):
        jwe_open(message, MINE)


@pytest.mark.parametrize("extra", ["aad", "header", "unprotected", "recipients"])
def test_members_outside_the_tag_are_refused(extra: str) -> None:
    with pytest.raises(VerificationError):
        jwe_open({**jwe_seal(b"secret", MINE.public_key()), extra: "e30"}, MINE)


@pytest.mark.parametrize("value", [None, [], "text", 5])
def test_what_is_no_message(value: object) -> None:
    with pytest.raises(VerificationError):
        jwe_open(value, MINE)


def test_points_that_are_no_keys() -> None:
    good = jwk(MINE.public_key())
    assert jwk_public_key(good).public_numbers() == MINE.public_key().public_numbers()
    bad: list[dict[str, object]] = [
        {**good, "crv": "P-384"},
        {**good, "kty": "OKP"},
        {**good, "alg": "ECDH-ES"},
        {**good, "x": good["y"]},
        {**good, "x": b64u(bytes(32)), "y": b64u(bytes(32))},
        {**good, "x": b64u(b"\0" + b64u_decode(good["x"]))},
        {**good, "x": b64u(b"\xff" * 32)},
        {**good, "x": b64u(b"\xff" * 200)},
        {**good, "x": 5},
        {**good, "x": "="},
        {"kty": "EC"},
        {},
    ]
    for value in bad:
        with pytest.raises(InputError):
            jwk_public_key(value)


payloads = st.dictionaries(st.text(max_size=8), st.integers(-9, 9) | st.text(max_size=8) | st.none(), max_size=4)


@settings(max_examples=25, deadline=None)
@given(payload=payloads)
def test_joserfc_verifies_ours_and_we_theirs(payload: dict[str, object]) -> None:
    token = sign_jws(payload, MINE, typ="t+jwt")
    found = jws.deserialize_compact(token, THEIRS, algorithms=["ES256"])
    assert json.loads(found.payload) == payload
    theirs = jws.serialize_compact({"alg": "ES256", "typ": "t+jwt"}, json.dumps(payload), THEIRS, algorithms=["ES256"])
    assert verify_jws(theirs, [OTHER.public_key(), MINE.public_key()], typ="t+jwt") == payload


def test_another_key_type_or_header_is_refused() -> None:
    token = sign_jws({"a": 1}, MINE, typ="t+jwt")
    keys = [MINE.public_key()]
    for other_keys, typ in (([OTHER.public_key()], "t+jwt"), ([], "t+jwt"), (keys, "u+jwt"), (keys, "")):
        with pytest.raises(VerificationError):
            verify_jws(token, other_keys, typ=typ)
    symmetric = {"alg": "HS256", "typ": "t+jwt"}
    for header in (
        symmetric,
        {"alg": "ES256"},
        {"alg": "ES256", "typ": "t+jwt", "kid": "1"},
        {"alg": "none", "typ": "t+jwt"},
    ):
        forged = b64u(json.dumps(header).encode()) + "." + ".".join(token.split(".")[1:])
        with pytest.raises(VerificationError):
            verify_jws(forged, keys, typ="t+jwt")


@pytest.mark.parametrize("bits", [2048, 2049, 4096])
def test_an_rsa_key_is_written_as_it_is_read(bits: int) -> None:
    key = rsa.RSAPublicNumbers(65537, (1 << bits - 1) + 5).public_key()
    assert jwk_receiver(jwk(key)) == key


def test_T384_a_kid_names_the_one_key_that_is_tried() -> None:
    ours, theirs = {"a": MINE.public_key()}, {"a": OTHER.public_key(), "b": MINE.public_key()}
    named = {kid: sign_jws({"a": 1}, MINE, typ="t+jwt", kid=kid) for kid in ("", "a", "b", "c")}
    assert verify_jws(named["a"], ours, typ="t+jwt") == {"a": 1}
    assert verify_jws(named["b"], theirs, typ="t+jwt") == {"a": 1}
    extra = b64u(json.dumps({"alg": "ES256", "typ": "t+jwt", "kid": "a", "jwk": {}}).encode())
    number = b64u(json.dumps({"alg": "ES256", "typ": "t+jwt", "kid": ["a"]}).encode())
    rest = "." + named["a"].split(".", 1)[1]
    for token, keys in (
        (named["a"], theirs), (named["c"], ours), (named[""], ours), (named["a"], {}), (extra + rest, ours),
        (number + rest, ours), (named["a"], [MINE.public_key()]),
    ):  # fmt: skip
        with pytest.raises(VerificationError):
            verify_jws(token, keys, typ="t+jwt")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_an_altered_letter_of_a_token_is_refused(data: st.DataObject) -> None:
    token = sign_jws({"seq": 1, "chain": "abc"}, MINE, typ="t+jwt")
    at = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from(B64 + ".=").filter(lambda c: c != token[at]))
    with pytest.raises(VerificationError):
        verify_jws(token[:at] + letter + token[at + 1 :], [MINE.public_key()], typ="t+jwt")


def test_signatures_of_another_form_are_refused() -> None:
    token = sign_jws({"a": 1}, MINE, typ="t+jwt")
    head, payload, signature = token.split(".")
    raw = b64u_decode(signature)
    for bad in (b"", bytes(64), raw + b"\0", raw[:32], b"\xff" * 64, raw[32:] + raw[:32]):
        with pytest.raises(VerificationError):
            verify_jws(f"{head}.{payload}.{b64u(bad)}", [MINE.public_key()], typ="t+jwt")
    for text in ("", "..", "a.b", token + ".x", "\ud800.a.b", "x" * (1 << 21)):
        with pytest.raises(VerificationError):
            verify_jws(text, [MINE.public_key()], typ="t+jwt")


def test_a_signed_list_is_no_payload() -> None:
    token = jws.serialize_compact({"alg": "ES256", "typ": "t+jwt"}, "[1]", THEIRS, algorithms=["ES256"])
    with pytest.raises(VerificationError):
        verify_jws(token, [MINE.public_key()], typ="t+jwt")
