"""Measure the errors of finding lines, columns and structure, apart from those of misread letters."""
