"""Level-Based Foraging (Albrecht and Ramamoorthy 2013; Papoudakis et al. 2021), batched."""
