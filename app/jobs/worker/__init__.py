"""What a worker does with jobs: claim, read, write, deliver webhooks, take over from the dead."""
