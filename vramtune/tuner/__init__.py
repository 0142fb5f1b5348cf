"""What should be where, and when: `Profile` and budget to `Plan`."""
