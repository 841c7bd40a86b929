"""What every other part rests on: errors, files, types, labels, prompts and settings; no model is known here."""
