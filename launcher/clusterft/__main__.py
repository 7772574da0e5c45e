"""`python -m clusterft` and the `clusterft` command: refuse an old Python in words, then hand over to `cli`.

Written so that an old Python can still read it.
"""

import sys


def main():  # type: () -> int
    """Run the command line; the exit code is the contract's."""
    if sys.version_info < (3, 11):  # noqa: UP036 - run from a checkout, nothing else has looked
        version = ".".join(str(part) for part in sys.version_info[:3])
        sys.stderr.write("clusterft needs Python 3.11 or newer; %s is %s\n" % (sys.executable, version))  # noqa: UP031
        return 2
    from clusterft.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
