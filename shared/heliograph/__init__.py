"""Heliograph's shared vocabulary: what hub and nodes both speak. Pure unless a module's docstring says [IO]."""

__version__ = "0.1.0"
