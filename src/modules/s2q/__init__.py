"""Networks of S2Q: its agents, and the encoder of what they remember."""
