"""`python -m testkit.altered_server NAME=NUMBER OPTIONS`: the server with another value for one of its constants."""

from gevent import monkey

monkey.patch_all()

import sys
from importlib import import_module


def main() -> int:
    """server.main, after NAME, the constant's full name, has been set to NUMBER."""
    name, _, number = sys.argv.pop(1).partition("=")
    module, _, constant = name.rpartition(".")
    if not hasattr(import_module(module), constant):
        raise SystemExit(f"there is no {name}")
    setattr(import_module(module), constant, float(number))
    return int(
        import_module("server").main()
    )  # imported last, so that modules that copy the constant copy the new value


if __name__ == "__main__":
    sys.exit(main())
