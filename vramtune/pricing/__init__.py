"""What a call costs on a card: `Trace` and `Device` to `Profile`. Nothing here needs torch."""
