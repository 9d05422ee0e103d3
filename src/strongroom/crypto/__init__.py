"""Floor 1: keys, sealed streams, JOSE, X.509 and TLS. Import the module that is needed; this package loads nothing."""

__all__: list[str] = []
