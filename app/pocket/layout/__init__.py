"""Page layout for checkpoints too small to read a whole page.

Print is found by the white space around it, and each line gets views of its own.
"""
