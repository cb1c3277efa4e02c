"""StarCraft II micromanagement: the facts of the maps and units, SMAC's interface on arrays, and
the engines behind it.

Sources: Samvelyan et al. 2019 (SMAC), Ellis et al. 2023 (SMACv2), Wang et al. 2020 (NDQ, the
SMAC-Comm maps).
"""
