"""Where jobs run: one protocol, one file an engine."""
