"""A program that jobs in this folder name; it is never started."""
