"""Where the trust service keeps its state."""

__all__: list[str] = []
