"""What a graph holds: values, layers, blocks, modules, operations, and the profile made of them."""
