"""Emoji scenes: a small made world of images whose cues, labels and causes are known."""
