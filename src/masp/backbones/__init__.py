"""Backbones: the interface (`base`), the families that fit models to it, and how they are loaded (`loading`)."""
