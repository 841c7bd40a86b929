"""The method: aspect attention, soft prompt, the assembled sequence, scores and explanations (paper, section 3)."""
