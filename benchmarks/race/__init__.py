"""The race: vramtune, diffusers' own modes and rivals, unmodified, on one simulated card: the same work, memory and link."""
