"""`python -m layerdrift`."""

from layerdrift.cli.main import run

if __name__ == "__main__":
    run()
