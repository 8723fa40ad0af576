"""The interfaces of docs/use-with.md, each driven by the library that it serves, on a task of a suite."""
