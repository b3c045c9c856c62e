"""Comparisons with on-policy and uniform draws, each a function and a command of `bench`."""
