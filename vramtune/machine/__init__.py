"""This machine and GPUs by name: memory, rates, driver, packages."""
