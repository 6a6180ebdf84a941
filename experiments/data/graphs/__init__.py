"""Graphs whose nodes are to be classified."""
