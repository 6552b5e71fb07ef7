"""The graph and its rules: storages, tensors, operations, scopes; verified, saved and loaded without torch."""
