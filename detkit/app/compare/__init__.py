"""Comparison of runs: one table with honest intervals, figures, and a page that opens without a server."""
