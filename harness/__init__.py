"""Around any run: its folder, log, checkpoint and errors. Nothing here knows the method."""
