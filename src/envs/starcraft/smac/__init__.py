"""SMAC's rules as compiled functions over ranges of battles: what orders, observes and rewards."""
