"""What PyTorch's memory on a CUDA device costs, worked out without one."""
