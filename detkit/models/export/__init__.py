"""Detectors as programs of fixed shapes, for runtimes without Python."""

from detkit.models.export.program import NoFormError, Program, made_program

__all__ = ["NoFormError", "Program", "made_program"]
