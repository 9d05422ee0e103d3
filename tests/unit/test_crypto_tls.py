from __future__ import annotations

import errno
import gc
import os
import ssl
from datetime import UTC, datetime, timedelta

import pytest

from strongroom.crypto import tls, x509
from strongroom.errors import InputError

NOW = datetime.now(UTC)
IDENTITY = x509.new_key()
ROOT = x509.self_signed(IDENTITY, "Strongroom trust service", now=NOW, days=10, ca=True)
ROOT_PEM = x509.certificate_pem(ROOT)


def _leaf(root: object = ROOT, signer: object = IDENTITY, **changes: object) -> tuple[str, bytes]:
    key = x509.new_key()
    values: dict[str, object] = {"now": NOW, "lifetime": timedelta(days=1), "dns": [tls.SERVICE_NAME]}
    leaf = x509.issue(root, signer, key.public_key(), "leaf", **{**values, **changes})  # type: ignore[arg-type]
    return x509.certificate_pem(leaf) + ROOT_PEM, x509.private_key_pem(key)


def _owner(name: str = "owner") -> tuple[str, bytes]:
    key = x509.new_key()
    return x509.certificate_pem(x509.self_signed(key, name, now=NOW, days=1, ca=False)), x509.private_key_pem(key)


def _shake(client: ssl.SSLContext, server: ssl.SSLContext, name: str = tls.SERVICE_NAME) -> ssl.SSLObject:
    """Run a handshake in memory and one message each way; return the server's end."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    for end in (ends[1], ends[0]):  # in TLS 1.3 the client is done before the server looked at its certificate
        end.write(b"x")
    assert ends[0].read(1) == b"x"
    assert ends[1].read(1) == b"x"
    return ends[1]


def test_both_ends_know_each_other() -> None:
    pem, key = _owner()
    server = tls.server_context(*_leaf(), client_pems=[pem])
    end = _shake(tls.client_context(ROOT_PEM, certificate_pem=pem, key_pem=key), server)
    assert end.version() == "TLSv1.3"
    assert end.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(pem)


def test_a_servers_own_certificate_may_be_the_one_that_is_trusted() -> None:
    pem, key = _leaf()
    own = pem.removesuffix(ROOT_PEM)
    _shake(tls.client_context(own), tls.server_context(pem, key, client_pems=None))
    with pytest.raises(ssl.SSLCertVerificationError):  # another of the same issuer is not it
        _shake(tls.client_context(own), tls.server_context(*_leaf(), client_pems=None))


def test_guests_need_no_certificate() -> None:
    end = _shake(tls.client_context(ROOT_PEM), tls.server_context(*_leaf(), client_pems=None))
    assert end.getpeercert(binary_form=True) is None


def test_a_client_without_a_known_certificate_is_refused() -> None:
    server = tls.server_context(*_leaf(), client_pems=[_owner()[0]])
    with pytest.raises(ssl.SSLError):
        _shake(tls.client_context(ROOT_PEM), server)
    pem, key = _owner()  # the same name
    with pytest.raises(ssl.SSLError):
        _shake(tls.client_context(ROOT_PEM, certificate_pem=pem, key_pem=key), server)
    nobody = tls.server_context(*_leaf(), client_pems=[])
    with pytest.raises(ssl.SSLError):
        _shake(tls.client_context(ROOT_PEM, certificate_pem=pem, key_pem=key), nobody)


def test_a_service_of_another_identity_name_or_time_is_refused() -> None:
    other_key = x509.new_key()
    other = x509.self_signed(other_key, "Strongroom trust service", now=NOW, days=10, ca=True)
    servers = [
        _leaf(other, other_key),
        _leaf(dns=["other.internal"]),
        _leaf(dns=[]),
        _leaf(now=NOW - timedelta(days=3)),
        _leaf(now=NOW + timedelta(days=3)),
        _leaf(server=False, client=True),
    ]
    for chain in servers:
        with pytest.raises(ssl.SSLCertVerificationError):
            _shake(tls.client_context(ROOT_PEM), tls.server_context(*chain, client_pems=None))
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake(tls.client_context(ROOT_PEM), tls.server_context(*_leaf(), client_pems=None), "elsewhere")


def test_no_system_trust_and_no_older_version() -> None:
    client = tls.client_context(ROOT_PEM)
    assert len(client.get_ca_certs()) == 1
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(cadata=ROOT_PEM)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        _shake(old, tls.server_context(*_leaf(), client_pems=None))


def test_a_running_server_takes_new_certificates_and_owners() -> None:
    server = tls.server_context(*_leaf(), client_pems=[_owner()[0]])
    pem, key = _owner("new")
    client = tls.client_context(ROOT_PEM, certificate_pem=pem, key_pem=key)
    with pytest.raises(ssl.SSLError):
        _shake(client, server)
    tls.renew(server, *_leaf(), also_trust=[pem])
    _shake(client, server)


@pytest.mark.parametrize("pem", ["", "x", "\u00e4", ROOT_PEM[:-50]])
def test_what_cannot_be_trusted_is_an_input_error(pem: str) -> None:
    with pytest.raises(InputError):
        tls.client_context(pem)


def test_keys_that_do_not_belong_are_an_input_error() -> None:
    for chain, key in ((_leaf()[0], _leaf()[1]), (_leaf()[0], b""), ("", _leaf()[1]), ("\u00e4", _leaf()[1])):
        with pytest.raises(InputError):
            tls.server_context(chain, key, client_pems=None)


def test_no_private_key_stays_in_an_open_file() -> None:
    tls.server_context(*_leaf(), client_pems=None)
    gc.collect()
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    assert not [link for link in links if "strongroom-tls" in link]


@pytest.mark.skipif(not os.access("/run", os.W_OK), reason="no permission to write to /run")
def test_where_memory_has_no_files_the_key_goes_through_the_libos_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str, _flags: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", missing)
    chain, key = _leaf()
    _shake(tls.client_context(ROOT_PEM), tls.server_context(chain, key, client_pems=None))
    with pytest.raises(InputError):
        tls.server_context(chain, x509.private_key_pem(x509.new_key()), client_pems=None)
    assert not [name for name in os.listdir("/run") if name.startswith("strongroom-tls")]
