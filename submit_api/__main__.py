"""`python -m submit_api --config FILE [--bootstrap]`: serve, or make keys, database and an administrator's token."""

from __future__ import annotations

import argparse
import asyncio
import sys

from integrity.errors import SettingsError
from submit_api import logging_setup, settings
from submit_api.bootstrap import bootstrap
from submit_api.refusals import UnavailableError
from submit_api.turns import run


def main() -> int:
    """0 after a wanted stop, 2 when the configuration is to be fixed, 75 when database or bucket are away, or another's."""
    parser = argparse.ArgumentParser(prog="python -m submit_api", description="The dagseal API.")
    parser.add_argument("--config", help="TOML file; the environment (DAGSEAL__SECTION__KEY) comes before it")
    parser.add_argument("--bootstrap", action="store_true", help="make what is missing, print an admin token, and end")
    asked = parser.parse_args()
    logging_setup.configure()
    try:
        loaded = settings.load(asked.config)
        if asked.bootstrap:
            sys.stdout.write(asyncio.run(bootstrap(loaded)) + "\n")
        else:
            asyncio.run(run(loaded))
    except UnavailableError as error:
        sys.stderr.write(f"error: {error}\n")
        return 75
    except (SettingsError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
