"""Measuring a trained MASP: figures, the runner, the rows of Table 2, and truth that only a made world knows."""
