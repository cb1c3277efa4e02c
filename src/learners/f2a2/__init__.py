"""F2A2: what its five instantiations share and what each of them supplies."""
