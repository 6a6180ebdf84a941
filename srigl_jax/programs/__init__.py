"""Traced programs: read operation by operation, and rewritten."""
