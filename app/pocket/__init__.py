"""The checkpoint that ships with the package, and the code that reads pages with it: weights, reader,
layout.
"""
