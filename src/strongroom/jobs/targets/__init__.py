"""Places to run."""

__all__: list[str] = []
