"""The process that libFuzzer takes over: `python -m stress.libfuzzer CORPUS -seed=1 -runs=20000`, with its own options.

A file in place of the folder runs that one input.
"""

import logging
import sys

import atheris

with atheris.instrument_imports(include=["protocol", "chatserver"]):
    from stress import inputs, target


def start() -> None:
    """Fuzz; this ends the process."""
    logging.basicConfig(level=logging.DEBUG, handlers=[target.Formatting()])
    atheris.Setup(sys.argv, target.run, custom_mutator=mutate)
    atheris.Fuzz()


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """A mutated input: other bytes, or other steps."""
    if seed % 2:
        return bytes(atheris.Mutate(data, max_size))
    return inputs.mutate(data, seed)[:max_size]


if __name__ == "__main__":
    start()
