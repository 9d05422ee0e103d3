"""The command line: one module per noun; `output` alone prints."""

__all__: list[str] = []
