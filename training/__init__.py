"""How the pocket checkpoint is made: render pages, train on them, export. Resumable; one settings file."""
