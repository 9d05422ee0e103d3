"""Floor 3: sealed files, trees of them, and the data-set manifests that bind a tree to its head."""

__all__: list[str] = []
