"""What PyTorch's CPU kernels allocate and free inside one operation, as rules. No torch in it.

To add an operation: one entry in `operations.OPERATIONS`, or its name in `plain` if it allocates its outputs only.
`events` answers None for what has no rule here.
"""
