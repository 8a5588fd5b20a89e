"""The demo's generated images."""
