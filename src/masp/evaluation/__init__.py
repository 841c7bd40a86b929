"""Measuring any system: figures, results, comparisons; the rows of Table 2; truth that only a made world knows."""
