"""The only place that builds an SSLContext.

TLS 1.3 only, certificates always checked, host names always checked on the client side, no system trust store: a
context trusts exactly the certificates it is given. `web_context` alone is for servers that are not ours. Private keys
reach OpenSSL through a file in memory, never through a path on disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
import tempfile
from collections.abc import Iterable, Iterator

from strongroom.errors import InputError

__all__ = ["SERVICE_NAME", "client_context", "peer_contexts", "renew", "server_context", "web_context"]

SERVICE_NAME = "trust-service.strongroom.internal"
"""The DNS name in every leaf certificate of a trust service; what identifies a service is its identity key."""


def client_context(trusted_pem: str, *, certificate_pem: str = "", key_pem: bytes = b"") -> ssl.SSLContext:
    """Return a client context that trusts only `trusted_pem` and, if given, presents a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # A server's own certificate may be the one that is trusted, whoever issued it.
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    _trust(context, [trusted_pem])
    if certificate_pem:
        _load(context, certificate_pem, key_pem)
    return context


def server_context(certificate_pem: str, key_pem: bytes, *, client_pems: Iterable[str] | None) -> ssl.SSLContext:
    """Return a server context; with `client_pems` every client must hold the key of one of them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # no resumption: every connection shows its certificate
    _load(context, certificate_pem, key_pem)
    if client_pems is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _trust(context, client_pems)
    return context


def peer_contexts(certificate_pem: str, key_pem: bytes, root_pem: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the server's and the client's context of a peer; both sides show certificates under `root_pem`.

    Peers have no host names; whoever uses these contexts compares what the other's certificate is for.
    """
    client = client_context(root_pem, certificate_pem=certificate_pem, key_pem=key_pem)
    client.check_hostname = False
    return server_context(certificate_pem, key_pem, client_pems=[root_pem]), client


def renew(context: ssl.SSLContext, certificate_pem: str, key_pem: bytes, *, also_trust: Iterable[str] = ()) -> None:
    """Let new connections of a running server see a new certificate, and trust more clients."""
    _load(context, certificate_pem, key_pem)
    _trust(context, also_trust)


def web_context(trusted_pem: str = "") -> ssl.SSLContext:
    """Return a client context for a public web server: the system's store, or only `trusted_pem`; TLS 1.2 is allowed.

    For what is signed apart from the connection, such as makers' endorsements.

    Raises:
        InputError: `trusted_pem` is not certificates in PEM.
    """
    try:
        context = ssl.create_default_context(cadata=trusted_pem or None)
    except (ssl.SSLError, ValueError) as exc:
        raise InputError("a trusted certificate is not readable PEM") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _trust(context: ssl.SSLContext, pems: Iterable[str]) -> None:
    try:
        for pem in pems:
            context.load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError, TypeError) as exc:
        raise InputError("a trusted certificate is not readable PEM") from exc


def _load(context: ssl.SSLContext, certificate_pem: str, key_pem: bytes) -> None:
    # `ssl` loads from paths only.
    with _memory_file() as (handle, path):
        try:
            with os.fdopen(os.dup(handle), "wb") as file:
                file.write(key_pem + certificate_pem.encode("ascii"))
            context.load_cert_chain(path)
        except (ssl.SSLError, ValueError) as exc:
            raise InputError("certificate and private key do not belong together") from exc


@contextlib.contextmanager
def _memory_file() -> Iterator[tuple[int, str]]:
    # Anonymous, so that it never touches a disk. A LibOS has no such files, and /run in the enclave's memory.
    try:
        handle, named = os.memfd_create("strongroom-tls", os.MFD_CLOEXEC), ""
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise
        handle, named = tempfile.mkstemp(prefix="strongroom-tls-", dir="/run")
    try:
        yield handle, named or f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)
        if named:
            os.unlink(named)
