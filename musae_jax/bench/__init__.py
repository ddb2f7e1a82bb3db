"""Benchmarks a reader can run: `musae bench NAME --json FILE`."""
