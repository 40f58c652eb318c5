"""One short file per experiment: what, paper, command, expected number."""
