"""A worker's side of jobs: claim, read, write, deliver webhooks, take over from the dead."""
