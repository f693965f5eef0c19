"""One worker process: claim a trial, train it, report it, tell its value."""
