"""Benchmarks: programs that time this package beside a peer, in one run and on the same weights, and say where they ran."""
