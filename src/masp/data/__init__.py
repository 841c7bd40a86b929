"""Images and labels: reading, checking, splitting, ordering and loading them. Knows nothing of any model."""
