"""Comparisons with on-policy and uniform draws, each a function and a command of `bench`."""

if __name__ != "awsgd_rl.benchmarks":
    raise ImportError(
        f"this folder is the package 'awsgd_rl.benchmarks', but was imported as {__name__!r}: "
        "install the project (pip install -e .) and import awsgd_rl.benchmarks"
    )
