"""One reader for each published layout, and `open_dataset`, which recognises the layout."""
