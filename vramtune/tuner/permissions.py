"""What a user may allow that changes the output; here by itself, so that a shell completes it at once."""

PERMISSIONS = ("vae_tiling",)
