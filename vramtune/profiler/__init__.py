"""What each component costs: pipeline to `Profile`."""
