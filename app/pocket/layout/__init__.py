"""Reading a page line by line, for checkpoints too small to follow a whole one: what is printed is found by
white space alone, and each line is shown in views of its own."""
