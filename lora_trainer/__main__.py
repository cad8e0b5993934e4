"""Entry of the command line: joins the standalone host and the interface."""

import sys

from .cli.main import main


def _standalone_host(**arguments):
    from .hosts.standalone.host import StandaloneHost

    return StandaloneHost(**arguments)


if __name__ == "__main__":
    sys.exit(main(make_host=_standalone_host))
