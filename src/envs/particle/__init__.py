"""The multi-agent particle environments of MAMT (appendix G.1) and F2A2: Spread, Rover-Tower,
treasure collection.
"""
