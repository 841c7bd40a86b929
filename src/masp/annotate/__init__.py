"""Annotating images by machine: a frozen backbone, or trained aspects, answer the six aspect questions about them."""
