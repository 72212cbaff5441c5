"""Deltas: recipes (format), patch (apply), diff (make)."""
