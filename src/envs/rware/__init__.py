"""The multi-robot warehouse (Papoudakis et al. 2021), batched."""
