"""Page layout for checkpoints too small to read a whole page: print is found by white space, and each line
gets views of its own.
"""
