"""What a blob is to those who look for its like in another."""

from mmap import mmap

Buffer = bytes | mmap
"""Slices give bytes; nobody copies the whole."""
