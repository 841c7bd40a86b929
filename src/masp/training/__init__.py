"""Training of the two stages: one loop, two small stages, and runs that survive being killed."""
