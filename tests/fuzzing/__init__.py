"""Every parser, what it may answer to hostile bytes, and what feeds it those."""
