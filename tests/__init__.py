"""The suite: offline, with injected engines, clocks and registries."""
