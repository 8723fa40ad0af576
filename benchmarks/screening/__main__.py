"""`python -m benchmarks.screening`."""

from benchmarks.screening.runner import main

if __name__ == "__main__":
    main()
