"""Making it so: pipeline and `Plan` to an installation. Not built yet."""
