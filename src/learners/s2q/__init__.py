"""S2Q: successive sub-value Q-learning."""
