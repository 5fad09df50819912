"""What a trial is, what it measured, and how trials are planned."""
