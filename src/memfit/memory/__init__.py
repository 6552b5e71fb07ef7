"""Memory models: one file each, in one table (`memfit.memory.registry`)."""
