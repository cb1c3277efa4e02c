"""DAC: dynamics-aware contexts for fully decentralised Q-learning."""
