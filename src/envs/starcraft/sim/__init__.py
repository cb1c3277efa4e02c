"""A compiled simulator of StarCraft II battles: B battles at once, one game loop (1/16 game second)
at a time.
"""
