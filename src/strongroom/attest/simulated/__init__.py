"""The simulated platform: a maker, a quoting enclave and a launcher that protect against mistakes, not the host."""

__all__: list[str] = []
