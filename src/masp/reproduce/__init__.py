"""The tables and figures of the paper, each with one command: cells that are run once, and what is written of them."""
