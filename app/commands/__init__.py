"""Subcommands, a module each: ``add_to`` describes arguments, ``run`` gives the exit status."""
