"""What ``fixation`` costs in errors, and what it could save."""
