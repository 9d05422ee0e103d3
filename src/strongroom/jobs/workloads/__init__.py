"""Kinds of program."""

__all__: list[str] = []
