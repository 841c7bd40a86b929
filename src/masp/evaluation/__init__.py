"""Measuring any system: predictions of a split, metrics, results, comparisons, and explanations against the truth."""
