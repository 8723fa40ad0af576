"""`python -m ssamba` is the `ssamba` command."""

from ssamba.cli import main

if __name__ == "__main__":
    main()
