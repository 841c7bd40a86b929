"""Emoji scenes: a small made world of pictures whose cues, labels and causes are known."""
