"""Pictures and labels: reading, splitting, ordering and loading them. Knows nothing of any model."""
