"""The suite of every root kind: what is wrapped comes back, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.attest_parts import FakeAttester

from strongroom._secret import SecretBytes
from strongroom.errors import DeniedError, InputError, IntegrityError, UnavailableError
from strongroom.kms.roots import AESRootKey, RootKey, passphrase
from strongroom.kms.roots.registry import RootFolder, kinds

PASSPHRASE = "correct horse battery staple"
KIND_OPTIONS = {
    "keyfile": {},
    "passphrase": {"passphrase": PASSPHRASE},
    "shares": {"threshold": "3", "shares": "5"},
    "tee": {"threshold": "2", "shares": "3"},
}
ATTESTER = FakeAttester()
KINDS = kinds(ATTESTER)
KINDS_UNDER_TEST = sorted(KINDS)


@pytest.fixture(autouse=True)
def quick_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep scrypt's form and spare its 128 MiB."""

    def stretch(text: str, salt: bytes) -> bytes:
        return Scrypt(salt=salt, length=32, n=16, r=8, p=1).derive(text.encode())

    monkeypatch.setattr(passphrase, "_stretch", stretch)


def _create(folder: Path, kind: str) -> tuple[RootFolder, AESRootKey, list[str]]:
    roots = RootFolder(folder, ATTESTER)
    root, handout = roots.create(kind, KIND_OPTIONS[kind])
    credentials = {"keyfile": [], "passphrase": [PASSPHRASE], "shares": handout[1:4], "tee": []}[kind]
    return roots, root, credentials


def test_every_kind_is_tested() -> None:
    assert set(KIND_OPTIONS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS_UNDER_TEST)
class TestRootKind:
    def test_what_was_wrapped_comes_back_after_a_restart(self, kind: str, tmp_path: Path) -> None:
        roots, root, credentials = _create(tmp_path, kind)
        wrapped = root.wrap(SecretBytes(b"s" * 32), b"context")
        again: RootKey = RootFolder(tmp_path, ATTESTER).unlock(root.id, credentials)
        assert again.id == root.id
        assert again.unwrap(wrapped, b"context") == SecretBytes(b"s" * 32)
        assert roots.kind_name(root.id) == kind

    def test_wrong_context_key_or_bytes(self, kind: str, tmp_path: Path) -> None:
        _, root, _ = _create(tmp_path, kind)
        (tmp_path / "other").mkdir()
        _, other, _ = _create(tmp_path / "other", kind)
        wrapped = root.wrap(SecretBytes(b"s" * 32), b"context")
        assert b"s" * 32 not in wrapped
        for bad, context in ((wrapped, b"other"), (wrapped[:-1], b"context"), (b"", b"context"), (wrapped + b"x", b"")):
            with pytest.raises(IntegrityError):
                root.unwrap(bad, context)
        for at in range(len(wrapped)):
            altered = bytearray(wrapped)
            altered[at] ^= 1
            with pytest.raises(IntegrityError):
                root.unwrap(bytes(altered), b"context")
        with pytest.raises(IntegrityError):
            other.unwrap(wrapped, b"context")

    def test_two_wraps_differ(self, kind: str, tmp_path: Path) -> None:
        _, root, _ = _create(tmp_path, kind)
        secret = SecretBytes(b"s" * 32)
        assert root.wrap(secret, b"") != root.wrap(secret, b"")

    def test_files_are_private_and_do_not_hold_the_secret_unless_a_key_file(self, kind: str, tmp_path: Path) -> None:
        roots, root, credentials = _create(tmp_path, kind)
        with KINDS[kind].unlock(roots._descriptor(root.id), roots._key_path(root.id), credentials) as secret:
            for path in tmp_path.glob("root-*"):
                assert path.stat().st_mode & 0o077 == 0
                if (kind, path.suffix) != ("keyfile", ".key"):
                    assert secret not in path.read_bytes()
                    assert secret.hex().encode() not in path.read_bytes()

    def test_another_root_under_this_name_is_refused(self, kind: str, tmp_path: Path) -> None:
        roots, root, _ = _create(tmp_path, kind)
        (tmp_path / "other").mkdir()
        others, other, credentials = _create(tmp_path / "other", kind)
        for suffix in ("json", "key"):
            found = others.folder / f"root-{other.id}.{suffix}"
            if found.exists():
                (tmp_path / f"root-{root.id}.{suffix}").write_bytes(found.read_bytes())
        with pytest.raises((IntegrityError, DeniedError)):
            roots.unlock(root.id, credentials)

    def test_unknown_options_are_refused(self, kind: str, tmp_path: Path) -> None:
        with pytest.raises(InputError):
            RootFolder(tmp_path, ATTESTER).create(kind, {**KIND_OPTIONS[kind], "colour": "red"})

    def test_missing_or_damaged_descriptor(self, kind: str, tmp_path: Path) -> None:
        roots, root, credentials = _create(tmp_path, kind)
        path = tmp_path / f"root-{root.id}.json"
        for text in ("{", "[]", '{"kind": "other"}', "{}"):
            path.write_text(text)
            with pytest.raises((IntegrityError, InputError)):
                roots.unlock(root.id, credentials)
        path.unlink()
        with pytest.raises(IntegrityError, match="not readable"):
            roots.unlock(root.id, credentials)


def test_keyfile_that_others_can_read_or_of_another_size(tmp_path: Path) -> None:
    roots, root, _ = _create(tmp_path, "keyfile")
    path = tmp_path / f"root-{root.id}.key"
    path.chmod(0o644)
    with pytest.raises(IntegrityError, match="readable by others"):
        roots.unlock(root.id, [])
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(IntegrityError, match="5 bytes, expected 32"):
        roots.unlock(root.id, [])
    path.unlink()
    with pytest.raises(IntegrityError, match="not readable"):
        roots.unlock(root.id, [])


def test_passphrase_wrong_missing_or_short(tmp_path: Path) -> None:
    roots, root, _ = _create(tmp_path, "passphrase")
    for credentials in (["wrong passphrase"], [""], [PASSPHRASE + " "], []):
        with pytest.raises(DeniedError):
            roots.unlock(root.id, credentials)
    with pytest.raises(InputError, match="at least 12"):
        roots.create("passphrase", {"passphrase": "short"})


def test_passphrase_descriptor_with_weaker_parameters(tmp_path: Path) -> None:
    roots, root, credentials = _create(tmp_path, "passphrase")
    path = tmp_path / f"root-{root.id}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "n": 2}))
    with pytest.raises(IntegrityError, match="other scrypt parameters"):
        roots.unlock(root.id, credentials)


def test_shares_too_few_of_another_set_or_damaged(tmp_path: Path) -> None:
    roots = RootFolder(tmp_path)
    root, shares = roots.create("shares", KIND_OPTIONS["shares"])
    _, others = roots.create("shares", KIND_OPTIONS["shares"])
    words = shares[0].split()
    damaged = " ".join([*words[:-1], "academic" if words[-1] != "academic" else "acid"])
    bad = [
        [],
        shares[:2],
        others[:3],
        [*shares[:2], others[0]],
        [shares[0], shares[1], shares[1]],
        [damaged, *shares[1:3]],
        ["", "x", "\ud800"],
    ]
    for credentials in bad:
        with pytest.raises(DeniedError):
            roots.unlock(root.id, credentials)
    for some in (shares[:3], shares[2:], shares[::2], shares):
        assert roots.unlock(root.id, some).id == root.id


def test_shares_counts(tmp_path: Path) -> None:
    for options in ({"threshold": "1"}, {"threshold": "6"}, {"shares": "17"}, {"threshold": "x"}, {"threshold": "-1"}):
        with pytest.raises(InputError):
            RootFolder(tmp_path).create("shares", options)


def test_tee_opens_for_its_code_alone_and_for_shares(tmp_path: Path) -> None:
    roots = RootFolder(tmp_path, ATTESTER)
    root, shares = roots.create("tee", KIND_OPTIONS["tee"])
    sealed = tmp_path / f"root-{root.id}.key"
    first = sealed.read_bytes()
    moved = RootFolder(tmp_path, FakeAttester(measurement=b"o" * 32))
    with pytest.raises(DeniedError, match="other code or another machine, or was altered: it needs 2 shares"):
        moved.unlock(root.id, [])
    with pytest.raises(DeniedError, match="needs 2 shares, got 1"):
        moved.unlock(root.id, shares[:1])
    assert sealed.read_bytes() == first
    assert moved.unlock(root.id, shares[1:]).id == root.id
    assert moved.unlock(root.id, []).id == root.id, "sealed anew"
    with pytest.raises(DeniedError, match="other code"):
        roots.unlock(root.id, [])
    sealed.unlink()
    with pytest.raises(DeniedError, match="No such file"):
        roots.unlock(root.id, [])
    assert RootFolder(tmp_path).unlock(root.id, shares[:2]).id == root.id, "outside a TEE nothing is sealed"
    assert not sealed.exists()


def test_tee_outside_a_tee_or_in_one_without_a_sealing_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Tdx(FakeAttester):
        def sealing_key(self) -> SecretBytes:
            raise UnavailableError("tdx: this TEE has no sealing key")

    with pytest.raises(InputError, match="expected a trust service in a TEE, got one outside"):
        RootFolder(tmp_path).create("tee", KIND_OPTIONS["tee"])
    with pytest.raises(UnavailableError, match="no sealing key"):
        RootFolder(tmp_path, Tdx()).create("tee", KIND_OPTIONS["tee"])
    root, shares = RootFolder(tmp_path, ATTESTER).create("tee", KIND_OPTIONS["tee"])
    with pytest.raises(DeniedError, match="runs outside: it needs 2 shares"):
        RootFolder(tmp_path).unlock(root.id, [])
    with pytest.raises(DeniedError, match="no sealing key: it needs 2 shares"):
        RootFolder(tmp_path, Tdx()).unlock(root.id, [])
    assert RootFolder(tmp_path, Tdx()).unlock(root.id, shares[:2]).id == root.id
    assert "not sealed to this TEE" in caplog.text


@given(secret=st.binary(max_size=200), context=st.binary(max_size=100), other=st.binary(max_size=100))
def test_wrap_binds_any_context(secret: bytes, context: bytes, other: bytes) -> None:
    root = AESRootKey(SecretBytes(b"r" * 32), "keyfile")
    wrapped = root.wrap(SecretBytes(secret), context)
    with root.unwrap(wrapped, context) as raw:
        assert raw == secret
    if other != context:
        with pytest.raises(IntegrityError):
            root.unwrap(wrapped, other)
