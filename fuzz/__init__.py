"""Fuzzers of every parser that sees bytes from outside: `make fuzz`."""
