"""One reader for each published layout, and the one door that recognises them."""
