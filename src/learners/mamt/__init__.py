"""MAMT and what it stands on: MAAC, mirror descent, trust regions."""
