"""The trained parts of the method: aspect attention (stage 1) and the soft prompt (stage 2)."""
