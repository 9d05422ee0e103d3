"""The trust service: verifier, keys, certificates and audit log behind two doors, one for owners, one for guests."""

__all__: list[str] = []
